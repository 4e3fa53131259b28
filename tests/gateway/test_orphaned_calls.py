"""Calls of silent gateways: a waking gateway keeps its new calls, and a read-only store loses none."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest

from faulty_upstream import Asked, FaultyUpstream, answers, faulty_upstream
from overnight.gateway.admission.due_settlements import Settlements
from overnight.gateway.orphaned_calls import OrphanedCalls, OrphanWatch
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


class Survivor:
    """The watch and the sweep of another process, on a clock that is moved by hand."""

    def __init__(self, store: Store) -> None:
        self.store, self.seconds = store, 0
        settlements = Settlements(store, lambda: None)
        self.calls = OrphanedCalls(store, "survivor", settlements, lambda: None, lambda: float(self.seconds))

    async def looks(self, seconds: int, served: Served, job: str = "") -> int:
        """Look and sweep once a second, and renew its own row every fifth. The second in which a call of `job` was lost."""
        for second in range(1, seconds + 1):
            self.seconds += 1
            if self.seconds % 5 == 1:
                await self.store.commit(
                    RenewRegistration("survivor", "gateway", this_host(), os.getpid(), self.store.clock())
                )
            await self.calls.look()
            await self.calls.sweep()
            if job and "model_lost" in await served.story(job):
                return second
        return 0


@pytest.fixture
def usual_silence(monkeypatch: pytest.MonkeyPatch, short_silence: None) -> None:
    """The times of the product again."""
    times = {"SILENT_AFTER_S": 15.0, "SUSPECT_AFTER_S": 6.0, "MAX_RENEWAL_S": 8.0, "WATCH_EVERY_S": 1.0}
    for name, seconds in times.items():
        monkeypatch.setattr(f"{WATCH}.{name}", seconds)


@pytest.mark.usefixtures("usual_silence")
@pytest.mark.parametrize(("woke_after_s", "at_least_s"), [(0, 8), (3, 15), (8, 15), (14, 15)])
async def test_call_of_an_owner_stopped_twice_stands_as_long(
    store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch, woke_after_s: int, at_least_s: int
) -> None:
    """The owner is stopped, wakes, makes a call, and is stopped again before it renews its row."""
    monkeypatch.setattr("overnight.gateway.housekeeping.SWEEP_EVERY_S", 3600.0)
    async with held_provider() as (provider, upstream, routing):
        owner = serving(store, upstream, routing, owner="asleep", registers=False)  # type: ignore[arg-type]
        async with owner as sleeper:
            survivor = Survivor(store)
            await store.commit(RenewRegistration("asleep", "gateway", "another host", 1, store.clock()))
            first = asyncio.create_task(sleeper.ask(headers={"x-job-id": "first"}))
            await sleeper.until("first", "model_called")
            await survivor.looks(6 + woke_after_s, sleeper)
            second = asyncio.create_task(sleeper.ask(headers={"x-job-id": "second"}))
            await sleeper.until("second", "model_called")
            lost_after_s = await survivor.looks(30, sleeper, "second")
            provider.released.set()
            assert [each.status_code for each in await asyncio.gather(first, second)] == [200, 200]
            assert await ends(sleeper, "first") == ["model_lost"]
    assert at_least_s <= lost_after_s <= 21


@pytest.mark.usefixtures("usual_silence")
async def test_only_processes_that_renew_their_rows_are_peers(store: Store, provider: Any) -> None:
    async with serving(store, provider, owner="reader", registers=False) as served:
        survivor, other = Survivor(store), RenewRegistration("other", "gateway", "another host", 1, store.clock())
        await survivor.looks(21, served)
        assert not survivor.calls.has_peers
        for _ in range(3):
            await store.commit(other)
            await survivor.looks(10, served)
            assert survivor.calls.has_peers
        await survivor.looks(20, served)
        assert not survivor.calls.has_peers


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
