"""Delivery order: answers reach the branches of a job one at a time, by seq, with all branches idle in between.

"Idle" means that no branch has been active for a few turns of the event loop. That is enough because outside steps a job
awaits only boundaries, and it needs no access to the loop's private queues.
"""

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

IDLE_TURNS = 8


class DeliveryOrder:
    """A queue of answers by seq.

    `start` runs a background task. `before_delivery` is awaited before each delivery, so that external events can enter
    the queue at their place. `drained` is called when the queue is empty.
    """

    def __init__(
        self,
        start: Callable[[Coroutine[Any, Any, None]], object],
        before_delivery: Callable[[], Awaitable[None]],
        drained: Callable[[], None],
    ) -> None:
        self._start, self._before_delivery, self._drained = start, before_delivery, drained
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = itertools.count()
        self._activity = 0
        self._active = 0
        self.delivering = False

    def record_activity(self) -> None:
        """A branch was spawned, ended, reached a boundary, or received an answer."""
        self._activity += 1

    @contextlib.contextmanager
    def active(self) -> Generator[None]:
        """Count a branch as active for as long as the block takes, even while the loop is idle."""
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            self._activity += 1

    async def wait_idle(self) -> None:
        """Return when no branch has been active for `IDLE_TURNS` turns of the loop."""
        quiet, seen = 0, self._activity
        while quiet < IDLE_TURNS:
            await asyncio.sleep(0)
            quiet = quiet + 1 if self._activity == seen and not self._active else 0
            seen = self._activity

    def enqueue(self, seq: int) -> "asyncio.Future[None]":
        """Queue an answer. The future is done when the answer with this seq may be delivered."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (seq, next(self._arrivals), future))
        # An answer that was committed earlier may come here a few turns later: an effect's passes through more tasks.
        self.record_activity()
        if not self.delivering:
            self.delivering = True
            self._start(self._deliver())
        return future

    async def _deliver(self) -> None:
        try:
            # Answers of one batch come here over a few turns of the loop, not always in their order.
            await self.wait_idle()
            while self._queue:
                await self._before_delivery()
                _, _, turn = heapq.heappop(self._queue)
                if not turn.done():
                    turn.set_result(None)
                    self.record_activity()
                await self.wait_idle()
        finally:
            self.delivering = False
            self._drained()
