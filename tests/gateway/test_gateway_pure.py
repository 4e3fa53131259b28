"""Pure parts of the gateway: stream assembly, request parsing, selection of recorded answers."""

import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from overnight.domain import Event, Recorded
from overnight.gateway.admission.external_job_replay import unused
from overnight.wire_formats.chat import passthrough_body
from overnight.wire_formats.chat import read as read_request
from overnight.wire_formats.chat_stream import Assembly, stream_events
from overnight.wire_formats.dialects import dialect_of
from overnight.wire_formats.request import InvalidBody
from overnight.wire_formats.sse import DONE, SseParser

texts = st.text(max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
arguments = st.dictionaries(texts, json_values, max_size=4)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(places)] or [text]


def chunk(delta: dict[str, Any], reason: str | None = None, index: int = 0) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return {"id": "c-1", "model": "m", "created": 1, "object": "chat.completion.chunk", "choices": [choice]}


@given(texts, st.lists(st.integers(0, 40), max_size=6))
def test_chunked_text_is_assembled(text: str, cuts: list[int]) -> None:
    assembly = Assembly()
    assert not assembly.take(chunk({"role": "assistant", "content": ""}))
    for piece in pieces_of(text, cuts):
        assert not assembly.take(chunk({"content": piece}))
    assert not assembly.is_complete
    assert assembly.take(chunk({}, "stop"))
    assert assembly.is_complete
    body = json.loads(assembly.completion())
    assert body["choices"][0]["message"] == {"role": "assistant", "content": text}
    assert (body["id"], body["object"], body["model"]) == ("c-1", "chat.completion", "m")
    assert assembly.characters == len(text)


@given(arguments, st.lists(st.integers(0, 200), max_size=8))
def test_only_the_chunk_completing_a_tool_call_is_terminal(wanted: dict[str, Any], cuts: list[int]) -> None:
    text = msgspec.json.encode(wanted).decode()
    assembly = Assembly()
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "file", "arguments": ""}}
    assert not assembly.take(chunk({"role": "assistant", "content": None, "tool_calls": [call]}))
    pieces = pieces_of(text, cuts)
    for number, piece in enumerate(pieces):
        terminal_events = assembly.take(chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}))
        assert terminal_events == (number == len(pieces) - 1)
    assembly.take(chunk({}, "tool_calls"))
    [made] = json.loads(assembly.completion())["choices"][0]["message"]["tool_calls"]
    assert made == {"id": "call_1", "type": "function", "function": {"name": "file", "arguments": text}}


@given(texts, texts, st.lists(st.integers(0, 40), max_size=5), st.sampled_from([None, {}]))
def test_chunked_audio_is_assembled(data: str, said: str, cuts: list[int], first: Any) -> None:
    assembly = Assembly()
    assembly.take(chunk({"role": "assistant", "audio": first}))
    assembly.take(chunk({"audio": {"id": "a-1", "transcript": ""}}))
    for piece in pieces_of(data, cuts):
        assembly.take(chunk({"audio": {"data": piece}}))
    for piece in pieces_of(said, cuts):
        assembly.take(chunk({"audio": {"id": "a-1", "transcript": piece}}))
    assembly.take(chunk({"audio": {"expires_at": 5}}))
    assembly.take(chunk({}, "stop"))
    [choice] = json.loads(assembly.completion())["choices"]
    assert choice["message"]["audio"] == {"id": "a-1", "data": data, "transcript": said, "expires_at": 5}
    assert assembly.characters == len(data) + len(said)


def test_extra_fields_in_chunks_are_assembled() -> None:
    assembly = Assembly()
    for told in ({"a": {"b": 1}}, {"c": "d"}, {"c": "e"}):
        assembly.take(chunk({"content": "x", "provider_specific_fields": told}))
    [choice] = json.loads(assembly.completion())["choices"]
    assert choice["message"]["provider_specific_fields"] == {"a": {"b": 1}, "c": "e"}


@pytest.mark.parametrize("argument", ["7", '"word"', "true"])
def test_non_object_arguments_are_terminal_at_once(argument: str) -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": argument[0]}}
    assert Assembly().take(chunk({"tool_calls": [call]}))


def test_tool_call_in_one_chunk_is_terminal() -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert Assembly().take(chunk({"tool_calls": [call]}))


def test_repeated_ids_and_names_are_taken_once() -> None:
    assembly = Assembly()
    for piece in ('{"a"', ":1}"):
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": piece}}
        assembly.take(chunk({"role": "assistant", "tool_calls": [call]}))
    assembly.take(chunk({}, "tool_calls"))
    [made] = json.loads(assembly.completion())["choices"][0]["message"]["tool_calls"]
    assert made == {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def test_all_choices_must_finish() -> None:
    assembly = Assembly()
    assembly.take(chunk({"content": "a"}, index=0))
    assembly.take(chunk({"content": "b"}, index=1))
    assembly.take(chunk({}, "stop", index=0))
    assert not assembly.is_complete
    assembly.take(chunk({}, "stop", index=1))
    assert assembly.is_complete


@pytest.mark.parametrize("piece", [[], "text", {"choices": [7]}, {"choices": [{"delta": "x"}]}, {"choices": 7}])
def test_unknown_shape_raises_an_expected_error(piece: Any) -> None:
    with pytest.raises((TypeError, ValueError, KeyError, AttributeError)):
        Assembly().take(piece)


calls = st.builds(
    lambda n, a: {"id": f"c{n}", "type": "function", "function": {"name": "f", "arguments": json.dumps(a)}},
    st.integers(0, 9),
    arguments,
)


likelihoods = st.builds(
    lambda said: {"content": [{"token": each, "logprob": -0.5, "bytes": None, "top_logprobs": []} for each in said]},
    st.lists(texts, min_size=1, max_size=3),
)
spoken = st.fixed_dictionaries({"id": st.just("a-1"), "data": texts, "transcript": texts, "expires_at": st.just(5)})


@given(
    texts | st.none(),
    st.lists(calls, max_size=3),
    st.sampled_from(["stop", "length", "tool_calls"]),
    st.none() | likelihoods,
    st.none() | spoken,
)
def test_split_completion_is_reassembled(
    content: str | None, made: list[dict[str, Any]], reason: str, logprobs: Any, audio: Any
) -> None:
    assume(made or reason != "tool_calls")
    for at, call in enumerate(made):
        call["id"] = f"call_{at}"
    message: dict[str, Any] = {"role": "assistant", "content": content} | ({"tool_calls": made} if made else {})
    message |= {"audio": audio} if audio else {}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": reason}
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    events = list(stream_events(msgspec.json.encode(body), 0.0))
    assert events[-1] == DONE
    assembly = Assembly()
    for payload in SseParser().feed(b"".join(events[:-1])):
        assembly.take(json.loads(payload))
    assert assembly.is_complete
    assert json.loads(assembly.completion()) == body | {"usage": usage | {"cost_usd": 0.0}}


# ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_parsed_or_rejected(body: bytes) -> None:
    with suppress(InvalidBody):
        assert read_request(body).links


@given(st.dictionaries(texts, json_values, max_size=5))
def test_upstream_body_keeps_the_clients_fields(more: dict[str, Any]) -> None:
    mine = {"model", "messages", "max_tokens", "max_completion_tokens", "stream", "stream_options", "n", "tools"}
    body = {key: value for key, value in more.items() if key not in mine | {"metadata", "service_tier"}}
    body |= {"model": "auto", "messages": [{"role": "user", "content": "ünï"}]}
    request = read_request(json.dumps(body).encode())
    sent = json.loads(passthrough_body(request, msgspec.Raw(b'"other"'), 77))
    assert sent == body | {"model": "other", "max_tokens": 77}


def test_output_cap_uses_the_clients_field() -> None:
    body = b'{"messages": [{}], "max_completion_tokens": 9}'
    sent = json.loads(passthrough_body(read_request(body), msgspec.Raw(b'"m"'), 5))
    assert (sent["max_completion_tokens"], "max_tokens" in sent) == (5, False)


def test_fingerprint_ignores_transport_options() -> None:
    base = {"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 1}
    same = [
        base | {"stream": True, "stream_options": {"include_usage": True}},
        base | {"metadata": {"run": "7"}, "user": "u"},
        {"temperature": 1, "messages": [{"content": "x", "role": "user"}], "model": "m"},
    ]
    other = [
        base | {"temperature": 0},
        base | {"model": "n"},
        base | {"messages": [{"role": "user", "content": "y"}]},
        base | {"tools": [{"type": "function", "function": {"name": "f"}}]},
    ]

    def print_of(body: dict[str, Any], task: str | None = None) -> str:
        return read_request(json.dumps(body).encode()).fingerprint(task)

    assert {print_of(body) for body in same} == {print_of(base)}
    assert len({print_of(body) for body in [base, *other]} | {print_of(base, "task")}) == len(other) + 2


def test_image_urls_count_in_the_bound() -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    plain = read_request(json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode())
    pointed = read_request(json.dumps({"messages": [{"role": "user", "content": [picture]}]}).encode())
    assert pointed.prompt_bytes > plain.prompt_bytes + 10_000


# ── recorded answers ────────────────────────────────────────────────────────────────────────────────────────────────


def fact(seq: int, event: str, attempt: int, **detail: Any) -> Recorded:
    content = b"{}" if event == "model_succeeded" else None
    return Recorded("j", seq, 0, Event(event, attempt=attempt, detail=detail or None), content=content)


def test_older_answers_are_valid_until_replayed() -> None:
    log = [fact(1, "model_succeeded", 1), fact(2, "model_succeeded", 1), fact(4, "model_replayed", 2, of=1)]
    assert [answer.seq for answer in unused(log, 1)] == []
    assert [answer.seq for answer in unused(log, 2)] == [2]
    assert [answer.seq for answer in unused(log, 3)] == [1, 2]


def test_retry_discards_later_answers() -> None:
    log = [
        fact(1, "model_succeeded", 1),
        fact(3, "model_succeeded", 1),
        fact(4, "attempt_started", 2, mode="retry", answers_until=2),
    ]
    assert [answer.seq for answer in unused(log, 2)] == [1]
    log += [fact(5, "model_replayed", 2, of=1), fact(6, "model_succeeded", 2)]
    assert [answer.seq for answer in unused(log, 3)] == [1, 6]


def test_newest_answered_attempt_decides_per_occurrence() -> None:
    log = [
        fact(1, "model_succeeded", 1),
        fact(2, "model_succeeded", 1),
        fact(3, "attempt_started", 2),
        fact(4, "model_succeeded", 2),
        fact(5, "attempt_started", 3),
    ]
    assert [answer.seq for answer in unused(log, 3)] == [4, 2]


def test_late_answer_of_an_attempt_is_replayed_last() -> None:
    log = [
        fact(1, "model_succeeded", 1),
        fact(2, "attempt_started", 2),
        fact(3, "model_succeeded", 1),
        fact(4, "model_replayed", 2, of=1),
    ]
    assert [answer.seq for answer in unused(log, 2)] == [3]
    assert [answer.seq for answer in unused(log, 3)] == [1, 3]


# ── dialects ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("base_url", "cap_field", "asks_for_usage"),
    [
        ("https://api.openai.com/v1", "max_completion_tokens", True),
        ("https://mine.openai.azure.com/openai/v1", "max_completion_tokens", True),
        ("https://api.mistral.ai/v1", "max_tokens", False),
        ("https://models.example.com/v1", None, True),
    ],
)
@pytest.mark.parametrize("used", [None, "max_tokens", "max_completion_tokens"])
def test_each_provider_receives_supported_fields(
    base_url: str, cap_field: str | None, asks_for_usage: bool, used: str | None
) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True} | ({used: 9} if used else {})
    request = read_request(json.dumps(body).encode())
    for _ in range(2):  # the second try of a call must not find what the first one left
        sent = json.loads(passthrough_body(request, msgspec.Raw(b'"m"'), 5, dialect_of(base_url)))
        assert {name: sent[name] for name in sent if name.startswith("max_")} == {cap_field or used or "max_tokens": 5}
        assert ("stream_options" in sent) == asks_for_usage


def test_gateway_metadata_is_not_sent_upstream() -> None:
    request = read_request(b'{"messages": [{}], "metadata": {"job_id": "j", "mine": "kept"}}')
    own = request.without_metadata({"job_id"})
    assert json.loads(passthrough_body(own, msgspec.Raw(b'"m"'), 5))["metadata"] == {"mine": "kept"}
    none = request.without_metadata({"job_id", "mine"})
    assert "metadata" not in json.loads(passthrough_body(none, msgspec.Raw(b'"m"'), 5))
