"""The contract of the store, on both databases: what is acknowledged is durable, and one caller's trouble is his alone."""

import asyncio
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest

from machine_parts import UnderJob, all_of, half_a_change, make_job, names, note, program
from overnight.domain import Event, Fenced, NotFound, StoreUnavailable, new_id
from overnight.ledger import EXTERNAL, JobRow, Ledger, append
from overnight.store import Store, Unit, open_store
from overnight.store.writer import LARGEST_BATCH, LONGEST_QUEUE

# ── durability ───────────────────────────────────────────────────────────────────────────────────────────────────────

WRITES_AND_TELLS = """
import asyncio, sys
from machine_parts import note
from overnight.store import open_store
url, job_id = sys.argv[1:]
async def main():
    with open_store(url) as store:
        for first in range(0, 100_000, 5):
            markers = range(first, first + 5)
            await asyncio.gather(*(store.commit(note(job_id, marker)) for marker in markers))
            print(*markers, flush=True)
asyncio.run(main())
"""


def test_what_is_acknowledged_is_durable(store: Store, store_url: str) -> None:
    """Another process sees each commit as soon as it is acknowledged, and kill -9 loses none of them."""
    job_id = make_job(store)
    acknowledged: set[str] = set()
    with program(WRITES_AND_TELLS, store_url, job_id) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            acknowledged.update(writer.stdout.readline().split())
            assert acknowledged <= set(names(store_url, job_id))
        writer.kill()
        acknowledged.update(writer.stdout.read().rpartition("\n")[0].split())
    assert len(acknowledged) >= 100
    with open_store(store_url) as reopened:
        assert reopened.commit_blocking(note(job_id, "after")) > len(acknowledged)
    written = names(store_url, job_id)
    assert acknowledged <= set(written)
    assert max(Counter(written).values()) == 1


WRITES_MANY = """
import asyncio, sys
from machine_parts import note
from overnight.store import open_store
url, job_id, mine = sys.argv[1:]
async def main():
    with open_store(url) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        seqs = await asyncio.gather(*(store.commit(note(job_id, f"{mine}-{n}")) for n in range(400)))
        assert seqs == sorted(seqs), "commands of one caller are decided in the order in which they came"
asyncio.run(main())
"""


def test_two_processes_write_one_database(store: Store, store_url: str) -> None:
    job_id = make_job(store)
    with program(WRITES_MANY, store_url, job_id, "a") as one, program(WRITES_MANY, store_url, job_id, "b") as other:
        for process in (one, other):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
        for process in (one, other):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in (one, other):
            assert (process.wait(60), process.stderr.read() if process.stderr else "") == (0, "")
    written = names(store_url, job_id)  # asserts that seq is dense
    assert sorted(written) == sorted(f"{who}-{n}" for who in "ab" for n in range(400))


# ── one caller's trouble is his alone ────────────────────────────────────────────────────────────────────────────────


async def test_refused_items_do_not_disturb_the_others(store: Store, store_url: str) -> None:
    job_id = make_job(store)
    kinds = {
        "good": lambda n: note(job_id, n),
        "fenced": lambda n: note(job_id, n, lease_epoch=7),
        "missing": lambda n: note(new_id("job"), n),
    }
    order = ["good", "fenced", "good", "missing"] * 50
    outcomes = await all_of(store, (kinds[kind](n) for n, kind in enumerate(order)))
    wanted = {"good": int, "fenced": Fenced, "missing": NotFound}
    assert [type(outcome) for outcome in outcomes] == [wanted[kind] for kind in order]
    assert names(store_url, job_id) == [str(n) for n, kind in enumerate(order) if kind == "good"]
    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == list(range(2, 102))


FAULTS = [KeyError("x"), ZeroDivisionError("x"), RuntimeError("x"), AttributeError("x"), UnicodeError("x")]


@pytest.mark.parametrize("how_many", [1, 12])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_a_faulty_command_hits_only_its_caller(
    store: Store, store_url: str, fault: Exception, how_many: int
) -> None:
    job_id, broken = make_job(store), make_job(store)
    commands = [
        command for n in range(how_many) for command in (note(job_id, n), half_a_change(broken, fault), note(broken, n))
    ]
    async with asyncio.timeout(20):
        outcomes = await all_of(store, commands)
    assert [outcome for outcome in outcomes if not isinstance(outcome, int)] == [fault] * how_many
    assert names(store_url, job_id) == names(store_url, broken) == [str(n) for n in range(how_many)]
    assert (await Ledger(store).job(broken)).state == "queued"
    assert await store.commit(note(job_id, "still there")) == how_many + 2


async def test_a_command_that_forgot_a_lock_hits_only_itself(store: Store, store_url: str) -> None:
    job_id, other = make_job(store), make_job(store)
    forgot = UnderJob(job_id, lambda unit, job: unit.get(EXTERNAL, ("default", other)))
    outcomes = await all_of(store, [note(job_id, 1), forgot, note(job_id, 2)])
    assert [type(outcome) for outcome in outcomes] == [int, KeyError, int]
    assert names(store_url, job_id) == ["1", "2"]


async def test_a_caller_that_gives_up_disturbs_nobody(store: Store, store_url: str) -> None:
    job_id = make_job(store)
    tasks = [asyncio.create_task(store.commit(note(job_id, n))) for n in range(100)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(not task.cancelled() for task in tasks[1::2])
    written = names(store_url, job_id)
    assert {str(n) for n in range(1, 100, 2)} <= set(written)
    assert len(written) == len(set(written))


# ── order ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_seq_is_dense_under_concurrency(store: Store, store_url: str) -> None:
    """Two stores, two event loops and plain threads write to the same jobs at once."""
    jobs = [make_job(store) for _ in range(3)]
    with open_store(store_url) as other:

        def in_another_loop() -> None:
            asyncio.run(asyncio.wait_for(all_of(other, [note(job, f"l{n}") for n in range(100) for job in jobs]), 60))

        def without_a_loop(chosen: Store) -> None:
            for n in range(25):
                for job in jobs:
                    chosen.commit_blocking(note(job, f"t{n}"))

        with ThreadPoolExecutor(4) as pool:
            others = [pool.submit(in_another_loop), *(pool.submit(without_a_loop, each) for each in (store, other))]
            outcomes = await all_of(store, [note(job, f"m{n}") for n in range(200) for job in jobs])
            await asyncio.gather(*(asyncio.wrap_future(each) for each in others))
    assert all(isinstance(outcome, int) for outcome in outcomes)
    for job in jobs:
        counts = Counter(names(store_url, job))
        assert counts == {f"m{n}": 1 for n in range(200)} | {f"l{n}": 1 for n in range(100)} | {
            f"t{n}": 2 for n in range(25)
        }


async def test_answers_come_in_the_order_of_their_commits(store: Store) -> None:
    """Recovery hands answers on in recorded order, so a live caller must not hear of a later commit first."""
    job_id = make_job(store)
    heard: list[int] = []
    release, held = threading.Event(), threading.Event()

    def hold(unit: Unit, job: JobRow) -> None:
        held.set()
        release.wait(20)

    def submit() -> "asyncio.Future[int]":
        future = store.submit(note(job_id, "x"))
        future.add_done_callback(lambda done: heard.append(done.result()))
        return future

    for n in range(50):
        await store.commit(note(job_id, n))  # the store learns how quick a flush is here
    for _ in range(3):
        release.clear()
        held.clear()
        blocker = asyncio.create_task(asyncio.to_thread(store.commit_blocking, UnderJob(job_id, hold)))
        while not held.is_set():
            await asyncio.sleep(0.001)
        first = submit()  # the writer is busy, so this one stands in its line
        await asyncio.sleep(0.01)
        second = submit()
        release.set()
        time.sleep(0.05)  # a busy loop: the first is durable before anything can be handed on
        await asyncio.gather(first, second, blocker)
    assert len(heard) == 6
    assert heard == sorted(heard)


# ── back-pressure and closing ────────────────────────────────────────────────────────────────────────────────────────


async def test_twenty_thousand_commits_at_once(store: Store, store_url: str) -> None:
    """Callers wait, batches and the line stay bounded, and nothing is dropped."""
    job_id = make_job(store)
    together: Counter[int] = Counter()
    longest = 0

    def act(unit: Unit, job: JobRow) -> int:
        together[unit.now] += 1
        return append(unit, job, Event("value_recorded", name=str(job.last_seq)))

    async def watch() -> None:
        nonlocal longest
        while True:
            longest = max(longest, store.writer.waiting)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    async with asyncio.timeout(100):
        outcomes = await all_of(store, (UnderJob(job_id, act) for _ in range(20_000)))
    watching.cancel()
    assert sorted(outcomes) == list(range(2, 20_002))
    assert longest <= LONGEST_QUEUE
    assert max(together.values()) <= LARGEST_BATCH
    assert len(together) < 20_000 / LARGEST_BATCH * 4, "under load the batches are full"


@asynccontextmanager
async def full_line(store: Store, job_id: str) -> AsyncIterator[list["asyncio.Future[int]"]]:
    """The writer is kept busy and its line is full; the block's end lets it go on."""
    release, held = threading.Event(), threading.Event()

    def hold(unit: Unit, job: JobRow) -> None:
        held.set()
        release.wait(20)

    blocker = asyncio.create_task(asyncio.to_thread(store.commit_blocking, UnderJob(job_id, hold)))
    while not held.is_set():
        await asyncio.sleep(0.001)
    line = [store.submit(note(job_id, n)) for n in range(LONGEST_QUEUE)]
    try:
        yield line
    finally:
        release.set()
    await asyncio.gather(blocker, *line)


async def test_callers_of_another_loop_get_room_too(store: Store) -> None:
    job_id = make_job(store)

    async def crowd() -> list[Any]:
        return await asyncio.wait_for(all_of(store, [note(job_id, n) for n in range(100)]), 20)

    with ThreadPoolExecutor(1) as pool:
        async with full_line(store, job_id):
            other = pool.submit(lambda: asyncio.run(crowd()))
            await asyncio.sleep(0.1)
        outcomes = await asyncio.wrap_future(other)
    assert len({outcome for outcome in outcomes if isinstance(outcome, int)}) == 100


@pytest.mark.parametrize("when", ["before he hears of it", "as he hears of it"])
async def test_a_waiting_caller_that_gives_up_passes_his_turn_on(
    store: Store, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.store.writer.LONGEST_QUEUE", 4)
    monkeypatch.setattr(sys.modules[__name__], "LONGEST_QUEUE", 3)
    job_id = make_job(store)
    async with full_line(store, job_id):
        waiting = [asyncio.create_task(store.commit(note(job_id, n))) for n in range(20)]
        await asyncio.sleep(0.05)

        def give_up(_: object = None) -> None:
            for task in waiting[:-1]:
                task.cancel()

        last = store.submit(note(job_id, "last in line"))
        if when == "before he hears of it":
            last.add_done_callback(give_up)
        else:
            # Tasks step in the order in which they were woken: this one just before the callers that were given room.
            last.add_done_callback(lambda _: asyncio.get_running_loop().call_soon(give_up))
    async with asyncio.timeout(20):
        assert isinstance(await waiting[-1], int)


@pytest.mark.parametrize("how", ["commit", "ride", "blocking", "ride and commit"])
async def test_closing_writes_what_is_in_line_and_ends(store_url: str, how: str) -> None:
    store = open_store(store_url)
    job_id = make_job(store)
    for n in range(20):
        await store.commit(note(job_id, n))
    waiting: list[asyncio.Future[Any]] = []
    if "ride" in how:
        waiting.append(store.ride(note(job_id, "ridden")))
    if "commit" in how:
        waiting.append(store.submit(note(job_id, "committed")))
    if how == "blocking":
        waiting.append(asyncio.ensure_future(asyncio.to_thread(store.commit_blocking, note(job_id, "blocked"))))
        await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await asyncio.to_thread(store.close) if how == "blocking" else store.close()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    written = names(store_url, job_id)
    assert len(written) == 20 + sum(isinstance(outcome, int) for outcome in outcomes)
    if how != "blocking":
        assert len(written) == 20 + len(waiting)
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.commit(note(job_id, "late"))
    assert not [thread for thread in threading.enumerate() if thread is store.writer._thread]


async def test_a_loop_that_has_closed_costs_nobody_anything(store: Store, store_url: str) -> None:
    job_id = make_job(store)

    async def submits_and_ends() -> None:
        store.submit(note(job_id, "orphan"))
        store.ride(note(job_id, "ridden"))

    await asyncio.to_thread(lambda: asyncio.run(submits_and_ends()))
    async with asyncio.timeout(20):
        outcomes = await all_of(store, [note(job_id, n) for n in range(50)])
    assert all(isinstance(outcome, int) for outcome in outcomes)
    assert set(names(store_url, job_id)) >= {str(n) for n in range(50)}
