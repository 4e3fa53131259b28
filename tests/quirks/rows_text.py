"""Text that is no valid JSON or Unicode: halves of surrogate pairs, NaN and Infinity, byte order marks."""

import json
from typing import Any

from quirk_rows import (
    DONE,
    ROLE,
    TOKENS,
    Gets,
    Quirk,
    Reply,
    body,
    chunk,
    completion,
    message,
    message_end,
    message_start,
    part,
    response,
    response_events,
    sse,
    text_block,
    text_item,
    usage_chunk,
)

_FACE = "\U0001f600"
_SPLIT = "https://github.com/elizaOS/eliza/issues/30904"
_NAN = "https://github.com/sgl-project/sglang/issues/2955"
_BOM = b"\xef\xbb\xbf"
_TEXT = Gets(text=f"hi {_FACE}!", finish="stop", usage=TOKENS)
_LOGPROB = {"token": "hi", "bytes": [104, 105], "logprob": float("-inf"), "top_logprobs": []}
_NOT_A_NUMBER = {**_LOGPROB, "logprob": float("nan")}


def _with_logprobs(answer: dict[str, Any]) -> dict[str, Any]:
    [choice] = answer["choices"]
    return {**answer, "choices": [{**choice, "logprobs": {"content": [_LOGPROB, _NOT_A_NUMBER]}}]}


ROWS = [
    Quirk(
        name="text-surrogate-between-pieces",
        valid=False,
        source=_SPLIT,
        gets=_TEXT,
        stream=[sse(ROLE, chunk("hi \ud83d"), chunk("\ude00!"), chunk(finish="stop"), usage_chunk(), DONE)],
    ),
    Quirk(
        name="text-surrogate-at-end",
        valid=False,
        source=_SPLIT,
        gets=Gets(text="hi \ud83d", finish="stop", usage=TOKENS),
        stream=[sse(ROLE, chunk("hi \ud83d"), chunk(finish="stop"), usage_chunk(), DONE)],
        whole=[body(completion("hi \ud83d"))],
    ),
    Quirk(
        name="text-surrogate-then-call",
        valid=False,
        source=_SPLIT,
        gets=Gets(text="hi \ud83d", calls=(("f", {}),), finish="calls", usage=TOKENS),
        stream=[
            sse(
                ROLE,
                chunk("hi \ud83d"),
                chunk(part("{}", "f", id="call_1")),
                chunk(finish="tool_calls"),
                usage_chunk(),
                DONE,
            )
        ],
    ),
    Quirk(
        name="text-surrogate-in-arguments",
        valid=False,
        source=_SPLIT,
        gets=Gets(calls=(("f", {"a": _FACE}),), finish="calls", usage=TOKENS),
        stream=[
            sse(
                ROLE,
                chunk(part('{"a": "\ud83d', "f", id="call_1")),
                chunk(part('\ude00"}')),
                chunk(finish="tool_calls"),
                usage_chunk(),
                DONE,
            )
        ],
    ),
    Quirk(
        name="text-surrogate-of-messages",
        valid=False,
        source=_SPLIT,
        target="messages",
        gets=_TEXT,
        stream=[
            sse(
                message_start(),
                *text_block(0, "hi \ud83d", stop=False),
                text_block(0, "\ude00!")[1],
                {"type": "content_block_stop", "index": 0},
                *message_end(),
            )
        ],
    ),
    Quirk(
        name="text-surrogate-of-messages-whole",
        valid=False,
        source=_SPLIT,
        target="messages",
        gets=Gets(text="hi \ud83d", finish="stop", usage=TOKENS),
        whole=[body(message({"type": "text", "text": "hi \ud83d"}))],
    ),
    Quirk(
        name="text-surrogate-of-responses",
        valid=False,
        source=_SPLIT,
        target="responses",
        clients=("responses",),
        gets=Gets(text="hi \ud83d", finish="stop", usage=TOKENS),
        stream=[sse(*response_events(text_item("hi \ud83d")))],
        whole=[body(response(text_item("hi \ud83d")))],
    ),
    Quirk(
        name="text-infinity-in-logprobs",
        source=_NAN,
        gets=Gets(text="hi", finish="stop", usage=TOKENS),
        stream=[sse(ROLE, _with_logprobs(chunk("hi")), chunk(finish="stop"), usage_chunk(), DONE)],
        whole=[body(_with_logprobs(completion("hi")))],
        valid=False,
    ),
    Quirk(
        name="text-byte-order-mark",
        source="https://www.rfc-editor.org/rfc/rfc8259#section-8.1",
        gets=Gets(text="hi", finish="stop", usage=TOKENS),
        stream=[
            Reply(_BOM + sse(ROLE, chunk("hi"), chunk(finish="stop"), usage_chunk(), DONE).body),
        ],
        whole=[Reply(_BOM + json.dumps(completion("hi")).encode(), "application/json")],
    ),
    Quirk(
        name="text-byte-order-mark-of-whole-stream",
        source="https://www.rfc-editor.org/rfc/rfc8259#section-8.1",
        gets=Gets(text="hi", finish="stop", usage=TOKENS),
        stream=[Reply(_BOM + json.dumps(completion("hi")).encode(), "application/json")],
        whole=[Reply(_BOM + sse(ROLE, chunk("hi"), chunk(finish="stop"), usage_chunk(), DONE).body)],
    ),
    Quirk(
        name="text-byte-order-mark-of-messages",
        source="https://www.rfc-editor.org/rfc/rfc8259#section-8.1",
        target="messages",
        gets=Gets(text="hi", finish="stop", usage=TOKENS),
        whole=[Reply(_BOM + json.dumps(message({"type": "text", "text": "hi"})).encode(), "application/json")],
    ),
]
