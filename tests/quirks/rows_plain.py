"""Answers without a quirk: what every other row departs from."""

from quirk_rows import (
    DONE,
    ROLE,
    TOKENS,
    Gets,
    Quirk,
    block,
    body,
    call_item,
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
_JSON = '{"city": "Oslo"}'

ROWS = [
    Quirk(
        name="chat-text",
        gets=_TEXT,
        stream=[sse(ROLE, chunk("hello "), chunk("there"), chunk(finish="stop"), usage_chunk(), DONE)],
        whole=[body(completion("hello there"))],
    ),
    Quirk(
        name="chat-call",
        gets=_CALL,
        stream=[
            sse(
                ROLE,
                chunk(part("", "get_weather", id="call_1")),
                chunk(part('{"city":')),
                chunk(part(' "Oslo"}')),
                chunk(finish="tool_calls"),
                usage_chunk(),
                DONE,
            )
        ],
        whole=[body(completion({"tool_calls": [called("get_weather", _JSON)]}, "tool_calls"))],
    ),
    Quirk(
        name="messages-text",
        target="messages",
        gets=_TEXT,
        stream=[sse(message_start(), *text_block(0, "hello there"), *message_end())],
        whole=[body(message({"type": "text", "text": "hello there"}))],
    ),
    Quirk(
        name="messages-call",
        target="messages",
        gets=_CALL,
        stream=[sse(message_start(), *tool_block(0, "get_weather", '{"city":', ' "Oslo"}'), *message_end("tool_use"))],
        whole=[
            body(
                message(
                    {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}},
                    stop="tool_use",
                )
            )
        ],
    ),
    Quirk(
        name="messages-thinking",
        target="messages",
        gets=Gets(text="hello", reasoning="hm", finish="stop", usage=TOKENS, order=("thinking", "text")),
        stream=[
            sse(
                message_start(),
                *block(
                    0,
                    {"type": "thinking", "thinking": "", "signature": ""},
                    {"type": "thinking_delta", "thinking": "hm"},
                    {"type": "signature_delta", "signature": "sig"},
                ),
                *text_block(1, "hello"),
                *message_end(),
            )
        ],
    ),
    Quirk(
        name="responses-text",
        target="responses",
        clients=("responses",),
        gets=_TEXT,
        stream=[sse(*response_events(text_item("hello there")))],
        whole=[body(response(text_item("hello there")))],
    ),
    Quirk(
        name="responses-call",
        target="responses",
        clients=("responses",),
        gets=_CALL,
        stream=[sse(*response_events(call_item("get_weather", _JSON)))],
        whole=[body(response(call_item("get_weather", _JSON)))],
    ),
]
