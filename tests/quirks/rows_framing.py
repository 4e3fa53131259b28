"""How an answer is framed: streams where none was asked for, whole answers where one was, and labels that are wrong."""

import json

from quirk_rows import (
    DONE,
    JSON,
    ROLE,
    SSE,
    TOKENS,
    Gets,
    Quirk,
    Reply,
    block,
    body,
    called,
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
    tool_block,
    usage_chunk,
)

_TEXT = Gets(text="hello there", calls=(), finish="stop", usage=TOKENS)
_CALL = Gets(text="", calls=(("get_weather", {"city": "Oslo"}),), finish="calls", usage=TOKENS)
_ALWAYS_SSE = "https://github.com/BerriAI/litellm/issues/25766"
_UNLABELLED_SSE = "https://github.com/Wei-Shaw/sub2api/issues/2826"
_NEVER_SSE = "https://github.com/Zen4-bit/Proxima/pull/45"

_STREAM = (ROLE, chunk("hello "), chunk("there"), chunk(finish="stop"), usage_chunk(), DONE)
_CALL_STREAM = (
    ROLE,
    chunk(part("", "get_weather", id="call_1")),
    chunk(part('{"city":')),
    chunk(part(' "Oslo"}')),
    chunk(finish="tool_calls"),
    usage_chunk(),
    DONE,
)
_MESSAGE_STREAM = (message_start(), *text_block(0, "hello there"), *message_end())
_MESSAGE_CALL = (message_start(), *tool_block(0, "get_weather", '{"city":', ' "Oslo"}'), *message_end("tool_use"))
_RESPONSE_STREAM = response_events(text_item("hello there"))
_WHOLE = completion("hello there")
_THINKING = (
    message_start(),
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "hm"},
        {"type": "signature_delta", "signature": "sig"},
    ),
    *text_block(1, "hello there"),
    *message_end(),
)


def _lines(*events: object) -> Reply:
    """Objects, one on each line, without the framing of events."""
    return Reply("".join(json.dumps(event) + "\n" for event in events).encode(), "application/x-ndjson")


ROWS = [
    # ── a stream where a whole answer was asked for
    *[
        Quirk(name=f"whole-as-sse-{name}", source=source, gets=gets, whole=[sse(*events, label=label)])
        for name, source, gets, events, label in (
            ("labelled", _ALWAYS_SSE, _TEXT, _STREAM, SSE),
            ("as-json", _UNLABELLED_SSE, _TEXT, _STREAM, JSON),
            ("unlabelled", _UNLABELLED_SSE, _TEXT, _STREAM, None),
            ("as-plain-text", "https://github.com/NEKOparapa/AiNiee/pull/920", _TEXT, _STREAM, "text/plain"),
            ("without-done", _ALWAYS_SSE, _TEXT, _STREAM[:-1], SSE),
            (
                "after-comment",
                "https://openrouter.ai/docs/api/reference/streaming",
                _TEXT,
                (b": OPENROUTER PROCESSING\n\n", *_STREAM),
                SSE,
            ),
            ("call", _ALWAYS_SSE, _CALL, _CALL_STREAM, SSE),
        )
    ],
    *[
        Quirk(
            name=f"whole-as-sse-messages-{name}", source=_ALWAYS_SSE, target="messages", gets=gets, whole=[sse(*events)]
        )
        for name, gets, events in (
            ("text", _TEXT, _MESSAGE_STREAM),
            ("call", _CALL, _MESSAGE_CALL),
            ("thinking", Gets(text="hello there", reasoning="hm", finish="stop", usage=TOKENS), _THINKING),
        )
    ],
    *[
        Quirk(
            name=f"whole-as-sse-responses-{name}",
            source=_UNLABELLED_SSE,
            target="responses",
            clients=("responses",),
            gets=_TEXT,
            whole=[sse(*_RESPONSE_STREAM, label=label)],
        )
        for name, label in (("labelled", SSE), ("as-json", JSON))
    ],
    Quirk(
        name="whole-with-end-mark",
        source="https://github.com/decolua/9router/issues/3492",
        gets=_TEXT,
        whole=[Reply(json.dumps(_WHOLE).encode() + b"data: [DONE]\n\n")],
    ),
    Quirk(
        name="whole-as-one-event",
        source="https://github.com/decolua/9router/issues/3492",
        gets=_TEXT,
        whole=[sse(_WHOLE, DONE)],
    ),
    Quirk(
        name="whole-as-sse-error",
        source=_ALWAYS_SSE,
        gets=Gets(text="from the spare", usage=TOKENS),
        whole=[sse(ROLE, {"error": {"message": "broken inside", "code": 502}})],
        asked=("chat", "chat", "spare"),
        failures=("server_error", "server_error"),
    ),
    Quirk(
        name="whole-as-sse-cut",
        source=_ALWAYS_SSE,
        gets=Gets(text="from the spare", usage=TOKENS),
        whole=[sse(ROLE, chunk("hello "))],
        asked=("chat", "chat", "spare"),
        failures=("cut", "cut"),
    ),
    Quirk(
        name="whole-as-lines",
        source="https://github.com/langgenius/dify/issues/4120",
        gets=_TEXT,
        whole=[_lines(ROLE, chunk("hello "), chunk("there"), chunk(finish="stop"), usage_chunk())],
        stream=[_lines(ROLE, chunk("hello "), chunk("there"), chunk(finish="stop"), usage_chunk())],
    ),
    # ── a whole answer where a stream was asked for
    *[
        Quirk(name=f"stream-as-whole-{name}", source=_NEVER_SSE, gets=gets, stream=[body(answer, label=label)])
        for name, gets, answer, label in (
            ("json", _TEXT, _WHOLE, JSON),
            ("as-sse", _TEXT, _WHOLE, SSE),
            ("unlabelled", _TEXT, _WHOLE, None),
            ("as-plain-text", _TEXT, _WHOLE, "text/plain"),
            ("indented", _TEXT, b"\n" + json.dumps(_WHOLE, indent=2).encode(), SSE),
            ("call", _CALL, completion({"tool_calls": [called("get_weather", '{"city": "Oslo"}')]}, "tool_calls"), SSE),
        )
    ],
    Quirk(
        name="stream-as-whole-messages",
        source=_NEVER_SSE,
        target="messages",
        gets=_TEXT,
        stream=[body(message({"type": "text", "text": "hello there"}), label=SSE)],
    ),
    Quirk(
        name="stream-as-whole-responses",
        source=_NEVER_SSE,
        target="responses",
        clients=("responses",),
        gets=_TEXT,
        stream=[body(response(text_item("hello there")), label=SSE)],
    ),
    Quirk(name="stream-as-json", source=_UNLABELLED_SSE, gets=_TEXT, stream=[sse(*_STREAM, label=JSON)]),
    Quirk(name="stream-as-html", source=_UNLABELLED_SSE, gets=_TEXT, stream=[sse(*_STREAM, label="text/html")]),
    Quirk(name="stream-unlabelled", source=_UNLABELLED_SSE, gets=_TEXT, stream=[sse(*_STREAM, label=None)]),
    Quirk(
        name="stream-as-one-whole-event",
        source="https://github.com/decolua/9router/issues/3492",
        gets=_TEXT,
        stream=[sse(_WHOLE, DONE)],
    ),
    Quirk(
        name="stream-as-whole-error",
        source=_NEVER_SSE,
        gets=Gets(text="from the spare", usage=TOKENS),
        stream=[body({"error": {"message": "no workers", "code": 503}}, label=SSE)],
        asked=("chat", "chat", "spare"),
        failures=("overloaded", "overloaded"),
    ),
    Quirk(
        name="stream-as-page",
        source=_NEVER_SSE,
        gets=Gets(text="from the spare", usage=TOKENS),
        stream=[body(b"<html><body>Bad gateway</body></html>", label=SSE)],
        whole=[body(b"<html><body>Bad gateway</body></html>", label=JSON)],
        asked=("chat", "spare"),
        failures=("malformed",),
    ),
]
