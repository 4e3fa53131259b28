"""Retained answers: during a retry, answers of earlier attempts are replayed one at a time in their original order.

All branches are idle in between, and other boundaries wait until no retained answer is asked for. So branches interleave
as before, and the code reaches the same boundaries.
"""

import asyncio
import heapq
import itertools
from typing import TypeVar

from overnight.domain import Recorded

from ..background_tasks import BackgroundTasks
from ..boundary_log import BoundaryLog
from ..branch_scheduler import BranchScheduler
from ..positions import Position, Scope
from .history import first_seq

T = TypeVar("T")


class RetainedAnswers:
    """A queue of boundaries with a retained answer, followed by the boundaries without one."""

    def __init__(self, log: BoundaryLog, scheduler: BranchScheduler, background: BackgroundTasks) -> None:
        self._log, self._scheduler, self._background = log, scheduler, background
        self._queue: list[tuple[int, int, asyncio.Future[Recorded], Scope, Position]] = []
        self._arrivals = itertools.count()
        self._last: list[asyncio.Future[None]] = []
        self._delivering = False

    async def replay(self, scope: Scope, position: Position, answer: Recorded) -> Recorded:
        """Wait for the turn of the retained answer at this position and return it."""
        future: asyncio.Future[Recorded] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (first_seq(answer), next(self._arrivals), future, scope, position))
        return await self._wait(future)

    async def wait_drained(self) -> None:
        """Wait until no boundary waits for a retained answer."""
        if self._log.history.retained:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._last.append(future)
            await self._wait(future)

    async def _wait(self, future: "asyncio.Future[T]") -> T:
        self._scheduler.order.record_activity()
        with self._scheduler.in_progress():
            if not self._delivering:
                self._delivering = True
                self._background.start(self._deliver())
            return await future

    async def _deliver(self) -> None:
        order = self._scheduler.order
        try:
            while self._queue or self._last:
                await order.wait_idle()
                if self._queue:
                    *_, future, scope, position = heapq.heappop(self._queue)
                    if not future.done():
                        await self._replay(future, scope, position)
                else:
                    waiting, self._last = self._last, []
                    for each in waiting:
                        if not each.done():
                            each.set_result(None)
                    order.record_activity()
        finally:
            self._delivering = False

    async def _replay(self, future: "asyncio.Future[Recorded]", scope: Scope, position: Position) -> None:
        log, history = self._log, self._log.history
        # Recorded again, since a later replay needs the time of its delivery.
        kept = await log.record(log.kept_event(scope, history.retained[position]), position)
        history.keep(position, kept.seq)
        await self._scheduler.wait_turn(kept.seq)
        if not future.done():
            future.set_result(history.answers[position])
            self._scheduler.order.record_activity()
