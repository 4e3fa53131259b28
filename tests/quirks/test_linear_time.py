"""Long streams cost linear time: the lines of Python that run are counted, rather than seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from overnight.pricing.usage import Usage
from overnight.wire_formats import CODECS, AnswerContext, wire_between
from quirk_rows import chunk, message_end, message_start, part

PIECES = 4_000
"""Four times as many must cost about four times the work. `test_many_pieces_of_arguments_arrive_whole` has 120,000."""
BODIES: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "x"}]},
    "messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9},
    "responses": {"input": "x"},
}


def arguments(count: int) -> list[str]:
    """Fragments that end with a bracket, after each of which the arguments could be complete."""
    return ['{"a": [', *(["[]", ',"}"', ",{}", ","] * (count // 4)), "1]", "}"]


def chat_stream(pieces: list[str]) -> list[dict[str, Any]]:
    events = [chunk(part("", "f", id="call_1")), *(chunk(part(piece)) for piece in pieces)]
    return [*events, chunk(finish="tool_calls")]


def chat_text(pieces: list[str]) -> list[dict[str, Any]]:
    """Reasoning and text in turns, with logprobs and annotations."""
    events: list[dict[str, Any]] = []
    for number, piece in enumerate(pieces):
        delta: dict[str, Any] = (
            {"reasoning_content": piece} if number % 2 else {"content": piece, "annotations": [{"type": "x"}]}
        )
        event = chunk(delta)
        event["choices"][0]["logprobs"] = {
            "content": [{"token": "x", "logprob": -1.0, "bytes": None, "top_logprobs": []}]
        }
        events.append(event)
    return [*events, chunk(finish="stop")]


def messages_stream(pieces: list[str]) -> list[dict[str, Any]]:
    start = {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}},
    }
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": piece}}
        for piece in pieces
    ]
    return [message_start(), start, *deltas, {"type": "content_block_stop", "index": 0}, *message_end("tool_use")]


STREAMS: dict[str, tuple[str, Callable[[list[str]], list[dict[str, Any]]]]] = {
    "arguments from chat": ("chat", chat_stream),
    "text from chat": ("chat", chat_text),
    "arguments from messages": ("messages", messages_stream),
}


def read(client: str, upstream: str, events: list[dict[str, Any]]) -> Any:
    """The recorded answer."""
    wire = wire_between(client, (upstream,))
    assert wire is not None
    body = BODIES[client]
    request = CODECS[client].read(msgspec.json.encode({"model": "m", "stream": True, **body}))
    reader = wire.reader(request, lambda: AnswerContext("x_1", "m", body, 1))
    for event in events:
        payload = msgspec.json.encode(event)
        reader.take(msgspec.json.decode(payload), payload)
    recorded = reader.recorded()
    reader.end(0.0, Usage(input_tokens=1, output_tokens=1))
    return msgspec.json.decode(recorded)


def work(do: Callable[[], object]) -> int:
    """The lines of Python that run. Copies of growing lists and texts do not count, so their sizes are bounded below."""
    lines = 0

    def trace(_frame: Any, event: str, _arg: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        do()
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("client", BODIES)
@pytest.mark.parametrize("name", STREAMS)
def test_work_grows_with_the_length_of_a_stream(client: str, name: str) -> None:
    upstream, made = STREAMS[name]
    short, long = (made(arguments(count)) for count in (PIECES // 16, PIECES // 4))
    assert work(lambda: read(client, upstream, long)) < 4.5 * work(lambda: read(client, upstream, short))


def test_many_pieces_of_arguments_arrive_whole() -> None:
    """What the count of lines cannot see, a copy of all that came before at each piece, would take minutes here."""
    pieces = arguments(120_000)
    answer = read("messages", "chat", chat_stream(pieces))
    [call] = answer["content"]
    assert call["input"]["a"].count("}") == 30_000
