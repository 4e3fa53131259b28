"""Calls that wait for room in a budget: first come, first served among the calls of this process.

Only the first of a line asks the store again, after a settlement here or after 50 ms (another process may have settled);
so a thousand waiting calls do not ask a thousand times.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

ASK_AGAIN_S = 0.05


class Line:
    """Who waits for one scope. `settlements` rises with each settlement in it."""

    __slots__ = ("settlements", "turns")

    def __init__(self) -> None:
        self.turns: deque[Turn] = deque()
        self.settlements = 0


class Turn:
    """One call's place in a line."""

    __slots__ = ("_future", "_line", "_lines", "_scope", "_seen")

    def __init__(self, lines: Lines, scope: str, line: Line) -> None:
        self._lines, self._scope, self._line = lines, scope, line
        self._seen = line.settlements
        self._future: asyncio.Future[None] | None = None
        line.turns.append(self)

    async def front(self, deadline: float) -> None:
        """Return when this call is the first in line. Raises TimeoutError at the deadline (a time of the loop)."""
        while self._line.turns[0] is not self:
            await self._wait(deadline)
        self._seen = self._line.settlements

    async def news(self, deadline: float) -> None:
        """Return when it is worth asking again. Raises TimeoutError at the deadline."""
        await self.front_or_settlement(deadline)
        self._seen = self._line.settlements

    async def front_or_settlement(self, deadline: float) -> None:
        if self._line.turns[0] is not self:
            await self.front(deadline)
        elif self._line.settlements == self._seen:
            now = asyncio.get_running_loop().time()
            if now >= deadline:
                raise TimeoutError
            try:
                await self._wait(min(deadline, now + ASK_AGAIN_S))
            except TimeoutError:
                return

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
        line = self._line
        first = line.turns[0] is self
        line.turns.remove(self)
        if not line.turns:
            self._lines.drop(self._scope)
        elif first:
            line.turns[0].wake()


class Lines:
    """The lines of all scopes; a scope is the id of a job."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}

    def join(self, scope: str) -> Turn:
        return Turn(self, scope, self._lines.setdefault(scope, Line()))

    def join_any(self, scopes: Iterable[str]) -> Turn | None:
        """A place behind those who wait for one of the scopes already; None when nobody does."""
        if self._lines:
            for scope in scopes:
                if scope in self._lines:
                    return self.join(scope)
        return None

    def drop(self, scope: str) -> None:
        self._lines.pop(scope, None)

    def settled(self, scopes: Iterable[str]) -> None:
        """Spend was settled in these scopes: the first in line may ask again."""
        if self._lines:
            for scope in scopes:
                line = self._lines.get(scope)
                if line is not None:
                    line.settlements += 1
                    line.turns[0].wake()
