"""A failed attempt holds nothing while its call waits: other calls use its budget and its places, and it is not billed."""

import asyncio
from collections import Counter
from typing import Any

import pytest

import overnight
from faulty_upstream import Act, Asked, answers, faulty_upstream, head
from overnight.store import Store
from served_jobs import rest, start, working
from serving import serving

ENDS = ("model_succeeded", "model_failed", "model_lost")
ROOM_FOR_ONE = {
    "places": "rate_limits: [{scope: target, concurrency: 1}]",
    "money": "budgets: {limits: [{scope: tenant, max_cost_usd: 0.0004}]}",
    "tokens": "budgets: {limits: [{scope: tenant, max_tokens: 300}]}",
    "job": "budgets: {max_cost_per_job_usd: 0.0004}",
}


def fails_first(status: int, more: str = "") -> Act:
    """The first call that arrives fails after a while, every other one is answered."""
    tried: list[str] = []

    async def act(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tried.append(asked.body["messages"][0]["content"])
        if len(tried) > 1:
            await answers(asked, reader, writer)
            return
        await asyncio.sleep(0.2)
        body = b'{"error":{"message":"busy","type":"server_error"}}'
        writer.write(head(status, "application/json", f"content-length: {len(body)}{more}") + body)

    return act


def routing(base_url: str, more: str) -> str:
    return f"""
default_model: m
limits: {{default_max_output_tokens: 100}}
retries: {{max_attempts: 2, backoff_ms: 50}}
deadlines: {{queue_ms: 8000, total_ms: 8000}}
providers: {{house: {{base_url: '{base_url}', models: [m]}}}}
prices: {{m: {{input_usd_per_mtok: 1, output_usd_per_mtok: 2}}}}
{more}"""


async def ends_of(served: Any, job: str) -> Counter[str]:
    events = await served.events(job)
    assert all(not each.facts.bound_microusd for each in events)
    return Counter(each.facts.event for each in events if each.facts.event in ENDS)


@pytest.mark.parametrize("room", ROOM_FOR_ONE)
async def test_calls_of_a_job_are_answered_beside_a_failed_attempt(store: Store, room: str) -> None:
    async with (
        faulty_upstream({"m": fails_first(503)}) as upstream,
        serving(store, upstream, routing(upstream.base_url, ROOM_FOR_ONE[room])) as served,  # type: ignore[arg-type]
    ):
        first = asyncio.create_task(served.ask("a", model="m", headers={"x-job-id": "j"}))
        await served.until("j", "model_called")
        second = asyncio.create_task(served.ask("b", model="m", headers={"x-job-id": "j"}))
        assert [each.status_code for each in await asyncio.gather(first, second)] == [200, 200]
        assert await ends_of(served, "j") == {"model_succeeded": 2, "model_failed": 1}


@overnight.job
async def two_calls() -> list[str]:
    answered = await asyncio.gather(*(overnight.chat(text, model="m") for text in ("a", "b")))
    return [each.text for each in answered]


@pytest.mark.parametrize("room", ROOM_FOR_ONE)
async def test_branches_of_job_code_are_answered_beside_a_failed_attempt(store: Store, room: str) -> None:
    async with (
        faulty_upstream({"m": fails_first(503)}) as upstream,
        serving(store, upstream, routing(upstream.base_url, ROOM_FOR_ONE[room])) as served,  # type: ignore[arg-type]
    ):
        async with working(served):
            job = await rest(served, await start(served, two_calls))
        assert job.state == "succeeded"
        events = await served.ledger.events(job.job_id)
        ends = Counter(each.facts.event for each in events if each.facts.event in ENDS)
        assert ends == {"model_succeeded": 2, "model_failed": 1}
        assert all(not each.facts.bound_microusd for each in events)
