"""Fair queueing of calls that wait for room in a budget or a rate limit.

Among the calls of this process, tenants take turns, and the calls of one tenant are served first come, first served. Only the
front of a row's queue polls the store: after a settlement in this process, at the known end of the wait, or after a pause, since
another process may have settled a call. A tenant with a thousand waiting calls delays another tenant by a single call. A call
that gives up passes its turn to the next call of its tenant.

A process hears of its own settlements at once, and of those of others by polling. So that it does not take every place that it
frees, its front gives the fronts of other processes time to poll, once after each call of its queue that was admitted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable

from overnight.budgets import Key, Wait

POLL_S = 0.05
MIN_POLL_S, FASTER_AFTER_S = 0.01, 1.0
"""A call that has waited long polls more often: it must poll between two calls of another process to find room."""

MAX_SLEEP_S = 1.0
YIELD_S, MAX_YIELD_SHARE = 0.025, 0.03
"""How long the front of a row lets other processes poll first, and the maximum share of its time at the front. Meanwhile a place
stands empty."""

MINUTE_YIELD_S, MAX_MINUTE_YIELD_SHARE = 0.1, 0.1
"""The same for limits a minute. These lose nothing: what is not taken at once stays in the bucket."""


class RowQueue:
    """The calls that wait for one row of a budget or rate limit.

    Attributes:
        front: the call that polls the store.
        by_tenant: the calls behind it.
        settlements: the number of settlements in the row.
        wait: the wait that the store last reported to the front.
        yields: whether other processes may poll before the front, unless they have since the last admission here.
    """

    __slots__ = ("by_tenant", "front", "settlements", "wait", "yields")

    def __init__(self) -> None:
        self.by_tenant: dict[str, deque[QueuePosition]] = {}
        self.front: QueuePosition | None = None
        self.settlements = 0
        self.wait: Wait | None = None
        self.yields = True

    def enter(self, position: QueuePosition) -> None:
        """Add a call at the end of its tenant's part of the queue."""
        if self.front is None:
            self.front = position
        else:
            self.by_tenant.setdefault(position.tenant_id, deque()).append(position)

    def leave(self, position: QueuePosition) -> bool:
        """Remove a call. False when none is left."""
        if self.front is not position:
            own = self.by_tenant[position.tenant_id]
            own.remove(position)
            if not own:
                del self.by_tenant[position.tenant_id]
            return True
        self.front = None
        own = self.by_tenant.get(position.tenant_id)
        if own is not None and position.gave_up:
            self.front = own.popleft()
            if not own:
                del self.by_tenant[position.tenant_id]
            self.front.wake()
            return True
        for tenant_id in self.by_tenant:
            own = self.by_tenant.pop(tenant_id)
            self.front = own.popleft()
            if own:
                self.by_tenant[tenant_id] = own  # behind the other tenants
            self.front.wake()
            return True
        return False

    def notify(self) -> None:
        """Wake the front after a settlement: it may poll the store again."""
        self.settlements += 1
        if self.front is not None:
            self.front.wake()


class QueuePosition:
    """The position of one call in the queue of one row. `gave_up`: whether it leaves because its queue time ends."""

    __slots__ = ("_began", "_front_at", "_future", "_loop", "_queue", "_seen", "gave_up", "key", "row", "tenant_id")

    def __init__(self, queue: AdmissionQueue, key: Key, row: RowQueue, tenant_id: str) -> None:
        self._queue, self.key, self.row, self.tenant_id = queue, key, row, tenant_id
        self._seen = row.settlements
        self._loop = asyncio.get_running_loop()
        self._began = self._front_at = self._loop.time()
        self._future: asyncio.Future[None] | None = None
        self.gave_up = False
        row.enter(self)

    async def reach_front(self, deadline: float) -> None:
        """Return when this call is the front. Raises TimeoutError at the deadline (a time of the loop)."""
        while self.row.front is not self:
            await self._sleep(deadline)
            self._front_at = self._loop.time()
        self._seen = self.row.settlements

    async def wait_for_change(self, deadline: float, sleep_s: float | None = None) -> None:
        """Return when the store should be polled again: after `sleep_s` seconds, if given.

        Raises TimeoutError at the deadline (a time of the loop).
        """
        if self.row.front is not self:
            await self.reach_front(deadline)
        elif self.row.settlements == self._seen:
            now = self._loop.time()
            if now >= deadline:
                raise TimeoutError
            with contextlib.suppress(TimeoutError):
                await self._sleep(min(deadline, now + self._pause_s(now, sleep_s)))
        if self.row.yields and self._queue.is_shared() and self._may_have_room(sleep_s):
            self.row.yields = False
            await asyncio.sleep(self._yield_s(sleep_s))
        self._seen = self.row.settlements

    def _may_have_room(self, sleep_s: float | None) -> bool:
        """Whether the row may have room now: after a settlement, or at the known end of the wait."""
        is_settled = self.row.settlements != self._seen
        return is_settled if sleep_s is None else not is_settled and sleep_s <= MAX_SLEEP_S

    def _yield_s(self, sleep_s: float | None) -> float:
        longest_s, share = (YIELD_S, MAX_YIELD_SHARE) if sleep_s is None else (MINUTE_YIELD_S, MAX_MINUTE_YIELD_SHARE)
        return min(longest_s, (self._loop.time() - self._front_at) * share)

    def _pause_s(self, now: float, sleep_s: float | None) -> float:
        if sleep_s is not None:
            return min(max(sleep_s, 0.001), MAX_SLEEP_S)
        return max(MIN_POLL_S, POLL_S / (1 + (now - self._began) / FASTER_AFTER_S))

    async def _sleep(self, until: float) -> None:
        self._future = self._loop.create_future()
        try:
            async with asyncio.timeout_at(until):
                await self._future
        finally:
            self._future = None

    def wake(self) -> None:
        """End the present sleep."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def admitted(self) -> None:
        """Note that the call was admitted: before the next one of this process, other processes may poll."""
        self.row.yields = True

    def give_up(self) -> None:
        """Leave the queue at the end of the queue time: the next call of the tenant has its turn."""
        self.gave_up = True
        self.leave()

    def leave(self) -> None:
        """Leave the queue, so that the next call becomes the front."""
        if not self.row.leave(self):
            self._queue.drop(self.key)


class AdmissionQueue:
    """The queues of all rows, in one process. `is_shared` tells whether other processes make calls too."""

    def __init__(self, is_shared: Callable[[], bool] = lambda: False) -> None:
        self.is_shared = is_shared
        self._rows: dict[Key, RowQueue] = {}

    @property
    def waiting(self) -> int:
        """The number of waiting calls, including the fronts."""
        rows = self._rows.values()
        return sum((row.front is not None) + sum(map(len, row.by_tenant.values())) for row in rows)

    def join(self, key: Key, tenant_id: str) -> QueuePosition:
        """Queue for one row."""
        return QueuePosition(self, key, self._rows.setdefault(key, RowQueue()), tenant_id)

    def join_any(self, keys: Callable[[], Iterable[Key]], tenant_id: str) -> QueuePosition | None:
        """Queue behind the calls that already wait for one of the rows; None if no call waits.

        `keys` returns the rows. It is called only if calls wait.
        """
        if self._rows:
            for key in keys():
                if key in self._rows:
                    return self.join(key, tenant_id)
        return None

    def drop(self, key: Key) -> None:
        """Forget the queue of a row that no call waits for."""
        self._rows.pop(key, None)

    def settled(self, keys: Callable[[], Iterable[Key]]) -> None:
        """Wake the fronts of these rows after a settlement."""
        if self._rows:
            for key in keys():
                row = self._rows.get(key)
                if row is not None:
                    row.notify()

    def notify(self) -> None:
        """Wake every front, after a settlement in an unknown row."""
        for row in self._rows.values():
            row.notify()
