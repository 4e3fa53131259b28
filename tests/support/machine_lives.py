"""Worker processes as event loops, which a test can abandon at any moment."""

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import Any

import msgspec

import machine_programs
from overnight.jobs import NoModel, Operations, Worker
from overnight.jobs.execution import task_factory
from overnight.store import Statement, Store, open_store
from overnight.store.store import wall_clock_us

STATES = "SELECT state, count(*) FROM job GROUP BY state"
DUE = "SELECT job_id FROM job WHERE state = 'parked' AND wake_at <= :now LIMIT 1"


def _statement(sql: str) -> Statement:
    return Statement("machine", {"sqlite": sql, "postgres": sql})


class Killed(BaseException):
    """Stops a transaction before it begins."""


class Clock:
    """The time of all processes; it can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0

    def __call__(self) -> int:
        return wall_clock_us() + self.ahead


class Loss(msgspec.Struct, frozen=True):
    """When a worker is lost: at its n-th transaction, before that is written or just after, or (`stop`) in good order.
    `refused`: it is not lost, but from there on three transactions fail."""

    transaction: int
    how: str = "after"


class Life:
    """One process: an event loop, a store, a worker."""

    count = 0

    def __init__(self, url: str, clock: Clock, loss: Loss | None, workers: int = 1) -> None:
        Life.count += 1
        self.loss, self.clock = loss, clock
        self.loop = asyncio.new_event_loop()
        self.loop.set_task_factory(task_factory)  # type: ignore[arg-type]
        self.transactions = -1  # opening is one
        self.lost = False
        self.store: Store = open_store(url, self._tick)
        self.ids = [f"worker-{Life.count}-{n}" for n in range(workers)]
        self.workers = [Worker(self.store, NoModel(), worker_id=each, lease_s=36_000) for each in self.ids]

    def _tick(self) -> int:
        """The clock is read once for each transaction, and now and then besides."""
        if sys._getframe(1).f_code.co_name != "_transact":
            return self.clock()
        self.transactions += 1
        if self.loss is not None and self.transactions >= self.loss.transaction:
            if self.loss.how == "refused":
                if self.transactions < self.loss.transaction + 3:
                    raise Killed
                return self.clock()
            if self.loss.how != "stop":
                self.lost = True
                self.loop.call_soon_threadsafe(self.loop.stop)
            if self.loss.how == "before":
                raise Killed
        return self.clock()

    def run(self) -> None:
        """Until the worker is lost, or nothing is left that it could do."""
        main = self.loop.create_task(self._main())
        main.add_done_callback(lambda _: self.loop.stop())
        watchdog = self.loop.call_later(30, main.cancel)
        self.loop.run_forever()
        watchdog.cancel()
        if self.lost:
            return
        if main.done() and not main.cancelled():
            main.result()
        else:
            raise AssertionError(f"stuck: {self.states()}, {[worker.services.problems for worker in self.workers]}")

    def go_on(self, seconds: float) -> None:
        """The process was only thought to be lost."""
        self.loss, self.lost = None, False
        self.loop.call_later(seconds, self.loop.stop)
        self.loop.run_forever()

    async def _main(self) -> None:
        for worker in self.workers:
            await worker.start()
        while not self._at_rest():
            await asyncio.sleep(0.002)
        for worker in self.workers:
            await worker.stop()

    def _at_rest(self) -> bool:
        if self.loss is not None and self.loss.how == "stop" and self.transactions >= self.loss.transaction:
            return True
        states = self.states()
        if states.keys() & {"queued", "running"}:
            return False
        return not self.store.read_blocking(_statement(DUE), {"now": self.clock()})

    def states(self) -> dict[str, int]:
        return dict(self.store.read_blocking(_statement(STATES), {}))

    def bury(self) -> None:
        """Free what the process held. Its store is closed first, so nothing that it still does can be written."""
        machine_programs.world.frozen = True
        self.loop.set_exception_handler(lambda *_: None)
        for worker in self.workers:
            worker._beat.set()
        self.store.close()
        for _ in range(20):
            tasks = asyncio.all_tasks(self.loop)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            with contextlib.suppress(BaseException):
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=0.2))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        machine_programs.world.frozen = False


def outside(url: str, clock: Clock, act: Callable[[Operations], Any]) -> Any:
    """Do something to jobs in a process without a worker, as the command line does."""

    async def main() -> Any:
        with open_store(url, clock) as store:
            return await act(Operations(store))

    return asyncio.run(main())
