"""Single flight: one of many identical calls is made, and another one if it fails or hangs."""

import asyncio
import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from caching import CACHE, EXACT, caching
from overnight.ledger import Ledger
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from serving import gateway_process, routed

SLOW = "rules: [{answer: 'answer {count}', fault: {delay_ms: 300}}]"
ONCE = "retries: {max_attempts: 1}\n"


@pytest.fixture
def provider(provider: SpawnedProvider) -> SpawnedProvider:
    provider.set_rules(SLOW)
    return provider


async def test_one_call_serves_all_and_each_job_has_its_record(store: Store, provider: SpawnedProvider) -> None:
    async with caching(store, provider) as cached:
        jobs = [f"job-{number}" for number in range(40)]
        told = await asyncio.gather(*(cached.ask("q", job) for job in jobs))
        assert {each.text for each in told} == {"answer 1"}
        assert sorted(each.cache for each in told) == ["exact"] * 39 + ["miss"]
        assert cached.paid == 1
        assert await cached.sums() == {"exact": (40, 0), "single_flight": (0, 39)}
        [leader] = [job for job in jobs if not await cached.facts(job, "cache_hit")]
        origin = (await cached.served.ledger.job(leader)).job_id
        for job in jobs:
            if job != leader:
                [answer] = await cached.facts(job, "model_succeeded")
                assert answer.detail["cache"]["single_flight"] is True
                assert answer.detail["cache"]["of"]["job_id"] == origin


async def test_different_questions_and_tenants_do_not_wait(store: Store, provider: SpawnedProvider) -> None:
    async with caching(store, provider) as cached:
        told = await asyncio.gather(
            *(cached.ask(f"q{number}") for number in range(3)),
            *(cached.ask("q", tenant=f"t{number}") for number in range(3)),
            *(cached.ask("q", "same job") for _ in range(3)),
        )
        assert [each.cache for each in told] == ["miss"] * 9
        assert cached.paid == 9


async def test_another_call_leads_when_the_leader_fails(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{match: {times: 2}, fault: {status: 400, delay_ms: 200}}, {answer: good}]")
    async with caching(store, provider) as cached:
        answers = await asyncio.gather(
            *(cached.served.ask("q", headers={"x-job-id": f"j{number}"}) for number in range(12))
        )
    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [400] * 2
    assert sorted(answer.headers[CACHE] for answer in answers) == ["exact"] * 9 + ["miss"] * 3


async def test_unshareable_answer_releases_all_waiting_calls(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{answer: {tool_calls: [{name: file, arguments: {n: 7}}]}, fault: {delay_ms: 400}}]")
    async with caching(store, provider) as cached:
        began = time.monotonic()
        told = await asyncio.gather(*(cached.ask("q") for _ in range(12)))
        took = time.monotonic() - began
    assert [each.cache for each in told] == ["miss"] * 12
    assert took < 12 * 0.4, "one after the other"


async def test_streams_lead_and_follow(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{answer: a b c d, fault: {chunk_delay_ms: 100}}]")
    async with caching(store, provider) as cached:
        streamed, plain, too = await asyncio.gather(
            cached.served.ask("q", headers={"x-job-id": "s"}, stream=True),
            cached.ask("q"),
            cached.served.ask("q", headers={"x-job-id": "t"}, stream=True),
        )
    pieces = [json.loads(line[6:]) for line in too.text.splitlines() if line.startswith("data: {")]
    said = "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces if piece["choices"])
    assert plain.text == said == "a b c d"
    assert sorted([streamed.headers[CACHE], plain.cache, too.headers[CACHE]]) == ["exact", "exact", "miss"]


async def test_follower_of_a_hanging_call_is_made_in_time(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{match: {times: 1}, fault: {stall: true}}, {answer: mine}]")
    async with caching(store, provider, EXACT + "deadlines: {default_ms: 1500}") as cached:
        hangs = asyncio.create_task(cached.served.ask("q", headers={"x-job-id": "a"}))
        await cached.served.until("a", "model_called")
        assert await cached.ask("q", "b") == ("mine", "miss")
        [missed] = await cached.facts("b", "cache_missed")
        assert "took too long" in missed.decision["why"]
        assert (await hangs).status_code == 504


async def test_repeated_question_of_a_job_follows_no_leader(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("""
rules:
  - {match: {times: 1}, fault: {status: 400}}
  - {match: {times: 1}, answer: slow, fault: {delay_ms: 3000}}
  - {answer: quick}
""")
    async with caching(store, provider) as cached:
        await cached.served.ask("q", headers={"x-job-id": "again"})
        slow = asyncio.create_task(cached.ask("q", "leads"))
        await cached.served.until("leads", "model_called")
        assert await cached.ask("q", "again") == ("quick", "miss")
        assert not slow.done()
        assert await slow == ("slow", "miss")


async def ask(http: httpx2.AsyncClient, url: str, job: str) -> Any:
    body = {"model": "auto", "messages": [{"role": "user", "content": "q"}]}
    return await http.post(f"{url}/v1/chat/completions", json=body, headers={"x-job-id": job})


async def test_one_call_serves_all_processes(store_url: str, provider: SpawnedProvider, tmp_path: Path) -> None:
    with ExitStack() as stack:
        urls = [
            stack.enter_context(gateway_process(store_url, provider, tmp_path, routed(EXACT))).url for _ in range(2)
        ]
        async with httpx2.AsyncClient(timeout=30) as http:
            answers = await asyncio.gather(*(ask(http, urls[number % 2], f"j{number}") for number in range(30)))
    assert {answer.json()["choices"][0]["message"]["content"] for answer in answers} == {"answer 1"}
    assert sorted(answer.headers[CACHE] for answer in answers) == ["exact"] * 29 + ["miss"]
    assert provider.stats()["paid_calls"] == 1


@pytest.mark.parametrize("crash_at", ["model_admitted", "model_answered"])
async def test_another_process_leads_when_the_leader_is_killed(
    store_url: str, provider: SpawnedProvider, tmp_path: Path, crash_at: str
) -> None:
    with ExitStack() as stack:
        dying = stack.enter_context(gateway_process(store_url, provider, tmp_path, routed(EXACT), crash_at))
        living = stack.enter_context(gateway_process(store_url, provider, tmp_path, routed(EXACT)))
        store = stack.enter_context(open_store(store_url))
        async with httpx2.AsyncClient(timeout=30) as http:
            lost = asyncio.create_task(ask(http, dying.url, "dead"))
            ledger = Ledger(store)
            async with asyncio.timeout(20):
                while not await ledger.jobs():
                    await asyncio.sleep(0.005)
            answers = await asyncio.gather(*(ask(http, living.url, f"j{number}") for number in range(10)))
            with pytest.raises(httpx2.HTTPError):
                await lost
    said = {answer.json()["choices"][0]["message"]["content"] for answer in answers}
    assert len(said) == 1
    assert sorted(answer.headers[CACHE] for answer in answers) == ["exact"] * 9 + ["miss"]
    assert provider.stats()["paid_calls"] == (1 if crash_at == "model_admitted" else 2)
