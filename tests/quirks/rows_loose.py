"""Loose servers of the messages and Responses formats: events that are missing, and final responses that are empty."""

from typing import Any

from quirk_rows import (
    TOKENS,
    Gets,
    Quirk,
    body,
    call_item,
    message,
    message_end,
    message_start,
    response,
    response_events,
    sse,
    text_block,
    text_item,
    tool_block,
)

_TEXT = Gets(text="hello", calls=(), finish="stop", usage=TOKENS)
_CALL = Gets(text="", calls=(("get_weather", {"city": "Oslo"}),), finish="calls", usage=TOKENS)
_EMPTY = "https://github.com/BerriAI/litellm/pull/41014"
_JSON = '{"city": "Oslo"}'


def _without(events: list[Any], *kinds: str) -> list[Any]:
    return [event for event in events if event["type"] not in kinds]


def _bare_start(*names: str) -> dict[str, Any]:
    """A start of a message without some of its fields."""
    start = message_start()
    return {**start, "message": {name: value for name, value in start["message"].items() if name not in names}}


_DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}}
_TOOL = tool_block(0, "get_weather", _JSON)
_MESSAGES: dict[str, tuple[Gets, tuple[Any, ...]]] = {
    "start-without-content": (_TEXT, (_bare_start("content"), *text_block(0, "hello"), *message_end())),
    "start-without-fields": (
        Gets(text="hello", finish="stop"),
        (
            _bare_start("content", "usage", "stop_reason", "stop_sequence", "type", "role"),
            *text_block(0, "hello"),
            {**message_end()[0], "usage": {"input_tokens": 10, "output_tokens": 2}},
            message_end()[1],
        ),
    ),
    "block-without-stop": (_TEXT, (message_start(), *text_block(0, "hello", stop=False), *message_end())),
    "blocks-without-stop": (
        Gets(text="hello", calls=_CALL.calls, finish="calls", usage=TOKENS, order=("text", "call")),
        (
            message_start(),
            *text_block(0, "hello", stop=False),
            *tool_block(1, "get_weather", _JSON, stop=False),
            *message_end("tool_use"),
        ),
    ),
    "delta-without-start": (
        _TEXT,
        (message_start(), _DELTA, {"type": "content_block_stop", "index": 0}, *message_end()),
    ),
    "delta-without-start-and-stop": (_TEXT, (message_start(), _DELTA, *message_end())),
    "block-without-text": (
        _TEXT,
        (
            message_start(),
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text"}},
            _DELTA,
            {"type": "content_block_stop", "index": 0},
            *message_end(),
        ),
    ),
    "stop-without-block": (
        _TEXT,
        (message_start(), *text_block(0, "hello"), {"type": "content_block_stop", "index": 0}, *message_end()),
    ),
    "end-without-stop-event": (_TEXT, (message_start(), *text_block(0, "hello"), message_end()[0])),
    "end-without-usage": (
        Gets(text="hello", finish="stop"),
        (
            message_start(),
            *text_block(0, "hello"),
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
            {"type": "message_stop"},
        ),
    ),
    "tool-input-null": (
        _CALL,
        (
            message_start(),
            {**_TOOL[0], "content_block": {**_TOOL[0]["content_block"], "input": None}},
            *_TOOL[1:],
            *message_end("tool_use"),
        ),
    ),
}
_BILLED = {"start-without-fields": TOKENS}
ROWS = [
    Quirk(
        name=f"messages-{name}",
        source="https://github.com/maximhq/bifrost/issues/6463",
        target="messages",
        gets=gets,
        billed=_BILLED.get(name),
        estimated=name == "end-without-usage",
        bound=name == "end-without-usage",
        stream=[sse(*events)],
    )
    for name, (gets, events) in _MESSAGES.items()
]
ROWS += [
    Quirk(
        name=f"messages-whole-{name}",
        source="https://github.com/maximhq/bifrost/issues/6463",
        target="messages",
        gets=Gets(text="", finish="stop", usage=TOKENS),
        whole=[body(answer)],
    )
    for name, answer in (
        ("content-missing", {name: value for name, value in message().items() if name != "content"}),
        ("content-null", {**message(), "content": None}),
        ("content-empty", message()),
    )
]
ROWS += [
    Quirk(
        name="messages-whole-content-text",
        source="https://github.com/maximhq/bifrost/issues/6463",
        target="messages",
        gets=_TEXT,
        whole=[body({**message(), "content": "hello"})],
    )
]

_BOTH = (text_item("hello"), call_item("get_weather", _JSON))
_FINAL_EMPTY = response()
_FINAL_MISSING = {name: value for name, value in response().items() if name != "output"}
_STREAMS: dict[str, tuple[Gets, list[Any]]] = {
    "output-empty": (_TEXT, response_events(text_item("hello"), final=_FINAL_EMPTY)),
    "output-empty-call": (_CALL, response_events(call_item("get_weather", _JSON), final=_FINAL_EMPTY)),
    "output-empty-both": (
        Gets(text="hello", calls=_CALL.calls, usage=TOKENS, order=("text", "call")),
        response_events(*_BOTH, final=_FINAL_EMPTY),
    ),
    "output-missing": (_TEXT, response_events(text_item("hello"), final=_FINAL_MISSING)),
    "output-null": (_TEXT, response_events(text_item("hello"), final={**_FINAL_EMPTY, "output": None})),
    "really-empty": (Gets(text="", finish="stop", usage=TOKENS), response_events()),
}
ROWS += [
    Quirk(
        name=f"responses-{name}",
        source=_EMPTY,
        target="responses",
        clients=("responses",),
        gets=gets,
        stream=[sse(*events)],
        whole=[sse(*events)],
    )
    for name, (gets, events) in _STREAMS.items()
]
ROWS += [
    Quirk(
        name="responses-output-empty-without-done-items",
        source="https://github.com/QuantumNous/new-api/issues/4362",
        target="responses",
        clients=("responses",),
        gets=_TEXT,
        whole=[
            sse(
                *_without(
                    response_events(text_item("hello"), final=_FINAL_EMPTY),
                    "response.output_item.done",
                    "response.output_item.added",
                    "response.content_part.added",
                    "response.content_part.done",
                    "response.output_text.done",
                )
            )
        ],
    )
]
