"""Calls that wait for room: in a budget, or at a speed. Tenants take turns, and within one it is first come, first served,
among the calls of this process.

Only the front of a line asks the store again: after a settlement here, when the wait is known to be over, or after a moment
(another process may have settled). So a thousand waiting calls do not ask a thousand times, and a tenant with a thousand
waiting calls delays another's one call by a single call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable

from overnight.budgets import Key, Wait

ASK_AGAIN_S = 0.05
SOONEST_S, PATIENT_AFTER_S = 0.01, 1.0
"""Who has waited long asks more often: in the moment between two calls of another process only who asks is seen."""
LONGEST_SLEEP_S = 1.0


class Line:
    """Who waits for one row. `settlements` rises with each settlement in it; `wait` is what its front was last told."""

    __slots__ = ("by_tenant", "front", "settlements", "wait")

    def __init__(self) -> None:
        self.by_tenant: dict[str, deque[Turn]] = {}
        self.front: Turn | None = None
        self.settlements = 0
        self.wait: Wait | None = None

    def enter(self, turn: Turn) -> None:
        if self.front is None:
            self.front = turn
        else:
            self.by_tenant.setdefault(turn.tenant_id, deque()).append(turn)

    def leave(self, turn: Turn) -> bool:
        """False when nobody is left."""
        if self.front is not turn:
            own = self.by_tenant[turn.tenant_id]
            own.remove(turn)
            if not own:
                del self.by_tenant[turn.tenant_id]
            return True
        self.front = None
        for tenant_id in self.by_tenant:
            own = self.by_tenant.pop(tenant_id)
            self.front = own.popleft()
            if own:
                self.by_tenant[tenant_id] = own  # behind the other tenants
            self.front.wake()
            return True
        return False


class Turn:
    """One call's place in a line."""

    __slots__ = ("_began", "_future", "_lines", "_seen", "key", "line", "tenant_id")

    def __init__(self, lines: Lines, key: Key, line: Line, tenant_id: str) -> None:
        self._lines, self.key, self.line, self.tenant_id = lines, key, line, tenant_id
        self._seen = line.settlements
        self._began = asyncio.get_running_loop().time()
        self._future: asyncio.Future[None] | None = None
        line.enter(self)

    async def front(self, deadline: float) -> None:
        """Return when this call is the first in line. Raises TimeoutError at the deadline (a time of the loop)."""
        while self.line.front is not self:
            await self._wait(deadline)
        self._seen = self.line.settlements

    async def news(self, deadline: float, sleep_s: float | None = None) -> None:
        """Return when it is worth asking again: in `sleep_s` where that is known. Raises TimeoutError at the deadline."""
        if self.line.front is not self:
            await self.front(deadline)
        elif self.line.settlements == self._seen:
            now = asyncio.get_running_loop().time()
            if now >= deadline:
                raise TimeoutError
            with contextlib.suppress(TimeoutError):
                await self._wait(min(deadline, now + self._pause_s(now, sleep_s)))
        self._seen = self.line.settlements

    def _pause_s(self, now: float, sleep_s: float | None) -> float:
        if sleep_s is not None:
            return min(max(sleep_s, 0.001), LONGEST_SLEEP_S)
        return max(SOONEST_S, ASK_AGAIN_S / (1 + (now - self._began) / PATIENT_AFTER_S))

    async def _wait(self, until: float) -> None:
        self._future = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout_at(until):
                await self._future
        finally:
            self._future = None

    def wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def leave(self) -> None:
        """Make room for the next in line."""
        if not self.line.leave(self):
            self._lines.drop(self.key)


class Lines:
    """The lines of all rows."""

    def __init__(self) -> None:
        self._lines: dict[Key, Line] = {}

    def join(self, key: Key, tenant_id: str) -> Turn:
        return Turn(self, key, self._lines.setdefault(key, Line()), tenant_id)

    def join_any(self, keys: Callable[[], Iterable[Key]], tenant_id: str) -> Turn | None:
        """A place behind those who wait for one of the rows already; None when nobody does. `keys` is asked only if need be."""
        if self._lines:
            for key in keys():
                if key in self._lines:
                    return self.join(key, tenant_id)
        return None

    def drop(self, key: Key) -> None:
        self._lines.pop(key, None)

    def settled(self, keys: Callable[[], Iterable[Key]]) -> None:
        """Spend was settled in these rows: the first in line may ask again."""
        if self._lines:
            for key in keys():
                self._stir(self._lines.get(key))

    def stir(self) -> None:
        """Something was settled somewhere: every first in line may ask again."""
        for line in self._lines.values():
            self._stir(line)

    @staticmethod
    def _stir(line: Line | None) -> None:
        if line is not None:
            line.settlements += 1
            if line.front is not None:
                line.front.wake()
