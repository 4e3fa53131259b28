"""Calls in the admission queue: woken by settlements, rejected early, reported in headers."""

import asyncio
import time
from collections import Counter

import pytest

from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import deadlines, routed, serving

# A call reserves more than 8,000 of them and uses a few: a second one has room only when the first is settled.
ONE_BY_TOKENS = "scope: tenant, tokens_per_minute: 10000"
ONE_BY_PLACES = "scope: tenant, concurrency: 1"


def limited(limit: str, queue_ms: int) -> str:
    return routed(f"rate_limits: [{{{limit}}}]\n{deadlines(queue_ms)}\n")


@pytest.mark.parametrize(
    ("rules", "status"),
    [
        ("[]", 200),
        ("[{fault: {status: 400}}]", 400),
        ("[{match: {times: 12}, fault: {status: 503}}]", 200),
    ],
    ids=["answered", "refused", "tried again"],
)
async def test_every_settlement_admits_the_next_call(
    store: Store, provider: SpawnedProvider, rules: str, status: int
) -> None:
    """Asking again by itself, the front of the queue would look once a second: most would have no time left."""
    provider.set_rules(f"rules: {rules}")
    async with serving(store, provider, limited(ONE_BY_TOKENS, 6000) + "breakers: {failures: 0}\n") as served:
        answers = await asyncio.gather(*(served.ask(f"{n}", headers={"x-job-id": f"j{n}"}) for n in range(20)))
        assert Counter(answer.status_code for answer in answers) == {status: 20}


async def test_hopeless_wait_is_rejected_at_once(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, limited("scope: tenant, requests_per_minute: 1", 10_000)) as served:
        assert (await served.ask()).status_code == 200
        async with asyncio.timeout(5):  # half of what it would wait in vain
            refused = await served.ask(headers={"x-job-id": "late"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) > 40
        [event] = [each.facts for each in await served.events("late") if each.facts.event == "rate_limited"]
        assert event.detail["refused"]
        assert event.detail["waited_ms"] < 5000
        assert provider.stats()["requests"] == 1


async def test_overhead_excludes_provider_time(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{answer: ok, fault: {delay_ms: 400}}]")
    async with serving(store, provider, limited(ONE_BY_PLACES, 10_000)) as served:

        async def ask(job: str) -> tuple[float, float]:
            began = time.perf_counter()
            answer = await served.ask(headers={"x-job-id": job})
            return float(answer.headers["x-overnight-overhead-ms"]), (time.perf_counter() - began) * 1000

        first = asyncio.create_task(ask("first"))
        await served.until("first", "model_called")
        (second, took_second), (one, took_one) = await ask("second"), await first
        [waited] = [each.facts.detail for each in await served.events("second") if each.facts.event == "rate_limited"]
        assert 0 < one <= took_one - 390
        assert waited["waited_ms"] <= second <= took_second - 390
        alone, _ = await ask("third")
        assert len({one, second, alone}) == 3
