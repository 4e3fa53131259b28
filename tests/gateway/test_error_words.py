"""Errors as clients of each format receive them: type, code and words, whole and at the end of a stream."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from faulty_upstream import STREAM, Act, Asked, FaultyUpstream, chunk, faulty_upstream, head
from overnight.store import Store, open_store
from serving import Served, serving

ROUTING = """
default_model: m
retries: {{max_attempts: 3, backoff_ms: 1}}
providers: {{house: {{base_url: '{url}', models: [m, spare], apis: [{form}]}}}}
{more}
prices: {{m: {{input_usd_per_mtok: 1, output_usd_per_mtok: 2}}, spare: {{input_usd_per_mtok: 1, output_usd_per_mtok: 2}}}}
"""
FALLBACK = "fallbacks: [{from: m, to: spare}]"
OVERFLOW = "The input (61709 tokens) is longer than the model's context length (40960 tokens)."


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_store(str(tmp_path / "ledger.db")) as opened:
        yield opened


def answers(status: int, body: dict[str, Any], *headers: str) -> Act:
    async def act(_asked: Asked, _reader: Any, writer: Any) -> None:
        content = json.dumps(body).encode()
        writer.write(head(status, "application/json", f"content-length: {len(content)}", *headers) + content)
        await writer.drain()

    return act


@asynccontextmanager
async def before(store: Store, form: str, act: Act, more: str = "") -> AsyncIterator[tuple[Served, FaultyUpstream]]:
    async with (
        faulty_upstream({"m": act}) as upstream,
        serving(store, upstream, ROUTING.format(url=upstream.base_url, form=form, more=more)) as served,  # type: ignore[arg-type]
    ):
        yield served, upstream


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
async def test_rate_limit_has_openais_type(store: Store, path: str) -> None:
    said = {"error": {"message": "slow", "type": "tokens", "code": "rate_limit_exceeded"}}
    async with before(store, "chat", answers(429, said, "retry-after: 172800")) as (served, _):
        asked = {"messages": [{"role": "user", "content": "x"}], "input": "x"}
        answer = await served.http.post(f"/v1/{path}", json={"model": "m", **asked})
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
        assert answer.headers["retry-after"] == "172800"
        with pytest.raises(openai.RateLimitError):
            await served.openai.responses.create(model="m", input="x")


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"message": "Rate limit exceeded: free-models-per-day. Add 10 credits", "code": 429}},
        {"error": {"code": "1308", "message": "Usage limit reached for 5 hour."}},
        {"error": {"code": "Arrearage", "type": "Arrearage", "message": "Access denied"}},
    ],
)
async def test_used_up_day_falls_back_after_one_attempt(store: Store, said: dict[str, Any]) -> None:
    status = 400 if said["error"]["code"] == "Arrearage" else 429
    async with before(store, "chat", answers(status, said), FALLBACK) as (served, upstream):
        answer = await served.ask(model="m", headers={"x-job-id": "j"})
        assert (answer.status_code, answer.headers["x-overnight-fallback"]) == (200, "spare")
        assert upstream.asked["m"] == 1
        [failed] = [each.facts for each in await served.events("j") if each.facts.event == "model_failed"]
        assert (failed.error.error_class, failed.cost_microusd) == ("quota", 0)


async def test_overflow_is_recognised_by_clients_of_other_formats(store: Store) -> None:
    said = {"object": "error", "message": OVERFLOW, "type": "BadRequestError", "param": None, "code": 400}
    async with before(store, "chat", answers(400, said)) as (served, upstream):
        with pytest.raises(openai.BadRequestError) as refused:
            await served.openai.responses.create(model="m", input="x")
        assert refused.value.code == "context_length_exceeded"
        assert OVERFLOW in refused.value.message
        client = anthropic.AsyncAnthropic(base_url=served.url, api_key="unused", max_retries=0)
        with pytest.raises(anthropic.BadRequestError) as long:
            await client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}])
        assert f"prompt is too long: {OVERFLOW}" in long.value.message
        await client.close()
        assert upstream.asked["m"] == 2


async def test_failed_response_of_the_provider_is_passed_on(store: Store) -> None:
    response = {
        "id": "resp_x",
        "object": "response",
        "created_at": 1,
        "status": "in_progress",
        "model": "m",
        "output": [],
    }
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    begun = asyncio.Event()
    told = {"code": "rate_limit_exceeded", "message": "Rate limit reached. Please try again in 11.054s."}
    usage = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    failed = {**response, "status": "failed", "error": told, "usage": usage}
    events = [
        {"type": "response.created", "sequence_number": 0, "response": response},
        {"type": "response.output_item.added", "sequence_number": 1, "output_index": 0, "item": item},
        {"type": "response.content_part.added", "sequence_number": 2, **at, "part": part},
        {"type": "response.output_text.delta", "sequence_number": 3, **at, "delta": "one two", "logprobs": []},
        {"type": "response.failed", "sequence_number": 4, "response": failed},
    ]

    async def act(_asked: Asked, _reader: Any, writer: Any) -> None:
        sent = [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events]
        writer.write(STREAM + b"".join(map(chunk, sent[:-1])))
        await begun.wait()  # the client has the beginning, so the call is not tried again
        writer.write(chunk(sent[-1]) + b"0\r\n\r\n")
        await writer.drain()

    async with before(store, "responses", act) as (served, _):
        asked = served.openai.responses.create(model="m", input="x", stream=True)
        said: list[Any] = []
        async for event in await asked:
            said.append(event)
            if event.type == "response.output_text.delta":
                begun.set()
        assert [event.type for event in said][-1] == "response.failed"
        assert [event.sequence_number for event in said] == list(range(len(said)))
        last: Any = said[-1]
        assert (last.response.error.code, last.response.error.message) == (told["code"], told["message"])
        assert last.response.usage.input_tokens == 7
        assert last.response.id == said[0].response.id != "resp_x"  # type: ignore[union-attr]
