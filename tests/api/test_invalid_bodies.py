"""Bodies with unexpected types and deep nesting are rejected in the client's format, or accepted."""

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from overnight.store import Store
from overnight.testing import SpawnedProvider
from overnight.wire_formats import CODECS, wire_between
from overnight.wire_formats.contract import AnswerContext
from overnight.wire_formats.messages import estimate_input_tokens
from overnight.wire_formats.request import InvalidBody
from serving import Served, serving

Json = dict[str, Any]
CHAT = "gpt-5.4-mini"


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider) as running:
        yield running


def encode(body: Json) -> bytes:
    """In a thread, whose stack has more room than that of a test."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(msgspec.json.encode, body).result()


def nested(depth: int, inner: Any = 1) -> Any:
    for _ in range(depth):
        inner = {"a": inner}
    return inner


@pytest.mark.parametrize("odd", [["x"], {"a": 1}, 5, True])
@pytest.mark.parametrize("place", ["input[0].role", "input[0].type", "tools[0].type"])
async def test_non_text_value_is_rejected(served: Served, place: str, odd: Any) -> None:
    item = {"role": "user", "content": "x"}
    body: Json = {"model": CHAT, "input": [item], "tools": [{"type": "function", "name": "f"}]}
    part, name = place.split("[0].")
    body[part][0][name] = odd
    answer = await served.http.post("/v1/responses", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", place)
    assert served.provider.stats()["paid_calls"] == 0


def asking(depth: int) -> Json:
    """A call of a tool whose input is nested deep stands in the talk."""
    return {
        "model": CHAT,
        "max_tokens": 50,
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": nested(depth)}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}]},
        ],
    }


@pytest.mark.parametrize("depth", [10, 480, 800])
async def test_tokens_of_deeply_nested_bodies_are_counted(served: Served, depth: int) -> None:
    answer = await served.http.post("/v1/messages/count_tokens", content=encode(asking(depth)))
    assert answer.status_code == 200
    assert depth // 4 < answer.json()["input_tokens"] < depth // 4 + 40


@pytest.mark.parametrize("stream", [False, True])
async def test_deeply_nested_conversation_is_answered_and_paid_once(served: Served, stream: bool) -> None:
    body = encode(asking(480) | {"stream": stream})
    answer = await served.http.post("/v1/messages", content=body, headers={"x-job-id": "deep"})
    assert answer.status_code == 200
    assert "model_failed" not in await served.story("deep")
    assert served.provider.stats()["paid_calls"] == 1


SAID: dict[str, Json] = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}  # type: ignore[dict-item]
WAYS = [
    ("/v1/messages", CHAT, SAID | {"max_tokens": 50}),
    ("/v1/chat/completions", "claude-opus-4.6", SAID),
    ("/v1/responses", CHAT, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]}),
    ("/v1/responses", "claude-opus-4.6", {"input": "x", "text": {"verbosity": "low"}}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "model", "body"), WAYS)
async def test_too_deep_body_is_rejected_before_sending(
    served: Served, path: str, model: str, body: Json, stream: bool
) -> None:
    answered = 0
    for depth in range(860, 990, 2):
        deep = {**body, "model": model, "stream": stream, "metadata": nested(depth), "tools": [tool(path, depth)]}
        answer = await served.http.post(path, content=encode(deep), headers={"x-job-id": "deep"})
        if answer.status_code == 200:
            answered += 1
            assert ": malformed" not in answer.text
        else:
            assert answer.status_code == 400, (depth, answer.text)
    assert served.provider.stats()["paid_calls"] == answered > 0
    failed = [each.facts.error for each in await served.events("deep") if each.facts.event == "model_failed"]
    assert {error.code for error in failed} <= {"not_carried"}, "a body that cannot go over is no failure of a provider"


def tool(path: str, depth: int) -> Json:
    schema = {"type": "object", "properties": {}, "x": nested(depth)}
    if path == "/v1/messages":
        return {"name": "f", "input_schema": schema}
    function = {"name": "f", "parameters": schema}
    return (
        {"type": "function", "function": function}
        if path == "/v1/chat/completions"
        else {"type": "function", **function}
    )


@pytest.mark.parametrize("name", ["chat", "messages", "responses"])
@pytest.mark.parametrize(("depth", "read"), [(20, True), (480, False), (900, False), (100_000, False)])
def test_nested_cache_markers_are_removed_or_rejected(name: str, depth: int, read: bool) -> None:
    deep = '{"a":' * depth + '{"cache_control":{"type":"ephemeral"},"b":1}' + "}" * depth
    said = '[{"role":"user","content":[{"type":"input_text","text":"x","z":' + deep + "}]}]"
    field = "input" if name == "responses" else "messages"
    body = f'{{"model":"m","max_tokens":5,"{field}":{said}}}'.encode()
    if read:
        assert b"cache_control" not in CODECS[name].read(body).links[-1].body
    else:
        with pytest.raises(InvalidBody, match="nested too deep"):
            CODECS[name].read(body)


def counted_by_recursion(value: Any) -> tuple[int, int]:
    if isinstance(value, str):
        return len(value), 0
    if isinstance(value, dict):
        if value.get("type") in ("image", "document") and "content" not in value["source"]:
            text = value["source"].get("data") if value["source"]["type"] == "text" else None
            return (len(text), 0) if text else (0, 1)
        parts = [counted_by_recursion(each) for name, each in value.items() if name != "cache_control"]
        return sum(map(len, value)) + sum(part[0] for part in parts), sum(part[1] for part in parts)
    if isinstance(value, list):
        parts = [counted_by_recursion(each) for each in value]
        return sum(part[0] for part in parts), sum(part[1] for part in parts)
    return 4, 0


def test_token_count_covers_text_structure_and_images() -> None:
    content: list[Json] = [
        {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 9000}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "B" * 400}},
        {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "C" * 80}]}},
        {"type": "tool_use", "id": "t", "name": "f", "input": nested(7, [None, True, 2.5])},
    ]
    body = {"messages": [{"role": "user", "content": content}], "system": "S" * 40, "tools": [{"name": "f"}]}
    characters, pictures = counted_by_recursion([body["system"], body["tools"], body["messages"]])
    assert pictures == 1
    assert estimate_input_tokens(body) == -(-characters // 4) + 1600


@pytest.mark.parametrize("odd", [["message_stop"], {"type": "x"}, 5, None])
@pytest.mark.parametrize("client", ["messages", "chat", "responses"])
def test_event_with_non_text_type_is_malformed(client: str, odd: Any) -> None:
    wire = wire_between(client, ("messages",))
    assert wire is not None
    said: Json = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
    body = {"input": "x"} if client == "responses" else said
    request = CODECS[client].read(msgspec.json.encode({"model": "m", **body}))
    reader = wire.reader(request, lambda: AnswerContext("x_1", "m", body, 1_767_225_600))
    event = {"type": odd, "index": 0}
    with pytest.raises(TypeError):
        reader.take(event, msgspec.json.encode(event))
