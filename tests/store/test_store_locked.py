"""A locked or blocked store: event loops continue, callers time out, nothing is written twice."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from machine_parts import make_job, names, note
from overnight.domain import StoreUnavailable
from overnight.ledger import LEDGER_SQL, Ledger
from overnight.store import Store, open_store
from store_locks import kept_from_answering, stopped_server

SQLITE = ["file lock", "write lock"]
POSTGRES = ["locked event", "locked job", "stopped server", "stopped backends"]
HELD_S = 2.0
LONGEST_GAP_S = 1.0


@pytest.fixture(params=[*SQLITE, *POSTGRES])
def trouble(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def url(trouble: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "ledger.db") if trouble in SQLITE else request.getfixturevalue("postgres_url")


@pytest.fixture(autouse=True)
def flushes_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine they may look slow, and everything would be written in the thread."""
    monkeypatch.setattr("overnight.store.batches.QUICK_FLUSH_S", 1.0)


class Heart:
    """The longest time between two beats of a task that wants to beat all the time."""

    longest = 0.0

    async def beat(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            self.longest = max(self.longest, now - last)
            last = now


@asynccontextmanager
async def heart() -> AsyncIterator[Heart]:
    found = Heart()
    task = asyncio.create_task(found.beat())
    await asyncio.sleep(0)
    try:
        yield found
    finally:
        task.cancel()


async def warm(store: Store, job_id: str) -> None:
    """The store learns how quick flushes are here."""
    for n in range(60):
        await store.commit(note(job_id, n))


async def test_event_loop_continues_while_store_is_locked(trouble: str, url: str) -> None:
    left: list[int] = []
    loop = asyncio.get_running_loop()
    with open_store(url) as store:
        job_id = make_job(store)
        await warm(store, job_id)
        async with heart() as found:
            with kept_from_answering(trouble, url):
                began = time.monotonic()
                tasks = [asyncio.create_task(store.commit(note(job_id, f"patient {n}"))) for n in range(3)]
                late = asyncio.create_task(
                    store.commit(note(job_id, "late"), until=loop.time() + 0.3, on_late_commit=left.append)
                )
                await asyncio.sleep(0.1)
                tasks += [asyncio.create_task(store.commit(note(job_id, f"patient {n}"))) for n in range(3, 6)]
                skipped = store.commit(note(job_id, "skipped"), until=loop.time() + 0.2, on_late_commit=left.append)
                impatient = await asyncio.gather(late, skipped, return_exceptions=True)
                assert time.monotonic() - began < HELD_S / 2
                await asyncio.sleep(HELD_S - (time.monotonic() - began))
            async with asyncio.timeout(30):
                seqs = await asyncio.gather(*tasks)
                seqs.append(await store.commit(note(job_id, "after")))
        await asyncio.sleep(0)
        written = names(url, job_id)
    assert found.longest < LONGEST_GAP_S
    patient = [f"patient {n}" for n in range(6)]
    assert [written[seq - 2] for seq in seqs] == [*patient, "after"]
    if trouble == "stopped backends":  # the server goes on: a new connection serves everybody
        assert (written[60:], left) == ([*patient[:3], "late", *patient[3:], "skipped", "after"], [])
        return
    assert [type(outcome) for outcome in impatient] == [StoreUnavailable] * 2
    assert written[60:] in ([*patient, "after"], [*patient[:3], "late", *patient[3:], "after"])
    assert [written[seq - 2] for seq in left] == written[60:].count("late") * ["late"]


async def test_store_is_quick_again_after_a_lock(trouble: str, url: str) -> None:
    """Many short locks: each commit comes through once, in order."""
    with open_store(url) as store:
        job_id = make_job(store)
        await warm(store, job_id)
        seqs: list[int] = []
        for turn in range(3):
            with kept_from_answering(trouble, url):
                tasks = [asyncio.create_task(store.commit(note(job_id, f"{turn} {n}"))) for n in range(5)]
                await asyncio.sleep(0.15)
            async with asyncio.timeout(30):
                seqs += await asyncio.gather(*tasks)
        assert seqs == list(range(62, 77))
        assert names(url, job_id)[60:] == [f"{turn} {n}" for turn in range(3) for n in range(5)]


async def test_closing_a_locked_store_ends(trouble: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in line fails; nobody is left waiting."""
    monkeypatch.setattr("overnight.store.writer.CLOSE_TIMEOUT_S", 2.5 if trouble == "stopped server" else 0.3)
    monkeypatch.setattr("overnight.store.postgres.RECONNECT_S", 2)
    store = open_store(url)
    job_id = make_job(store)
    await warm(store, job_id)
    with kept_from_answering(trouble, url):
        waiting = [store.submit(note(job_id, f"first {n}")) for n in range(3)]
        await asyncio.sleep(0.1)
        waiting += [store.submit(note(job_id, f"then {n}")) for n in range(3)]
        await asyncio.sleep(0.05)
        async with asyncio.timeout(20):
            await asyncio.to_thread(store.close)
            outcomes: list[Any] = await asyncio.gather(*waiting, return_exceptions=True)
    if trouble == "stopped backends":  # the server goes on: what is written on a new connection may come through
        assert {type(outcome) for outcome in outcomes} <= {StoreUnavailable, int}
    else:
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}


async def test_reading_a_stopped_server_ends_in_time(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.store.store.READ_TIMEOUT_S", 0.5)
    loop = asyncio.get_running_loop()
    with open_store(postgres_url) as store:
        job_id = make_job(store)
        ledger = Ledger(store)
        await asyncio.gather(*(ledger.events(job_id) for _ in range(6)))
        async with heart() as found:
            with stopped_server(postgres_url):
                began = time.monotonic()
                asked = {"job_id": job_id}
                reads = [store.read(LEDGER_SQL["list_children"], asked, until=loop.time() + 0.3) for _ in range(6)]
                reads += [store.read(LEDGER_SQL["list_children"], asked) for _ in range(6)]
                outcomes = await asyncio.gather(*reads, return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
                assert time.monotonic() - began < 2
        assert found.longest < LONGEST_GAP_S
        async with asyncio.timeout(20):
            while True:
                try:
                    assert len(await ledger.events(job_id)) == 1
                    break
                except StoreUnavailable:  # the server wakes up
                    await asyncio.sleep(0.05)
