"""A caller that stops waiting: its command is skipped, or `left` receives the outcome."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from machine_parts import UnderJob, make_job, names, note
from overnight.domain import Fenced, StoreUnavailable
from overnight.ledger import JobRow
from overnight.store import Store, Unit


class Hold:
    """A decision that stands still until it is released. `then` is what it does after that."""

    def __init__(self, job_id: str, then: Any = None) -> None:
        self.reached, self.release, self.then = threading.Event(), threading.Event(), then
        self.command = UnderJob(job_id, self.decide)

    def decide(self, unit: Unit, job: JobRow) -> Any:
        self.reached.set()
        self.release.wait(20)
        return None if self.then is None else self.then(unit)


async def reached(hold: Hold) -> None:
    async with asyncio.timeout(20):
        while not hold.reached.is_set():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def busy(store: Store, job_id: str) -> AsyncIterator[Hold]:
    """The writer decides in its thread what stands still; the block's end lets it go on and waits for it."""
    hold = Hold(job_id)
    task = asyncio.create_task(asyncio.to_thread(store.commit_blocking, hold.command))
    await reached(hold)
    try:
        yield hold
    finally:
        hold.release.set()
        await task


async def leaves(task: "asyncio.Task[Any]", how: str) -> None:
    """The caller's time is over, or its task is cancelled."""
    if how == "cancelled":
        await asyncio.sleep(0.02)
        task.cancel()
    with pytest.raises(StoreUnavailable if how == "out of time" else asyncio.CancelledError):
        await task


def asks(store: Store, command: Any, how: str, left: list[Any], seconds: float = 0.05) -> "asyncio.Task[Any]":
    until = asyncio.get_running_loop().time() + (seconds if how == "out of time" else 20)
    return asyncio.create_task(store.commit(command, until=until, on_late_commit=left.append))


WAYS = pytest.mark.parametrize("how", ["out of time", "cancelled"])


async def test_commit_in_time_is_an_ordinary_commit(store: Store, store_url: str) -> None:
    job_id, left = make_job(store), []
    loop = asyncio.get_running_loop()
    outcomes = [
        await store.commit(note(job_id, n), until=loop.time() + 20, on_late_commit=left.append) for n in range(3)
    ]
    outcomes.append(await store.commit(note(job_id, 3), on_late_commit=left.append))
    assert outcomes == [2, 3, 4, 5]
    with pytest.raises(Fenced):
        await store.commit(note(job_id, 4, lease_epoch=7), until=loop.time() + 20, on_late_commit=left.append)
    assert left == []
    assert names(store_url, job_id) == ["0", "1", "2", "3"]


@WAYS
async def test_queued_command_is_skipped(store: Store, store_url: str, how: str) -> None:
    job_id, left = make_job(store), []
    async with busy(store, job_id):
        task = asks(store, note(job_id, "late"), how, left)
        await leaves(task, how)
        after = asyncio.create_task(store.commit(note(job_id, "after")))
        await asyncio.sleep(0)
    assert await after == 2
    assert names(store_url, job_id) == ["after"]
    assert (left, store.writer.waiting) == ([], 0)


@WAYS
async def test_outcome_of_a_running_command_reaches_its_callback(store: Store, store_url: str, how: str) -> None:
    job_id, left = make_job(store), []
    hold = Hold(job_id, lambda unit: note(job_id, "late").decide(unit))
    async with busy(store, job_id) as first:
        task = asks(store, hold.command, how, left, seconds=0.5)
        await asyncio.sleep(0.02)  # it stands in the line of the busy writer
        first.release.set()
        await reached(hold)
        await leaves(task, how)
        assert left == []
        hold.release.set()
    await store.commit(note(job_id, "after"))
    await asyncio.sleep(0)
    assert names(store_url, job_id)[-2:] == ["late", "after"]
    assert left == [names(store_url, job_id).index("late") + 2]


async def test_cancelled_after_commit_before_waking(store: Store, store_url: str) -> None:
    job_id, left = make_job(store), []
    for n in range(20):
        await store.commit(note(job_id, n))  # the store learns how quick a flush is here
    task: asyncio.Task[Any] | None = None

    def cancel(_: object) -> None:
        assert task is not None
        task.cancel()

    # Answers are handed on in order: the cancellation comes between the outcome of `task` and its next step.
    store.submit(note(job_id, "first")).add_done_callback(cancel)
    task = asks(store, note(job_id, "late"), "cancelled", left)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await store.commit(note(job_id, "after"))
    await asyncio.sleep(0)
    assert names(store_url, job_id)[-2:] == ["late", "after"] or "late" not in names(store_url, job_id)
    if task.cancelled():
        assert len(left) == names(store_url, job_id).count("late")


async def test_expired_deadline_writes_nothing(store: Store, store_url: str) -> None:
    job_id, left = make_job(store), []
    with pytest.raises(StoreUnavailable):
        await store.commit(
            note(job_id, "late"), until=asyncio.get_running_loop().time() - 1, on_late_commit=left.append
        )
    assert await store.commit(note(job_id, "after")) == 2
    assert left == []


async def test_wait_for_the_queue_times_out(store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.store.writer.MAX_QUEUE", 3)
    job_id, left = make_job(store), []
    async with busy(store, job_id):
        line = [store.submit(note(job_id, n)) for n in range(2)]
        tasks = [asks(store, note(job_id, "late"), "out of time", left) for _ in range(5)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    assert await asyncio.gather(*line) == [2, 3]
    assert (names(store_url, job_id), left, store.writer.waiting) == (["0", "1"], [], 0)


async def test_command_cancelled_between_attempts_is_skipped(store: Store, store_url: str) -> None:
    """A faulty command makes the batch start over; who has left by then is not decided again."""
    job_id, left = make_job(store), []

    def fail(unit: Unit) -> None:
        raise KeyError("a fault of the rule")

    faulty = Hold(job_id, fail)
    async with busy(store, job_id):
        others = [store.submit(note(job_id, "before")), store.submit(faulty.command), store.submit(note(job_id, "z"))]
        task = asks(store, note(job_id, "late"), "cancelled", left)
        await asyncio.sleep(0.02)
    await reached(faulty)
    await leaves(task, "cancelled")
    faulty.release.set()
    outcomes = await asyncio.gather(*others, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [int, KeyError, int]
    assert (names(store_url, job_id), left, store.writer.waiting) == (["before", "z"], [], 0)


async def test_rejected_command_does_not_call_its_callback(store: Store, store_url: str) -> None:
    job_id, left = make_job(store), []

    def refuse(unit: Unit) -> None:
        raise Fenced("another attempt holds the job")

    hold = Hold(job_id, refuse)
    async with busy(store, job_id):
        task = asks(store, hold.command, "cancelled", left)
        await asyncio.sleep(0.02)
    await reached(hold)
    await leaves(task, "cancelled")
    hold.release.set()
    assert await store.commit(note(job_id, "after")) == 2
    await asyncio.sleep(0)
    assert left == []
