"""The store on both databases: acknowledged writes are durable, and errors reach only their caller."""

import asyncio
import contextlib
import gc
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import psycopg
import pytest

from machine_parts import Open, UnderJob, all_of, half_a_change, make_job, names, newjob, note, program, rows
from overnight.domain import BadInput, Conflict, Event, Fenced, NotFound, StoreUnavailable, new_id
from overnight.ledger import EXTERNAL, JOB, LEDGER_SQL, JobRow, Ledger, append
from overnight.store import Store, Unit, open_store
from overnight.store.migration_runner import migrations
from overnight.store.unit import BatchTimeout
from overnight.store.writer import MAX_BATCH, MAX_QUEUE

# ── durability ───────────────────────────────────────────────────────────────────────────────────────────────────────

WRITES_AND_TELLS = """
import asyncio, sys
from machine_parts import Open, UnderJob, all_of, half_a_change, make_job, names, newjob, note, program, rows
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


def test_acknowledged_writes_are_durable(store: Store, store_url: str) -> None:
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
from machine_parts import Open, UnderJob, all_of, half_a_change, make_job, names, newjob, note, program, rows
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


async def test_rejected_commands_do_not_affect_others(store: Store, store_url: str) -> None:
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
async def test_faulty_command_affects_only_its_caller(
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


async def test_command_without_its_lock_affects_only_itself(store: Store, store_url: str) -> None:
    job_id, other = make_job(store), make_job(store)
    forgot = UnderJob(job_id, lambda unit, job: unit.get(EXTERNAL, ("default", other)))
    outcomes = await all_of(store, [note(job_id, 1), forgot, note(job_id, 2)])
    assert [type(outcome) for outcome in outcomes] == [int, KeyError, int]
    assert names(store_url, job_id) == ["1", "2"]


async def test_cancelled_caller_does_not_affect_others(store: Store, store_url: str) -> None:
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


async def test_outcomes_arrive_in_commit_order(store: Store) -> None:
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
    assert longest <= MAX_QUEUE
    assert max(together.values()) <= MAX_BATCH
    assert len(together) < 20_000 / MAX_BATCH * 4, "under load the batches are full"


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
    line = [store.submit(note(job_id, n)) for n in range(MAX_QUEUE)]
    try:
        yield line
    finally:
        release.set()
    await asyncio.gather(blocker, *line)


async def test_callers_of_another_loop_are_served(store: Store) -> None:
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
async def test_cancelled_waiting_caller_passes_its_turn(
    store: Store, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.store.writer.MAX_QUEUE", 4)
    monkeypatch.setattr(sys.modules[__name__], "MAX_QUEUE", 3)
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


async def test_closing_releases_all_resources(store_url: str) -> None:
    """Files, sockets and threads: a process may open and close as many stores as it likes."""

    async def use() -> None:
        with open_store(store_url) as store:
            job_id = make_job(store)
            await asyncio.gather(*(Ledger(store).events(job_id) for _ in range(8)))
            await asyncio.to_thread(store.read_blocking, LEDGER_SQL["list_children"], {"job_id": job_id})
            store.read_blocking(LEDGER_SQL["list_children"], {"job_id": job_id})

    gc.disable()
    try:
        await use()
        before = (len(os.listdir("/proc/self/fd")), threading.active_count())
        for _ in range(5):
            await use()
        assert (len(os.listdir("/proc/self/fd")), threading.active_count()) <= before
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["commit", "ride", "blocking", "ride and commit"])
async def test_closing_writes_the_queue_and_ends(store_url: str, how: str) -> None:
    store = open_store(store_url)
    job_id = make_job(store)
    for n in range(20):
        await store.commit(note(job_id, n))
    waiting: list[asyncio.Future[Any]] = []
    if "ride" in how:
        waiting.append(store.defer(note(job_id, "ridden")))
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


async def test_closed_loop_does_not_affect_others(store: Store, store_url: str) -> None:
    job_id = make_job(store)

    async def submits_and_ends() -> None:
        store.submit(note(job_id, "orphan"))
        store.defer(note(job_id, "ridden"))

    await asyncio.to_thread(lambda: asyncio.run(submits_and_ends()))
    async with asyncio.timeout(20):
        outcomes = await all_of(store, [note(job_id, n) for n in range(50)])
    assert all(isinstance(outcome, int) for outcome in outcomes)
    assert set(names(store_url, job_id)) >= {str(n) for n in range(50)}


# ── what one caller writes ───────────────────────────────────────────────────────────────────────────────────────────


UNWRITABLE = {
    "a lone surrogate": {"actor": "\ud800"},
    "a number past 64 bits": {"wake_at": 2**70},
}


@pytest.mark.parametrize("what", UNWRITABLE)
async def test_unstorable_value_affects_only_its_caller(store: Store, store_url: str, what: str) -> None:
    job_id, other = make_job(store), make_job(store)

    def act(unit: Unit, job: JobRow) -> None:
        for name, value in UNWRITABLE[what].items():
            if name == "actor":
                job.lease_owner = value
            else:
                setattr(job, name, value)
        unit.change(JOB, job)

    commands = [*(note(job_id, n) for n in range(30)), UnderJob(other, act), *(note(job_id, n) for n in range(30, 60))]
    outcomes = await all_of(store, commands)
    assert [type(outcome) for outcome in outcomes] == [int] * 30 + [BadInput] + [int] * 30
    assert names(store_url, job_id) == [str(n) for n in range(60)]
    assert (await Ledger(store).job(other)).lease_owner is None


async def test_text_from_outside_cannot_break_a_batch(store: Store, store_url: str) -> None:
    """A NUL character is text for one database and refused by the other; neither lets it out on others."""
    job_id = make_job(store)
    outcomes = await all_of(
        store, [note(job_id, 1), Open(newjob(external_id="a\x00b")), note(job_id, "n\x00l"), note(job_id, 2)]
    )
    assert isinstance(outcomes[1], BadInput | tuple)
    assert outcomes[::3] == [2, 4]
    assert names(store_url, job_id) == ["1", "n\x00l", "2"]


# ── two writers ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_concurrent_creation_makes_one_job(store: Store, store_url: str) -> None:
    wanted = [f"mail-{n % 40}" for n in range(160)]
    with open_store(store_url) as other:
        asked = [all_of(each, [Open(newjob(external_id=name)) for name in wanted]) for each in (store, other)]
        mine, theirs = await asyncio.gather(*asked)
    found: dict[str, set[str]] = {}
    fresh: Counter[str] = Counter()
    for name, outcome in zip(wanted * 2, mine + theirs, strict=True):
        assert isinstance(outcome, tuple), outcome
        found.setdefault(name, set()).add(outcome[0])
        fresh[name] += outcome[1]
    assert all(len(ids) == 1 for ids in found.values())
    assert fresh == {f"mail-{n}": 1 for n in range(40)}
    assert rows(store_url, "SELECT count(*) FROM job") == [(40,)]
    assert rows(store_url, "SELECT count(*) FROM event") == [(40,)]


async def test_same_external_id_with_other_input_is_a_conflict(store: Store) -> None:
    first = await store.commit(Open(newjob(external_id="x", input=b"1")))
    with pytest.raises(Conflict, match="x exists already"):
        await store.commit(Open(newjob(external_id="x", input=b"2")))
    assert (await store.commit(Open(newjob(external_id="x", input=b"1")))) == (first[0], False)
    other = await store.commit(Open(newjob("another", external_id="x", input=b"2")))
    assert other[1], "tenants have identifiers of their own"


async def test_lost_connections_lose_and_repeat_nothing(postgres_url: str) -> None:
    """Backends die while commits run: what is acknowledged is there once, and what failed is not there."""
    stop = threading.Event()
    killed = 0

    def kill() -> None:
        nonlocal killed
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            while not stop.is_set():
                killed += connection.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
                ).fetchone()[0]  # type: ignore[index]
                time.sleep(random.uniform(0.001, 0.02))

    acknowledged: list[str] = []
    refused: list[str] = []
    with open_store(postgres_url) as store, ThreadPoolExecutor(1) as pool:
        jobs = [make_job(store) for _ in range(4)]
        killing = pool.submit(kill)

        async def write(worker: int) -> None:
            n = 0
            while n < 40 or killed < 15:
                n += 1
                marker = f"{worker}-{n}"
                try:
                    await store.commit(note(jobs[worker % 4], marker))
                except StoreUnavailable as error:
                    refused.append(f"{marker}: {error}")
                else:
                    acknowledged.append(marker)

        try:
            await asyncio.gather(*(write(worker) for worker in range(16)))
        finally:
            stop.set()
        killing.result()
    assert len(acknowledged) >= 16 * 40 - len(refused)
    written = Counter(name for job_id in jobs for name in names(postgres_url, job_id))
    assert written == dict.fromkeys(acknowledged, 1), refused


async def test_a_transaction_unknown_to_a_new_primary_is_written_again(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from overnight.store.postgres import PostgresSession

    # It replaces a transaction: the failover of a PostgreSQL cluster cannot be made in a short test.
    transaction, lost = PostgresSession.transaction, ["9999999999"]  # a transaction id of the lost server

    @contextlib.contextmanager
    def broken_off(self: PostgresSession, until: float | None = None) -> Iterator[PostgresSession]:
        if lost:
            raise BatchTimeout(lost.pop())
        with transaction(self, until) as session:
            yield session

    with open_store(postgres_url) as store:
        job_id = make_job(store)
        monkeypatch.setattr(PostgresSession, "transaction", broken_off)
        async with asyncio.timeout(10):
            for marker in ("first", "second"):
                await store.commit(note(job_id, marker))
        assert names(postgres_url, job_id) == ["first", "second"]


@pytest.mark.parametrize("where", ["run", "finish"])
async def test_fault_in_the_writing_thread_fails_one_batch(
    store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from overnight.store.batches import Batches

    job_id = make_job(store)
    # It replaces a method of the writer: only a programming error raises these exceptions there.
    method, faults = getattr(Batches, where), [ZeroDivisionError("a fault"), RuntimeError("another")]

    def faulty(self: Batches, *args: Any) -> None:
        if faults:
            raise faults.pop()
        method(self, *args)

    monkeypatch.setattr(Batches, where, faulty)
    if where == "finish":  # as the loop leaves a batch to the thread
        monkeypatch.setattr("overnight.store.batches.QUICK_FLUSH_S", 10.0)
        monkeypatch.setattr(
            Batches, "run", lambda self, session, batch, until=None: self._callers.hand_over((batch, None))
        )
    async with asyncio.timeout(10):
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=r"fault|another"):
                await asyncio.to_thread(store.commit_blocking, note(job_id, "failed"))
        assert store.writer.waiting == 0
        monkeypatch.undo()
        await store.commit(note(job_id, "written"))
    assert names(store_url, job_id) == ["written"]
    assert store.writer.waiting == 0


async def test_reading_survives_a_lost_connection(postgres_url: str) -> None:
    with open_store(postgres_url) as store:
        job_id = make_job(store)
        ledger = Ledger(store)
        for _ in range(3):
            assert len(await ledger.events(job_id)) == 1
            rows(
                postgres_url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
        assert (await ledger.job(job_id)).job_id == job_id


async def test_concurrent_equal_messages_do_not_block(postgres_url: str) -> None:
    """Rows are written in one global order, so no transaction has to be sacrificed (a second's wait each)."""
    from overnight.ledger import KnownContent, address_chain, store_blob, store_chain

    def conversation(job_id: str, numbers: list[int]) -> UnderJob:
        links = address_chain([b"message %d" % n for n in numbers])

        def act(unit: Unit, job: JobRow) -> None:
            for number in numbers:
                store_blob(unit, "default", b"blob %d" % number)
            store_chain(unit, "default", links, KnownContent())

        return UnderJob(job_id, act)

    with open_store(postgres_url) as one, open_store(postgres_url) as other:
        jobs = [make_job(one), make_job(one)]
        for n in range(30):
            numbers = list(range(n * 40, n * 40 + 40))
            await asyncio.gather(
                all_of(one, [conversation(jobs[0], numbers)]), all_of(other, [conversation(jobs[1], numbers[::-1])])
            )
    time.sleep(0.1)
    assert rows(postgres_url, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]


# ── no room ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Disk:
    """The room a SQLite database may take, on every connection that is opened from now on."""

    def __init__(self) -> None:
        self.connections: list[apsw.Connection] = []

    def allow(self, pages: int) -> None:
        for connection in self.connections:
            with contextlib.suppress(apsw.ConnectionClosedError):
                connection.execute(f"PRAGMA max_page_count={pages}").fetchall()


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    apsw.connection_hooks.append(disk.connections.append)  # type: ignore[arg-type]
    yield disk
    apsw.connection_hooks.remove(disk.connections.append)  # type: ignore[arg-type]


async def test_full_disk_rejects_writes_until_space_is_free(tmp_path: Path, disk: Disk) -> None:
    url = str(tmp_path / "ledger.db")
    with open_store(url) as store:
        jobs = [make_job(store) for _ in range(3)]
        for n in range(30):
            await store.commit(note(jobs[0], n))
        disk.allow(1)  # no more than it has
        big = b'"' + b"x" * 50_000 + b'"'
        outcomes = await all_of(store, [note(job_id, n, content=big) for n in range(20) for job_id in jobs])
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        assert all("full" in str(outcome) and url in str(outcome) for outcome in outcomes)
        assert len(await Ledger(store).events(jobs[0])) == 31, "reading works meanwhile"
        outcomes = await all_of(store, [note(jobs[1], "again", content=big)])
        assert isinstance(outcomes[0], StoreUnavailable)
        disk.allow(1_000_000)
        outcomes = await all_of(store, [note(job_id, n, content=big) for n in range(20) for job_id in jobs])
        assert all(isinstance(outcome, int) for outcome in outcomes)
    assert [len(names(url, job_id)) for job_id in jobs] == [50, 20, 20]
    assert rows(url, "PRAGMA integrity_check") == [("ok",)]


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "url", ["mysql://ann:hunter2@db/x", "sqlite://ledger.db", "postgres+psycopg://ann:hunter2@db/x"]
)
def test_an_unknown_scheme_is_one_clear_error(url: str) -> None:
    with pytest.raises(
        BadInput, match=r"DATABASE_URL: unsupported scheme .*://; use postgresql://… or sqlite:///PATH"
    ) as told:
        open_store(url)
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:hunter2@127.0.0.1:1/x",
        "postgresql://ann:hunter2%zz@127.0.0.1:1/x",
        "postgresql://ann:hunter2@127.0.0.1:port/x",
        "postgresql://ann:hunter2@[::1/x",
        "postgresql://ann:hunter2@127.0.0.1:1/x?connect_timeout=hunter2",
        "postgresql://ann:ab/hunter2@127.0.0.1:1/x",
        "postgresql://ann:p@hunter2@127.0.0.1:1/x",
    ],
)
def test_errors_contain_no_password(url: str) -> None:
    with pytest.raises((BadInput, StoreUnavailable), match="DATABASE_URL") as told:
        open_store(url)
    shown: BaseException | None = told.value
    while shown is not None:
        assert "hunter2" not in str(shown)
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)


OPENS_AS_NOBODY = """
import os, sys, traceback
from overnight.domain import OvernightError
from overnight.store import open_store
import overnight.store.sqlite
os.setuid(65534)
try:
    open_store(sys.argv[1])
except OvernightError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give up its rights")
@pytest.mark.parametrize("what", ["no folder", "empty folder", "closed folder", "read-only files"])
def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path, what: str) -> None:
    for parent in (tmp_path, *tmp_path.parents):
        if parent != Path("/"):
            with contextlib.suppress(PermissionError):
                parent.chmod(parent.stat().st_mode | 0o055)
    home = tmp_path / "home"
    file = home / "ledger.db"
    if what != "no folder":
        home.mkdir(mode=0o755)
    if what in {"closed folder", "read-only files"}:
        open_store(str(file)).close()
    if what == "closed folder":
        home.chmod(0o700)
    with program(OPENS_AS_NOBODY, str(file)) as process:
        out, errors = process.communicate(timeout=60)
    assert errors == ""
    assert out.startswith(("BadInput", "StoreUnavailable"))
    assert out.count("\n") == 1
    assert str(home) in out
    assert "OVERNIGHT_HOME" in out


def test_non_database_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("This is a letter and no database. " * 200)
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "file").write_text("")
    for path in ("text.db", "folder.db", "file/ledger.db"):
        with pytest.raises((BadInput, StoreUnavailable), match=path.split("/")[0]):
            open_store(str(tmp_path / path))


def test_newer_schema_is_rejected_and_unchanged(store_url: str) -> None:
    open_store(store_url).close()
    newest = migrations("postgres" if "://" in store_url else "sqlite")[-1][0]
    sql = f"INSERT INTO schema_migration VALUES ({newest + 1}, 0)"
    if "://" in store_url:
        with psycopg.connect(store_url, autocommit=True) as connection:
            connection.execute(sql)  # type: ignore[arg-type]
    else:
        apsw.Connection(store_url).execute(sql)
    with pytest.raises(
        StoreUnavailable, match=f"schema {newest + 1}, this version supports {newest}: upgrade overnight"
    ):
        open_store(store_url)
    assert rows(store_url, "SELECT count(*) FROM job") == [(0,)]


OPENS = """
import sys
from overnight.store import open_store
import overnight.store.sqlite, overnight.store.postgres
for line in sys.stdin:
    try:
        open_store(line.strip()).close()
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    else:
        print("opened", flush=True)
"""


def test_concurrent_opens_migrate_once(tmp_path: Path, store_url: str, request: pytest.FixtureRequest) -> None:
    urls = [store_url] if "://" in store_url else [str(tmp_path / f"{n}.db") for n in range(15)]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(program(OPENS)) for _ in range(4)]
        for url in urls:
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(url + "\n")
            for process in processes:
                process.stdin.flush()  # type: ignore[union-attr]
            assert [process.stdout.readline() for process in processes] == ["opened\n"] * 4  # type: ignore[union-attr]
            applied = rows(url, "SELECT version FROM schema_migration ORDER BY version")
            assert applied == [(n,) for n, _ in migrations("postgres" if "://" in url else "sqlite")]


async def test_concurrent_processes_create_a_month_once(store_url: str) -> None:
    """Partitions are made at the first write of a month, by whoever comes first."""
    at = [1_800_000_000_000_000]
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(open_store(store_url, lambda: at[0])) for _ in range(3)]
        jobs = [make_job(store) for store in stores]
        for _ in range(4):
            at[0] += 32 * 86_400 * 1_000_000
            outcomes = await asyncio.gather(
                *(all_of(store, [note(job_id, n) for n in range(20)]) for store in stores for job_id in jobs)
            )
            assert all(isinstance(each, int) for outcome in outcomes for each in outcome)
    for job_id in jobs:
        assert len(names(store_url, job_id)) == 3 * 4 * 20
