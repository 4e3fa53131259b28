"""Truncated streams in all formats: reported usage is booked, else the prompt and received text."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from faulty_upstream import STREAM, Act, Asked, FaultyUpstream, HangUp, chunk, error_of, faulty_upstream
from overnight.budgets import BUDGET_SQL
from overnight.store import Store, open_store
from serving import Served, serving

CLIENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello " * 50}]}),
    "responses": ("/v1/responses", {"input": "hello " * 50}),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": "hello " * 50}], "max_tokens": 1000}),
}
FORMATS = pytest.mark.parametrize("form", list(CLIENTS))
ROUTING = """
default_model: m
retries: {{max_attempts: 3, backoff_ms: 1}}
breakers: {{failures: 0}}
routes: {{hasty: {{model: m, deadline_ms: 300}}}}
providers: {{house: {{base_url: '{url}', models: [m, spare], apis: [{form}]}}}}
fallbacks: [{{from: m, to: spare}}]
prices: {{m: {{input_usd_per_mtok: 1, output_usd_per_mtok: 2}}, spare: {{input_usd_per_mtok: 1, output_usd_per_mtok: 2}}}}
"""
SAID = "one two three four five six"
TOLD = (70, 9)
"""Tokens of input and output, as the provider tells them; the estimate would be others."""


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_store(str(tmp_path / "ledger.db")) as opened:
        yield opened


def sse(event: dict[str, Any]) -> bytes:
    name = f"event: {event['type']}\n".encode() if "type" in event else b""
    return chunk(name + b"data: " + json.dumps(event).encode() + b"\n\n")


def begun(form: str, *, told: bool) -> list[dict[str, Any]]:
    """The first events of an answer; `told`: with the usage so far, where the format has a place for it."""
    i, o = TOLD
    if form == "chat":
        delta = {"index": 0, "delta": {"role": "assistant", "content": SAID}, "finish_reason": None}
        usage = {"usage": {"prompt_tokens": i, "completion_tokens": o, "total_tokens": i + o}} if told else {}
        return [{"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [delta], **usage}]
    if form == "messages":
        usage = {"input_tokens": i, "output_tokens": 1} if told else None
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": usage}
        return [
            {"type": "message_start", "message": {**message, "stop_reason": None, "stop_sequence": None}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": SAID}},
        ]
    response = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "in_progress",
        "model": "m",
        "output": [],
    }
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    return [
        {"type": "response.created", "sequence_number": 0, "response": response},
        {"type": "response.output_item.added", "sequence_number": 1, "output_index": 0, "item": item},
        {"type": "response.content_part.added", "sequence_number": 2, **at, "part": part},
        {"type": "response.output_text.delta", "sequence_number": 3, **at, "delta": SAID, "logprobs": []},
    ]


def error(form: str, *, told: bool) -> dict[str, Any]:
    """An error as the event of a stream; `told`: with the usage of the whole, where the format has a place for it."""
    i, o = TOLD
    if form == "responses":
        usage = {"input_tokens": i, "output_tokens": o, "total_tokens": i + o} if told else None
        failed = {"code": "server_error", "message": "oops"}
        response = {
            "id": "resp_1",
            "object": "response",
            "status": "failed",
            "error": failed,
            "usage": usage,
            "output": [],
        }
        return {"type": "response.failed", "sequence_number": 4, "response": response}
    return json.loads(error_of(form, "oops", "api_error", "server_error"))


def streams(events: list[dict[str, Any]], then: str) -> Act:
    """Events, and when the client has them the end: of the connection, of the stream, or none."""

    async def act(_asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + sse(events[0]))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"".join(sse(event) for event in events[1:]) + (b"0\r\n\r\n" if then == "end" else b""))
        await writer.drain()
        if then == "silence":
            await reader.read()
        raise HangUp

    return act


async def broken(served: Served, form: str, model: str = "m") -> tuple[Any, int]:
    """The one failed try of a streamed call, and what was reserved for it. Its budget has no reservation left and has spent the
    same."""
    path, body = CLIENTS[form]
    answer = await served.http.post(path, json={**body, "model": model, "stream": True}, headers={"x-job-id": "j"})
    assert answer.status_code == 200
    assert SAID in answer.text
    events = await served.events("j")
    assert [event.facts.event for event in events] == ["created", "model_called", "model_failed"]
    facts = events[-1].facts
    values = {"tenant_id": "default", "scope": "job", "scope_id": events[0].job_id}
    [row] = await served.store.read(BUDGET_SQL["read_budget"], values)
    assert facts.cost_microusd in row
    return facts, events[1].facts.detail["reserved_microusd"]


@asynccontextmanager
async def before(
    store: Store, form: str, act: Act, routing: str = ROUTING
) -> AsyncIterator[tuple[Served, FaultyUpstream]]:
    async with (
        faulty_upstream({"m": act}) as upstream,
        serving(store, upstream, routing.format(url=upstream.base_url, form=form)) as served,  # type: ignore[arg-type]
    ):
        yield served, upstream


@FORMATS
async def test_reported_error_costs_prompt_and_received_text(store: Store, form: str) -> None:
    act = streams([*begun(form, told=False), error(form, told=False)], "end")
    async with before(store, form, act) as (served, upstream):
        facts, reserved = await broken(served, form)
        assert (facts.error.error_class, facts.output_tokens) == ("server_error", 7)  # of 27 characters
        assert 75 <= facts.input_tokens < 120
        assert facts.cost_microusd == facts.input_tokens + 2 * facts.output_tokens < reserved
        assert facts.detail["estimated"]
        assert facts.bound_microusd == 0
        assert upstream.asked.total() == 1


@FORMATS
async def test_reported_error_costs_its_reported_usage(store: Store, form: str) -> None:
    act = streams([*begun(form, told=True), error(form, told=True)], "end")
    async with before(store, form, act) as (served, _upstream):
        facts, _ = await broken(served, form)
        # The beginning of a message tells its input; what came of its output is estimated.
        output = 7 if form == "messages" else TOLD[1]
        assert (facts.input_tokens, facts.output_tokens) == (TOLD[0], output)
        assert facts.cost_microusd == TOLD[0] + 2 * output
        assert ("estimated" in (facts.detail or {})) == (form == "messages")


@FORMATS
@pytest.mark.parametrize("then", ["cut", "silence", "end"])
async def test_broken_stream_has_a_bound_beside_its_cost(store: Store, form: str, then: str) -> None:
    """The connection is lost, nothing comes any more, or the stream ends in the middle: the provider may bill more than came."""
    async with before(store, form, streams(begun(form, told=False), then)) as (served, _upstream):
        facts, reserved = await broken(served, form, "hasty" if then == "silence" else "m")
        assert facts.error.error_class == ("timeout" if then == "silence" else "cut")
        known = facts.input_tokens + 2 * facts.output_tokens
        assert (facts.output_tokens, facts.cost_microusd, facts.bound_microusd) == (7, known, reserved - known)


@FORMATS
async def test_broken_stream_keeps_its_reported_usage(store: Store, form: str) -> None:
    async with before(store, form, streams(begun(form, told=True), "cut")) as (served, _upstream):
        facts, reserved = await broken(served, form)
        if form != "responses":  # which tells none before its end
            assert facts.input_tokens == TOLD[0]
        known = facts.input_tokens + 2 * facts.output_tokens
        assert (facts.cost_microusd, facts.bound_microusd) == (known, reserved - known)


@FORMATS
@pytest.mark.parametrize(
    ("kind", "code", "billed"),
    [
        ("overloaded_error", "overloaded_error", False),
        ("rate_limit_error", "slow_down", False),
        ("api_error", "server_error", True),
    ],
)
async def test_error_instead_of_the_first_event_is_free(
    store: Store, form: str, kind: str, code: str, billed: bool
) -> None:
    """It is tried again. A refusal costs nothing; a fault after the provider began costs the prompt."""
    act = streams([json.loads(error_of(form, "oops", kind, code))], "end")
    async with before(store, form, act) as (served, upstream):
        path, body = CLIENTS[form]
        answer = await served.http.post(path, json={**body, "model": "m", "stream": True}, headers={"x-job-id": "j"})
        assert (answer.status_code, answer.headers["x-overnight-fallback"]) == (200, "spare")
        failed = [event.facts for event in await served.events("j") if event.facts.event == "model_failed"]
        assert len(failed) == upstream.asked["m"] == 3
        assert [facts.cost_microusd for facts in failed] == [(facts.input_tokens or 0) for facts in failed]
        assert {facts.cost_microusd > 0 for facts in failed} == {billed}


async def test_failed_plain_response_costs_its_reported_usage(store: Store) -> None:
    body = json.dumps(error("responses", told=True)["response"]).encode()

    async def act(_asked: Asked, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        await writer.drain()

    routing = ROUTING.replace("fallbacks: [{{from: m, to: spare}}]", "").replace("max_attempts: 3", "max_attempts: 1")
    async with before(store, "responses", act, routing) as (served, _upstream):
        path, asked = CLIENTS["responses"]
        answer = await served.http.post(path, json={**asked, "model": "m"}, headers={"x-job-id": "j"})
        assert answer.status_code == 502
        facts = (await served.events("j"))[-1].facts
        assert (facts.event, facts.cost_microusd) == ("model_failed", TOLD[0] + 2 * TOLD[1])
