"""Answers without a usage report: the whole reservation is booked as a bound."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import pytest

from endpoints import MODES, request_of
from faulty_upstream import STREAM, WHOLE, Asked, FaultyUpstream, chunk, faulty_upstream, head, pieces_of
from overnight.budgets import BUDGET_SQL
from overnight.gateway.routing_simulation import recorded_calls
from overnight.store import Statement, Store, open_store
from serving import Served, serving

Json = dict[str, Any]
HALF: dict[str, Json] = {"messages": {"input_tokens": 5}, "embeddings": {}, "responses": {"input_tokens": 5}}


def told_no_usage(payload: Json) -> Json:
    """The same without usage, wherever it stands."""
    nested = {name: told_no_usage(value) for name, value in payload.items() if name in ("message", "response")}
    whole = {**payload, **nested}
    return {name: value for name, value in whole.items() if name not in ("usage", "usageMetadata")}


async def tells_no_usage(asked: Asked, _reader: Any, writer: Any) -> None:
    if not asked.streamed:
        body = json.dumps(told_no_usage(WHOLE[asked.form])).encode()
        writer.write(head(200, "application/json", f"content-length: {len(body)}") + body)
        return
    writer.write(STREAM)
    for piece in pieces_of(asked):
        writer.write(chunk(without_usage(piece)))
    writer.write(b"0\r\n\r\n")


async def answers_whole(asked: Asked, reader: Any, writer: Any) -> None:
    """Whole and without usage, whether or not a stream was asked for."""
    await tells_no_usage(Asked(asked.form, {**asked.body, "stream": False}), reader, writer)


async def tells_half_of_it(asked: Asked, reader: Any, writer: Any) -> None:
    """What went in, and nothing of what came out; a stream of messages says at its start what it has written by then."""
    if asked.streamed and asked.form == "messages":
        writer.write(STREAM)
        for piece in pieces_of(asked):
            writer.write(chunk(piece if b"message_start" in piece else without_usage(piece)))
        writer.write(b"0\r\n\r\n")
        return
    if asked.streamed:
        await tells_no_usage(asked, reader, writer)
        return
    usage = HALF.get(asked.form, {"prompt_tokens": 5})
    report = {"usageMetadata": {"promptTokenCount": 5}} if asked.form == "gemini" else {"usage": usage}
    body = json.dumps({**told_no_usage(WHOLE[asked.form]), **report}).encode()
    writer.write(head(200, "application/json", f"content-length: {len(body)}") + body)


async def answers_half_of_it_whole(asked: Asked, reader: Any, writer: Any) -> None:
    await tells_half_of_it(Asked(asked.form, {**asked.body, "stream": False}), reader, writer)


def without_usage(piece: bytes) -> bytes:
    lines = piece.decode().split("\n")
    data = [line.startswith("data: {") for line in lines]
    return "\n".join(
        f"data: {json.dumps(told_no_usage(json.loads(line[6:])))}" if is_data else line
        for line, is_data in zip(lines, data, strict=True)
    ).encode()


def routing(upstream: FaultyUpstream, spoken: str = "chat", more: str = "", price: str = "1") -> str:
    return f"""
default_model: m
retries: {{max_attempts: 1, backoff_ms: 1}}
breakers: {{failures: 0}}
providers: {{house: {{base_url: '{upstream.base_url}', models: [m], apis: [{spoken}]}}}}
prices: {{m: {{input_usd_per_mtok: {price}, output_usd_per_mtok: {price}}}}}
{more}"""


@pytest.fixture
def one_store(tmp_path: Path) -> Any:
    with open_store(str(tmp_path / "ledger.db")) as opened:
        yield opened


@asynccontextmanager
async def silent(
    store: Store, act: Any = tells_no_usage, **routed: str
) -> AsyncIterator[tuple[Served, FaultyUpstream]]:
    async with (
        faulty_upstream({"m": act}) as upstream,
        serving(store, upstream, routing(upstream, **routed)) as served,  # type: ignore[arg-type]
    ):
        yield served, upstream


async def spent(served: Served, job: str) -> int:
    """What the job's budget books as a bound, once nothing is reserved; nothing else is spent."""
    values = {"tenant_id": "default", "scope": "job", "scope_id": (await served.ledger.job(job)).job_id}
    [row] = await served.store.read(BUDGET_SQL["read_budget"], values)
    columns = BUDGET_SQL["read_budget"].sql["sqlite"].split("FROM")[0].removeprefix("SELECT").split(",")
    found = dict(zip((name.strip() for name in columns), row, strict=True))
    assert (found["reserved_microusd"], found["spent_microusd"]) == (0, 0)
    return found["bound_microusd"]


def told_cost(answer: Any) -> float | None:
    """What the client is told that it may have cost: by a header, or in the usage of a stream. That it cost so much is said
    nowhere."""
    if "x-overnight-cost-usd" in answer.headers:
        assert float(answer.headers["x-overnight-cost-usd"]) == 0
        return float(answer.headers["x-overnight-cost-bound-usd"])
    costs: list[float] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            costs.extend([value["bound_usd"]] if value.get("cost_usd") == 0 else [])
            for each in value.values():
                look(each)

    for line in answer.text.split("\n"):
        if line.startswith("data: {"):
            look(json.loads(line[6:]))
    return costs[-1] if costs else None


@pytest.mark.parametrize("act", [tells_no_usage, answers_whole, tells_half_of_it, answers_half_of_it_whole])
@pytest.mark.parametrize(("client", "spoken", "streamed"), MODES)
async def test_whole_reservation_is_booked(
    one_store: Store, client: str, spoken: str, streamed: bool, act: Any
) -> None:
    path, body = request_of(client, "m", streamed)
    if streamed and client == "chat":
        body["stream_options"] = {"include_usage": True}
    async with silent(one_store, act, spoken=spoken) as (served, upstream):
        answer = await served.http.post(path, json=body, headers={"x-job-id": "j"})
        assert answer.status_code == 200, answer.text
        called, ended = [event.facts for event in await served.events("j")][1:]
        assert upstream.answered["m"] == 1
        assert ended.event == "model_succeeded", ended
        assert called.detail["reserved_microusd"] >= 30
        assert (ended.cost_microusd, ended.bound_microusd) == (0, called.detail["reserved_microusd"])
        assert ended.detail["estimated"] is True
        assert "no usage" in ended.detail["why"]
        [(_, calls, taken, _, given, *money)] = await served.ledger.usage((await served.ledger.job("j")).job_id)
        assert (calls, taken, given) == (1, ended.input_tokens, ended.output_tokens)
        assert money == [0, ended.bound_microusd]
        assert 0 < ended.input_tokens < called.detail["reserved_microusd"] / 2, (
            "the columns of tokens keep the estimate"
        )
        assert ended.output_tokens < 200
        assert await spent(served, "j") == ended.bound_microusd
        assert told_cost(answer) == ended.bound_microusd / 1_000_000


@pytest.mark.parametrize("spoken", ["messages", "chat"])
@pytest.mark.parametrize("act", [tells_no_usage, answers_whole, tells_half_of_it, answers_half_of_it_whole])
async def test_official_helper_accepts_a_stream_without_usage(one_store: Store, act: Any, spoken: str) -> None:
    async with silent(one_store, act, spoken=spoken) as (served, _):
        client = anthropic.AsyncAnthropic(base_url=served.url, api_key="unused", max_retries=0)
        asked: Json = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}
        async with client.messages.stream(**asked, extra_headers={"x-job-id": "j"}) as stream:
            last = [event async for event in stream if event.type == "message_delta"][-1]
            message = await stream.get_final_message()
        ended = (await served.events("j"))[-1].facts
        told_at_the_start = spoken == "messages" and act in (tells_half_of_it, answers_half_of_it_whole)
        assert message.usage.input_tokens == (5 if told_at_the_start else ended.input_tokens) > 0
        assert message.usage.output_tokens == last.usage.output_tokens == ended.output_tokens > 0
        usage = last.usage.to_dict()
        assert (usage["cost_usd"], usage["bound_usd"]) == (0, ended.bound_microusd / 1_000_000)
        again = {"x-job-id": "j", "x-job-attempt": "2"}
        async with client.messages.stream(**asked, extra_headers=again) as replayed:
            assert (await replayed.get_final_message()).content == message.content
        assert "x-overnight-replayed" in replayed.response.headers
        await client.close()


@pytest.mark.parametrize("price", ["0", "1"])
async def test_free_model_is_free_without_usage(one_store: Store, price: str) -> None:
    async with silent(one_store, price=price) as (served, _):
        answer = await served.ask(model="m", headers={"x-job-id": "j"})
        free = price == "0"
        assert float(answer.headers["x-overnight-cost-usd"]) == 0
        assert ("x-overnight-cost-bound-usd" not in answer.headers) == free
        ended = (await served.events("j"))[-1].facts
        [call] = recorded_calls(await served.ledger.job("j"), await served.events("j"))
        assert call.left_out == ("" if free else "its provider reported no usage then"), (
            "no other routing saves a bound"
        )
        assert ((ended.bound_microusd == 0) == free, ended.detail["estimated"]) == (True, True)


async def test_hidden_output_never_passes_the_budget(store: Store) -> None:
    """A provider that bills every token it was allowed, says a word and tells no usage."""
    limit_usd = 0.02
    async with silent(store, more=f"budgets: {{max_cost_per_job_usd: {limit_usd}}}") as (served, upstream):
        for _ in range(12):
            calls = [served.ask("数" * 300, model="m", max_tokens=1000, headers={"x-job-id": "j"}) for _ in range(4)]
            statuses = {answer.status_code for answer in await asyncio.gather(*calls)}
            if 200 not in statuses:
                break
        assert statuses == {402}
        # One token a byte is the most there can be of the prompt, and all of the cap of the answer.
        billed = sum(
            len(json.dumps(body["messages"], ensure_ascii=False).encode()) + body["max_tokens"]
            for body in upstream.bodies
        )
        assert 0.01 * 1_000_000 < billed <= await spent(served, "j") <= limit_usd * 1_000_000


async def test_reserved_tokens_are_not_returned(one_store: Store) -> None:
    """It is corrected to what was used, where somebody says what that was."""
    sql = "SELECT tokens_at FROM rate"
    statement = Statement("tokens_at", {"sqlite": sql, "postgres": sql})
    async with silent(one_store, more="rate_limits: [{scope: tenant, tokens_per_minute: 60000}]") as (served, _):
        await served.ask(model="m", max_tokens=30_000)
        [(full_at,)] = await one_store.read(statement, {})
        assert full_at - one_store.clock() > 5_000_000, "30,000 tokens are half a minute's"
