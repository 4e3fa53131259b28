"""Rate limits: correct across processes, fair between tenants, reported in the client's format."""

import asyncio
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from serving import Served, gateway_process, routed, serving

SLOW = "rules: [{answer: ok, fault: {delay_ms: 30}}]"


def limited(limit: str, queue_ms: int = 30_000, more: str = "") -> str:
    return routed(f"rate_limits: [{{{limit}}}]\ndeadlines: {{default_ms: 30000, queue_ms: {queue_ms}}}\n{more}")


async def rows(store: Store) -> list[tuple[Any, ...]]:
    from overnight.store import Statement

    sql = "SELECT tenant_id, scope, scope_id, in_flight FROM rate ORDER BY tenant_id, scope, scope_id"
    return [tuple(row) for row in await store.read(Statement("rates", {"sqlite": sql, "postgres": sql}), {})]


async def facts(served: Served, job: str, event: str, tenant: str = "default") -> list[Any]:
    return [each.facts for each in await served.events(job, tenant) if each.facts.event == event]


# ── requests, tokens, concurrency ────────────────────────────────────────────────────────────────────────────────────


async def test_over_the_limit_is_429_with_retry_after(store: Store, provider: SpawnedProvider) -> None:
    routing = limited("scope: tenant, requests_per_minute: 2", 400)
    async with serving(store, provider, routing) as served:
        assert [(await served.ask(headers={"x-job-id": "j"})).status_code for _ in range(2)] == [200, 200]
        refused = await served.ask(headers={"x-job-id": "j"})
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 25 <= int(refused.headers["retry-after"]) <= 30
        assert "x-should-retry" not in refused.headers
        assert provider.stats()["requests"] == 2
        [event] = await facts(served, "j", "rate_limited")
        assert event.decision["limit"] == "requests"
        assert event.detail["refused"]
        other = await served.ask(headers={"x-tenant-id": "other"})
        assert other.status_code == 200


async def test_hopeless_wait_is_rejected_at_once(store: Store, provider: SpawnedProvider) -> None:
    """The next request fits in a minute, the queue time ends in 50 seconds: nobody waits for that."""
    routing = routed(
        "rate_limits: [{scope: tenant, requests_per_minute: 1}]\ndeadlines: {queue_ms: 50000, default_ms: 50000}\n"
    )
    async with serving(store, provider, routing) as served:
        assert (await served.ask(headers={"x-job-id": "j"})).status_code == 200
        async with asyncio.timeout(25):
            refused = await served.ask(headers={"x-job-id": "j"})
        assert (refused.status_code, provider.stats()["requests"]) == (429, 1)
        assert 25 < int(refused.headers["retry-after"]) <= 60
        [event] = await facts(served, "j", "rate_limited")
        assert (event.detail["refused"], event.detail["waited_ms"] < 25_000) == (True, True)


async def test_overhead_includes_the_wait_only(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{answer: ok, fault: {delay_ms: 400}}]")

    async def overhead() -> tuple[float, float]:
        """As the answer tells it, and how long the client waited for that; in milliseconds."""
        began = time.perf_counter()
        answer = await served.ask()
        return float(answer.headers["x-overnight-overhead-ms"]), (time.perf_counter() - began) * 1000

    async with serving(store, provider, limited("scope: tenant, concurrency: 1")) as served:
        found = sorted(await asyncio.gather(overhead(), overhead()))
        for told, waited in found:
            assert 0 < told < waited - 390  # the provider took 400 of it
        assert found[1][0] > 390  # it waited for the other one's place


async def test_wait_is_recorded_once(store_url: str, provider: SpawnedProvider) -> None:
    now = [1_790_000_000_000_000]
    with open_store(store_url, clock=lambda: now[0]) as store:
        async with serving(store, provider, limited("scope: agent, requests_per_minute: 2", 90_000)) as served:
            headers = {"x-job-id": "patient", "x-agent-name": "reader"}
            calls = [asyncio.create_task(served.ask(f"{n}", headers=headers)) for n in range(4)]
            await served.until("patient", "model_succeeded", 2)
            assert sum(call.done() for call in calls) <= 2
            now[0] += 30_000_000  # as much as one request takes to come back
            await served.until("patient", "model_succeeded", 3)
            now[0] += 30_000_000
            assert {(await call).status_code for call in calls} == {200}
            waited = await facts(served, "patient", "rate_limited")
            assert len(waited) == 2
            assert all("refused" not in event.detail and event.decision["name"] == "reader" for event in waited)
            story = await served.story("patient")
            assert story[story.index("rate_limited") + 1] == "model_called"


async def test_tokens_are_reserved_and_returned_at_settlement(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, limited("scope: tenant, tokens_per_minute: 10000", 300)) as served:
        # Each may take some 8,300 tokens and takes next to none: one after the other they all pass.
        for _ in range(5):
            assert (await served.ask()).status_code == 200
        provider.set_rules("rules: [{answer: {text: word, repeat_words: 12000}}]")
        assert (await served.ask(max_tokens=9000)).status_code == 200
        refused = await served.ask(max_tokens=9000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")


async def test_concurrency_limit_holds(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules(SLOW)
    async with serving(store, provider, limited("scope: target, concurrency: 3")) as served:
        most, statuses = 0, list[int]()

        async def one(number: int) -> None:
            statuses.append((await served.ask(f"{number}", headers={"x-job-id": f"c{number}"})).status_code)

        async def watch() -> None:
            nonlocal most
            while len(statuses) < 20:
                most = max([most, *(row[3] for row in await rows(store))])
                await asyncio.sleep(0)

        await asyncio.gather(watch(), *(one(number) for number in range(20)))
        assert set(statuses) == {200}
        assert most == 3
        assert [row[3] for row in await rows(store)] == [0]


async def test_streams_count_until_their_end(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{answer: one two three four, fault: {delay_ms: 500}}]")
    routing = limited("scope: tenant, concurrency: 1", 100)
    async with serving(store, provider, routing) as served:
        body = {"model": "auto", "messages": [{"role": "user", "content": "x"}], "stream": True}
        streaming = asyncio.create_task(served.http.post("/v1/chat/completions", json=body, headers={"x-job-id": "s"}))
        await served.until("s", "model_called")
        assert (await served.ask(headers={"x-task": "heartbeat_check"})).status_code == 429
        assert (await streaming).status_code == 200
        assert (await served.ask()).status_code == 200
        assert [row[3] for row in await rows(store)] == [0]


async def test_sdks_raise_their_rate_limit_error(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, limited("scope: tenant, requests_per_minute: 1", 200)) as served:
        assert (await served.ask()).status_code == 200
        with pytest.raises(openai.RateLimitError) as raised:
            await served.openai.chat.completions.create(model="auto", messages=[{"role": "user", "content": "x"}])
        assert raised.value.code == "rate_limit_exceeded"
        claude = anthropic.AsyncAnthropic(base_url=served.url, api_key="x", max_retries=0)
        with pytest.raises(anthropic.RateLimitError) as refused:
            await claude.messages.create(
                model="claude-opus-4.6", max_tokens=100, messages=[{"role": "user", "content": "x"}]
            )
        await claude.close()
        assert refused.value.body["error"]["type"] == "rate_limit_error"
        assert int(refused.value.response.headers["retry-after"]) > 0


async def test_rejected_unattributed_call_leaves_no_open_job(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, limited("scope: tenant, requests_per_minute: 1", 200)) as served:
        await served.ask()
        await served.ask()
        states = {job.job_id: job.state for job in await served.ledger.jobs()}
        assert sorted(states.values()) == ["failed", "succeeded"]


# ── fairness ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_thousand_waiting_calls_of_one_tenant_do_not_delay_another(
    store: Store, provider: SpawnedProvider
) -> None:
    provider.set_rules("rules: [{answer: ok, fault: {delay_ms: 20}}]")
    async with serving(store, provider, limited("scope: target, concurrency: 1", 60_000)) as served:
        done: list[str] = []
        limits = httpx2.Limits(max_connections=2000)
        async with httpx2.AsyncClient(base_url=served.url, timeout=100, limits=limits) as http:

            async def one(tenant: str, number: int) -> None:
                body = {"model": "auto", "messages": [{"role": "user", "content": f"{number}"}]}
                headers = {"x-tenant-id": tenant, "x-job-id": f"{tenant}-{number % 10}"}
                await http.post("/v1/chat/completions", json=body, headers=headers)
                done.append(tenant)

            crowd = [asyncio.create_task(one("crowd", number)) for number in range(1000)]
            while served.gateway.queue.waiting < 900:
                await asyncio.sleep(0.05)
            before = len(done)
            await one("single", 0)
            delayed_by = len(done) - before - 1
            for task in crowd:
                task.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)
        assert delayed_by <= 4, "one call on its way, one at the front, and what came in meanwhile"


async def test_tenants_take_turns_at_a_target(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules(SLOW)
    async with serving(store, provider, limited("scope: target, concurrency: 1", 60_000)) as served:
        order: list[str] = []

        async def one(tenant: str) -> None:
            await served.ask(headers={"x-tenant-id": tenant})
            order.append(tenant)

        await served.ask()
        tasks = [asyncio.create_task(one("many")) for _ in range(12)]
        await asyncio.sleep(0.1)
        tasks += [asyncio.create_task(one(tenant)) for tenant in ("few", "few", "few", "other", "other", "other")]
        await asyncio.gather(*tasks)
        # From where all three wait: turns, not the order of arrival.
        turns = order[order.index("few") :]
        assert Counter(turns[:6]).most_common(1)[0][1] <= 3


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(180)
async def test_two_processes_pay_exactly_the_limit(store_url: str, provider: SpawnedProvider, tmp_path: Path) -> None:
    routing = limited("scope: tenant, requests_per_minute: 30", 1000)
    with ExitStack() as stack:
        urls = [stack.enter_context(gateway_process(store_url, provider, tmp_path, routing)).url for _ in range(2)]
        limits = httpx2.Limits(max_connections=200)
        async with httpx2.AsyncClient(timeout=60, limits=limits) as http:

            async def one(number: int) -> int:
                body = {"model": "auto", "messages": [{"role": "user", "content": f"{number}"}]}
                url = f"{urls[number % 2]}/v1/chat/completions"
                return (await http.post(url, json=body)).status_code

            began = time.monotonic()
            statuses = Counter(await asyncio.gather(*(one(number) for number in range(200))))
            took = time.monotonic() - began
    assert set(statuses) == {200, 429}
    # One more comes every two seconds.
    assert 30 <= statuses[200] <= 30 + int(took / 2) + 1
    assert provider.stats()["paid_calls"] == statuses[200]


@pytest.mark.timeout(180)
async def test_two_processes_share_concurrency_without_starvation(
    store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    provider.set_rules(SLOW)
    routing = limited("scope: target, concurrency: 2", 60_000)
    with ExitStack() as stack:
        urls = [stack.enter_context(gateway_process(store_url, provider, tmp_path, routing)).url for _ in range(2)]
        async with httpx2.AsyncClient(timeout=100, limits=httpx2.Limits(max_connections=100)) as http:
            ended: list[int] = []

            async def one(number: int) -> int:
                body = {"model": "auto", "messages": [{"role": "user", "content": f"{number}"}]}
                status = (await http.post(f"{urls[number % 2]}/v1/chat/completions", json=body)).status_code
                ended.append(number % 2)
                return status

            most = 0
            with open_store(store_url) as store:

                async def watch() -> None:
                    nonlocal most
                    while len(ended) < 60:
                        found = await rows(store)
                        most = max([most, *(row[3] for row in found)])
                        await asyncio.sleep(0.002)

                watching = asyncio.create_task(watch())
                statuses = Counter(await asyncio.gather(*(one(number) for number in range(60))))
                await watching
                assert [row[3] for row in await rows(store)] == [0]
    assert statuses == {200: 60}
    assert most == 2
    assert provider.stats()["paid_calls"] == 60
    assert set(ended[:45]) == {0, 1}, "a process that only hears of room by asking gets its share too"


async def test_kill_9_frees_the_concurrency_slots(store_url: str, provider: SpawnedProvider, tmp_path: Path) -> None:
    routing = limited("scope: tenant, concurrency: 1", 1500)
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}
    with gateway_process(store_url, provider, tmp_path, routing, crash_at="model_admitted") as gateway:
        async with httpx2.AsyncClient(base_url=gateway.url) as http:
            with pytest.raises(httpx2.HTTPError):
                await http.post("/v1/chat/completions", json=body, headers={"x-job-id": "dead"})
    with open_store(store_url) as store:
        assert [row[3] for row in await rows(store)] == [1]
        async with serving(store, provider, routing) as served:
            # Whoever waits for the place gets it as soon as its owner is known to be dead.
            waiting = asyncio.create_task(served.ask())
            await asyncio.sleep(0.1)
            assert not waiting.done()
            assert await served.gateway.settle_owner(gateway.owner) == 1
            assert (await waiting).status_code == 200
            assert [row[3] for row in await rows(store)] == [0]


async def test_slot_is_free_after_its_reservation_expires(
    store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    from overnight.store.store import wall_clock_us

    routing = limited("scope: tenant, concurrency: 1", 3000)
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}
    with gateway_process(store_url, provider, tmp_path, routing, crash_at="model_admitted") as gateway:
        async with httpx2.AsyncClient(base_url=gateway.url) as http:
            with pytest.raises(httpx2.HTTPError):
                await http.post("/v1/chat/completions", json=body)
    with open_store(store_url, clock=lambda: wall_clock_us() + 120_000_000) as store:
        async with serving(store, provider, routing) as served:
            assert (await served.ask()).status_code == 200
