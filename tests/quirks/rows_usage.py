"""Usage: told once and only if asked for, whatever the upstream repeats, writes as strings or leaves out."""

from typing import Any

from quirk_rows import (
    DONE,
    MESSAGES_USAGE,
    ROLE,
    TOKENS,
    USAGE,
    Gets,
    Quirk,
    body,
    chunk,
    completion,
    message,
    message_end,
    message_start,
    sse,
    text_block,
    usage_chunk,
)

_TEXT = Gets(text="hello", finish="stop", usage=TOKENS)
_EVERY = "https://github.com/langchain-ai/langchain/issues/30429"
_PART: dict[str, Any] = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
_STRINGS = {"prompt_tokens": "10", "completion_tokens": "2", "total_tokens": "12"}

_STREAMS: dict[str, tuple[Any, ...]] = {
    "on-finish-piece": (ROLE, chunk("hello"), chunk(finish="stop", usage=USAGE), DONE),
    "on-finish-piece-and-at-end": (ROLE, chunk("hello"), chunk(finish="stop", usage=USAGE), usage_chunk(), DONE),
    "on-every-piece": (
        chunk({"role": "assistant", "content": ""}, usage=_PART),
        chunk("hello", usage=_PART),
        chunk(finish="stop", usage=USAGE),
        DONE,
    ),
    "on-every-piece-and-at-end": (
        chunk("hello", usage=_PART),
        chunk(finish="stop", usage=USAGE),
        usage_chunk(),
        DONE,
    ),
    "twice-at-end": (ROLE, chunk("hello"), chunk(finish="stop"), usage_chunk(), usage_chunk(), DONE),
    "null-on-pieces": (chunk("hello", usage=None), chunk(finish="stop", usage=None), usage_chunk(), DONE),
    "as-strings": (ROLE, chunk("hello"), chunk(finish="stop"), usage_chunk(_STRINGS), DONE),
}
ROWS = [
    Quirk(name=f"usage-{name}", source=_EVERY, gets=_TEXT, stream=[sse(*events)]) for name, events in _STREAMS.items()
]
ROWS += [
    Quirk(
        name=f"usage-not-asked-{name}",
        source=_EVERY,
        clients=("chat",),
        gets=Gets(text="hello", finish="stop"),
        billed=TOKENS,
        usage_asked=False,
        stream=[sse(*events)],
    )
    for name, events in _STREAMS.items()
]
ROWS += [
    Quirk(
        name="usage-as-strings-whole",
        source=_EVERY,
        gets=_TEXT,
        each={"chat": Gets(text="hello", finish="stop")},
        billed=TOKENS,
        whole=[body(completion("hello", usage=_STRINGS))],
    ),
    Quirk(
        name="usage-as-strings-messages",
        source=_EVERY,
        target="messages",
        gets=_TEXT,
        each={"messages": Gets(text="hello", finish="stop")},
        billed=TOKENS,
        whole=[
            body(message({"type": "text", "text": "hello"}, usage={"input_tokens": "10", "output_tokens": "2"})),
        ],
    ),
    Quirk(
        name="usage-null",
        source=_EVERY,
        gets=Gets(text="hello", finish="stop"),
        stream=[sse(ROLE, chunk("hello"), chunk(finish="stop"), {**usage_chunk(), "usage": None}, DONE)],
        whole=[body(completion("hello", usage=None))],
        estimated=True,
        bound=True,
    ),
    Quirk(
        name="usage-null-messages",
        source=_EVERY,
        target="messages",
        gets=Gets(text="hello", finish="stop"),
        stream=[
            sse(
                message_start(usage=None),
                *text_block(0, "hello"),
                {**message_end()[0], "usage": None},
                message_end()[1],
            )
        ],
        estimated=True,
        bound=True,
    ),
    Quirk(
        name="usage-of-messages-at-end",
        source="https://github.com/langchain-ai/langchain/pull/32591",
        target="messages",
        gets=_TEXT,
        stream=[
            sse(
                message_start(usage={"input_tokens": 0, "output_tokens": 0}),
                *text_block(0, "hello"),
                {**message_end()[0], "usage": MESSAGES_USAGE},
                message_end()[1],
            )
        ],
    ),
]
