"""Calls while the store is locked: each ends within its own limits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, deadlines, serving
from store_locks import kept_from_answering

ONE_TRY = "default_model: gpt-5.4-mini\nretries: {max_attempts: 1}\nbreakers: {failures: 0}\n"
QUICK = deadlines(800, 20_000)


@asynccontextmanager
async def locked(store: Store, url: str, table: str) -> AsyncIterator[None]:
    trouble = kept_from_answering("write lock" if store.dialect == "sqlite" else f"locked {table}", url)
    await asyncio.to_thread(trouble.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(trouble.__exit__, None, None, None)


async def soon(answer: Any) -> tuple[int, str]:
    """Long before the lock would be given back."""
    async with asyncio.timeout(8):
        found = await answer
    return found.status_code, found.text


async def test_rejection_does_not_wait_for_its_event(store: Store, store_url: str, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{fault: {delay_ms: 3000}}]")
    routing = ONE_TRY + "rate_limits: [{scope: tenant, concurrency: 1}]\n" + QUICK
    async with serving(store, provider, routing) as served:
        slow = asyncio.create_task(served.ask("slow"))
        await asyncio.sleep(0.3)
        first = asyncio.create_task(served.ask("first in line"))
        await asyncio.sleep(0.05)
        refused = asyncio.create_task(served.ask("late", headers={"x-job-id": "late"}))
        await asyncio.sleep(0.05)
        async with locked(store, store_url, "job"):
            assert (await soon(refused))[0] == 429
        await asyncio.gather(slow, first)
        events = await served.until("late", "rate_limited")
        assert [each.facts.event for each in events].count("rate_limited") == 1


async def test_probe_does_not_wait_for_its_claim(store: Store, store_url: str, provider: SpawnedProvider) -> None:
    routing = ONE_TRY.replace("failures: 0", "failures: 1, cool_down_ms: 100") + QUICK
    async with serving(store, provider, routing) as served:
        await _open_circuit(served)
        async with locked(store, store_url, "circuit"):
            status, text = await soon(served.ask("probe"))
            assert (status, "store_unavailable" in text) == (503, True), text


async def _open_circuit(served: Served) -> None:
    served.provider.set_rules("rules: [{fault: {status: 500}}]")
    for n in range(4):
        await served.http.post(
            "/v1/chat/completions",
            json={"model": "auto", "messages": [{"role": "user", "content": f"fails {n}"}]},
            headers={"x-tenant-id": f"t{n}"},
        )
    served.provider.set_rules("rules: []")
    await asyncio.sleep(0.5)


async def test_identical_call_does_not_wait_for_a_claim(
    store: Store, store_url: str, provider: SpawnedProvider
) -> None:
    async with serving(store, provider, ONE_TRY + "cache: {exact: {ttl_s: 60}}\n" + QUICK) as served:
        async with locked(store, store_url, "cache_entry"):
            asked = [soon(served.ask("the same")) for _ in range(4)]
            answers = await asyncio.gather(*asked)
        assert {status for status, _ in answers} <= {200, 503}, answers


async def test_loop_check_ends_within_the_store_deadline(
    store: Store, store_url: str, provider: SpawnedProvider
) -> None:
    async with serving(store, provider, ONE_TRY + "guards: {same_call: 3}\n" + QUICK) as served:
        for _ in range(3):
            assert (await served.ask("again", headers={"x-job-id": "loop"})).status_code == 200
        async with locked(store, store_url, "job"):
            status, text = await soon(served.ask("again", headers={"x-job-id": "loop"}))
            assert (status, "store_unavailable" in text) == (503, True), text
