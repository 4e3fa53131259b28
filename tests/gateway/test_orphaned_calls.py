"""Calls of silent gateways: a waking gateway keeps its new calls, and a read-only store loses none."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest

from faulty_upstream import Asked, FaultyUpstream, answers, faulty_upstream
from overnight.gateway.orphaned_calls import OrphanWatch
from overnight.ledger.processes import RenewRegistration, this_host
from overnight.store import Store, open_store
from serving import Served, serving
from store_locks import HOLDS_DATABASE, held

WATCH = "overnight.gateway.orphaned_calls"


class HeldProvider:
    """A provider that answers once it is `released`."""

    def __init__(self) -> None:
        self.released = asyncio.Event()

    async def act(self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.released.wait()
        await answers(asked, reader, writer)


@asynccontextmanager
async def held_provider() -> AsyncIterator[tuple[HeldProvider, FaultyUpstream, str]]:
    provider = HeldProvider()
    async with faulty_upstream({"m": provider.act}) as upstream:
        routing = f"""
default_model: m
deadlines: {{queue_ms: 20000, total_ms: 20000}}
providers: {{house: {{base_url: '{upstream.base_url}', models: [m]}}}}
prices: {{m: {{input_usd_per_mtok: 1, output_usd_per_mtok: 2}}}}"""
        try:
            yield provider, upstream, routing
        finally:
            provider.released.set()


@pytest.fixture(autouse=True)
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """All times of the watch, divided by about 15."""
    monkeypatch.setattr("overnight.ledger.processes.RENEWAL_INTERVAL_S", 0.3)
    times = {"SILENT_AFTER_S": 0.9, "SUSPECT_AFTER_S": 0.6, "MAX_RENEWAL_S": 0.6, "WATCH_EVERY_S": 0.05}
    for name, seconds in times.items():
        monkeypatch.setattr(f"{WATCH}.{name}", seconds)


async def ends(served: Served, job: str) -> list[str]:
    names = ("model_succeeded", "model_failed", "model_lost")
    return [name for name in await served.story(job) if name in names]


async def taken_for_dead(sweeper: Served, owner: str) -> None:
    """Return when the watch of the sweeper must have seen that this owner is silent."""
    watch = OrphanWatch(sweeper.store, sweeper.gateway.owner)
    async with asyncio.timeout(15):
        while owner not in {each.owner for each in await watch.dead_owners()}:
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.15)


async def test_waking_gateway_keeps_its_new_calls(
    store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.gateway.housekeeping.SWEEP_EVERY_S", 3600.0)
    awake = RenewRegistration("asleep", "gateway", this_host(), os.getpid(), store.clock())
    async with held_provider() as (provider, upstream, routing):
        with open_store(store_url) as elsewhere:
            async with (
                serving(store, upstream, routing) as sweeper,  # type: ignore[arg-type]
                serving(elsewhere, upstream, routing, owner="asleep", registers=False) as sleeper,  # type: ignore[arg-type]
            ):
                await elsewhere.commit(awake)
                before = asyncio.create_task(sleeper.ask(headers={"x-job-id": "before"}))
                await sleeper.until("before", "model_called")
                await taken_for_dead(sweeper, "asleep")
                after = asyncio.create_task(sleeper.ask(headers={"x-job-id": "after"}))
                await sleeper.until("after", "model_called")  # it wakes, and calls before it renews its row
                async with asyncio.timeout(10):
                    while await ends(sweeper, "before") != ["model_lost"]:
                        await sweeper.gateway.lost_calls.sweep()
                await elsewhere.commit(awake)
                await sweeper.gateway.lost_calls.sweep()
                provider.released.set()
                assert [each.status_code for each in await asyncio.gather(before, after)] == [200, 200]
                assert await ends(sweeper, "after") == ["model_succeeded"]
                assert "cost_corrected" in await sweeper.story("before")


@contextmanager
def locked_rows(url: str) -> Iterator[None]:
    """Rows of processes can be read, and not written."""
    with psycopg.connect(url) as connection:
        connection.execute("LOCK TABLE worker IN EXCLUSIVE MODE")
        yield
        connection.rollback()


async def test_read_only_store_loses_no_live_call(
    store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.gateway.housekeeping.SWEEP_EVERY_S", 0.05)
    is_file = store.dialect == "sqlite"
    lock: AbstractContextManager[Any] = held(HOLDS_DATABASE, store_url) if is_file else locked_rows(store_url)
    async with held_provider() as (provider, upstream, routing):
        with open_store(store_url) as other:
            async with (
                serving(store, upstream, routing) as one,  # type: ignore[arg-type]
                serving(other, upstream, routing) as two,  # type: ignore[arg-type]
            ):
                calls = [
                    asyncio.create_task(served.ask(job, headers={"x-job-id": job}))
                    for served, job in ((one, "one"), (two, "two"))
                ]
                await one.until("one", "model_called")
                await two.until("two", "model_called")
                await asyncio.sleep(0.4)  # both have seen the other one's row change
                await asyncio.to_thread(lock.__enter__)
                await asyncio.sleep(1.8)  # twice the silence after which a process is dead
                await asyncio.to_thread(lock.__exit__, None, None, None)
                await asyncio.sleep(0.4)
                provider.released.set()
                assert [answer.status_code for answer in await asyncio.gather(*calls)] == [200, 200]
                for job in ("one", "two"):
                    assert await ends(one, job) == ["model_succeeded"]
