"""Tool calls in badly numbered streams: all reach the client, none before it is durable."""

import json
from collections.abc import Callable
from itertools import count
from typing import Any

import msgspec
import openai
import openai.types.responses
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from openai.lib.streaming.responses._responses import ResponseStreamState
from pydantic import TypeAdapter

from overnight.pricing.usage import Usage
from overnight.wire_formats import CODECS, wire_between
from overnight.wire_formats.chat_stream import Assembly
from overnight.wire_formats.contract import AnswerContext
from overnight.wire_formats.sse import SseParser

Json = dict[str, Any]
RESPONSES_EVENT: TypeAdapter[Any] = TypeAdapter(openai.types.responses.ResponseStreamEvent)
Numbering = Callable[[int], Json]
WAYS: dict[str, Numbering] = {
    "numbered": lambda call: {"index": call},
    "all the same": lambda _: {"index": 0},
    "not at all": lambda _: {},
    "null": lambda _: {"index": None},
}
CALLS: list[tuple[str | None, str, str]] = [("c1", "f", '{"a":1}'), ("c2", "g", '{"b":[2]}'), ("c3", "f", "{}")]
ANY = pytest.mark.parametrize("number", WAYS.values(), ids=WAYS.keys())


def chunk(delta: Json, reason: str | None = None) -> Json:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"id": "c-1", "model": "m", "created": 1, "object": "chat.completion.chunk", "choices": [choice]}


def pieces(number: Numbering, calls: list[tuple[str | None, str, str]], at: int | None = None) -> list[Json]:
    """Each call in a piece of its own, or its arguments cut in two."""
    made: list[Json] = []
    for place, (call_id, name, arguments) in enumerate(calls):
        begun = arguments if at is None else arguments[:at]
        made.append({**number(place), "type": "function", "function": {"name": name, "arguments": begun}})
        if call_id is not None:
            made[-1]["id"] = call_id
        if at is not None:
            made.append({**number(place), "function": {"arguments": arguments[at:]}})
    return made


def streamed(*tool_pieces: Json) -> list[Json]:
    begun = chunk({"role": "assistant", "content": None})
    return [begun, *(chunk({"tool_calls": [piece]}) for piece in tool_pieces), chunk({}, "tool_calls")]


def told(client: str, events: list[Json]) -> tuple[list[Json], list[Json], Json]:
    """What a client is told before the call is durable and after it, and what is recorded; over a target that speaks chat."""
    wire = wire_between(client, ("chat",))
    assert wire is not None
    said: Json = {"messages": [{"role": "user", "content": "x"}]}
    body = {"responses": {"input": "x"}, "chat": said, "messages": {**said, "max_tokens": 9}}[client]
    request = CODECS[client].read(msgspec.json.encode({"model": "m", "stream": True, **body}))
    reader = wire.reader(request, lambda: AnswerContext("x_1", "m", body, 1_767_225_600))
    early, late, holding = list[bytes](), list[bytes](), False
    for event in events:
        payload = msgspec.json.encode(event)
        shown, telling = reader.take(msgspec.json.decode(payload), payload)
        holding = holding or telling
        (late if holding else early).extend(shown)
    late += reader.end(0.0, Usage(input_tokens=1, output_tokens=1))
    return decoded(early), decoded(late), json.loads(reader.recorded())


def decoded(sent: list[bytes]) -> list[Json]:
    return [json.loads(each) for each in SseParser().feed(b"".join(sent)) if each != b"[DONE]"]


def calls_of(completion: bytes) -> list[tuple[Any, str, str]]:
    calls = json.loads(completion)["choices"][0]["message"]["tool_calls"]
    return [(call.get("id"), call["function"]["name"], call["function"]["arguments"]) for call in calls]


def put_together(events: list[Json]) -> list[tuple[Any, str, str]]:
    assembly = Assembly()
    for event in events:
        assembly.take(event)
    return calls_of(assembly.completion())


@ANY
@pytest.mark.parametrize("at", [None, 0, 1])
def test_calls_are_separated_with_any_numbering(number: Numbering, at: int | None) -> None:
    assert put_together(streamed(*pieces(number, CALLS, at))) == CALLS


@ANY
@pytest.mark.parametrize("at", [None, 0, 1])
def test_messages_client_receives_every_call(number: Numbering, at: int | None) -> None:
    early, late, recorded = told("messages", streamed(*pieces(number, CALLS, at)))
    snapshot, bufs = None, dict[int, bytes]()
    for event in [*early, *late]:
        snapshot = accumulate_event(event=event, current_snapshot=snapshot, json_bufs=bufs)
    assert snapshot is not None
    wanted = [(call_id, name, json.loads(arguments)) for call_id, name, arguments in CALLS]
    assert [(each.id, each.name, each.input) for each in snapshot.content] == wanted  # type: ignore[union-attr]
    assert [(each["id"], each["name"], each["input"]) for each in recorded["content"]] == wanted


@ANY
@pytest.mark.parametrize("at", [None, 0, 1])
def test_responses_client_receives_every_call(number: Numbering, at: int | None) -> None:
    early, late, recorded = told("responses", streamed(*pieces(number, CALLS, at)))
    state: Any = ResponseStreamState(input_tools=openai.omit, text_format=openai.omit)
    for event in [*early, *late]:
        state.handle_event(RESPONSES_EVENT.validate_python(event))
    whole = late[-1]["response"]
    for answer in (whole, recorded):
        assert [(each["call_id"], each["name"], each["arguments"]) for each in answer["output"]] == CALLS
    assert whole["output"] == recorded["output"]


@ANY
def test_chunks_for_a_chat_client_are_unchanged_but_for_their_numbers(number: Numbering) -> None:
    early, late, _ = told("chat", streamed(*pieces(number, CALLS)))
    assert [*early, *late] == streamed(*pieces(WAYS["numbered"], CALLS))


def test_calls_sharing_an_index_are_separated_by_id() -> None:
    mixed = [
        {"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"a"'}},
        {"index": 0, "id": "c2", "function": {"name": "g", "arguments": '{"b"'}},
        {"index": 0, "id": "c1", "function": {"arguments": ":1}"}},
        {"index": 0, "id": "c2", "function": {"arguments": ":2}"}},
    ]
    assert put_together(streamed(*mixed)) == [("c1", "f", '{"a":1}'), ("c2", "g", '{"b":2}')]


@pytest.mark.parametrize("call_id", [None, ""])
def test_calls_without_ids_are_separated_by_name(call_id: str | None) -> None:
    calls = [(call_id, name, arguments) for _, name, arguments in CALLS]
    assert [call[1:] for call in put_together(streamed(*pieces(WAYS["all the same"], calls)))] == [
        call[1:] for call in calls
    ]


@pytest.mark.parametrize("first", ["", "{"])
def test_repeated_name_starts_no_call(first: str) -> None:
    parts = [
        {"index": 0, "function": {"name": "f", "arguments": each}} for each in (first, '{"a":1}'[len(first) :], "")
    ]
    parts[0]["id"] = "c1"
    assert put_together(streamed(*parts)) == [("c1", "f", '{"a":1}')]


def test_changing_ids_start_no_call() -> None:
    numbers = count()
    named = [
        {"index": 0, "id": f"x{next(numbers)}", "function": {"name": "f", "arguments": each}} for each in '{"a":1}'
    ]
    [(_, name, arguments)] = put_together(streamed(*named))
    assert (name, arguments) == ("f", '{"a":1}')
    bare = [{"index": 0, "id": f"x{next(numbers)}", "function": {"arguments": each}} for each in '"a":1}']
    [(_, name, arguments)] = put_together(streamed(named[0], *bare))
    assert (name, arguments) == ("f", '{"a":1}')


def ended(client: str, early: list[Json], late: list[Json]) -> tuple[int, int]:
    """How many calls an eager client would act on, before the call is durable and after it."""
    begun = {each["index"] for each in early + late if each.get("content_block", {}).get("type") == "tool_use"}

    def ends(event: Json) -> bool:
        if client == "messages":
            return event["type"] == "content_block_stop" and event["index"] in begun
        return bool(event["type"] == "response.function_call_arguments.done")

    return sum(map(ends, early)), sum(map(ends, late))


@ANY
@pytest.mark.parametrize("client", ["messages", "responses"])
@pytest.mark.parametrize("arguments", ["", "{}", '{"a":', "7"])
@pytest.mark.parametrize("at", [None, 0, 1])
def test_no_call_has_ended_before_it_is_durable(number: Numbering, client: str, arguments: str, at: int | None) -> None:
    early, late, _ = told(client, streamed(*pieces(number, [("c1", "f", arguments), ("c2", "g", '{"b":2}')], at)))
    assert ended(client, early, late) == (0, 2)


@pytest.mark.parametrize("more", ["content", "refusal", "reasoning_content"])
def test_text_after_a_call_ends_it(more: str) -> None:
    events = streamed(*pieces(WAYS["numbered"], [("c1", "f", "")]))
    events.insert(-1, chunk({more: "and"}))
    early, late, _ = told("messages", events)
    assert ended("messages", early, late) == (0, 1)


@ANY
def test_chunk_completing_any_call_is_terminal(number: Numbering) -> None:
    for place, piece in enumerate(pieces(number, CALLS)):
        alone = Assembly()
        assert alone.take(chunk({"tool_calls": [piece]})), place


@pytest.mark.parametrize("client", ["chat", "messages", "responses"])
def test_deeply_nested_arguments_are_withheld_unchanged(client: str) -> None:
    deep = '{"a":' * 5000 + "1" + "}" * 5000
    early, late, _ = told(client, streamed(*pieces(WAYS["numbered"], [("c1", "f", deep)], 9000)))
    begun, rest = json.dumps(deep[:9000])[1:-1], json.dumps(deep[9000:])[1:-1]
    assert begun in json.dumps(early)
    assert rest not in json.dumps(early)
    assert rest in json.dumps(late)


@pytest.mark.parametrize("index", ["0", [0], {}])
def test_invalid_indexes_cause_no_internal_error(index: Any) -> None:
    assembly = Assembly()
    assembly.take(chunk({"content": "x"}))
    odd = chunk({"content": "y"})
    odd["choices"][0]["index"] = index
    if index:
        with pytest.raises(TypeError):
            assembly.take(odd)
    mixed = pieces(lambda call: {"index": call if call else "0"}, CALLS)
    assert put_together(streamed(*mixed)) == CALLS
