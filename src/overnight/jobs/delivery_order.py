"""In which order answers reach the branches of a job: one at a time, by seq, all branches at rest in between.

"At rest" means that no branch has moved for a few turns of the event loop. That is enough because outside of steps a job
awaits only boundaries, and it needs no access to the loop's private queues.
"""

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

IDLE_TURNS = 8


class Turns:
    """`start` begins a chore of the execution; `listen` is awaited before each turn, so that news from outside can enter the
    line at its place; `rested` is called when no more turns are to be given."""

    def __init__(
        self,
        start: Callable[[Coroutine[Any, Any, None]], object],
        listen: Callable[[], Awaitable[None]],
        rested: Callable[[], None],
    ) -> None:
        self._start, self._listen, self._rested = start, listen, rested
        self._line: list[tuple[int, int, asyncio.Future[None]]] = []
        self._tickets = itertools.count()
        self._moves = 0
        self._on_the_way = 0
        self.giving = False

    def moved(self) -> None:
        """A branch was spawned, ended, asked for something, or was handed an answer."""
        self._moves += 1

    @contextlib.contextmanager
    def moving(self) -> Generator[None]:
        """A branch is on the move for as long as the block takes, although the loop is idle."""
        self._on_the_way += 1
        try:
            yield
        finally:
            self._on_the_way -= 1
            self._moves += 1

    async def settled(self) -> None:
        """Return when no branch has moved for a few turns of the loop."""
        quiet, seen = 0, self._moves
        while quiet < IDLE_TURNS:
            await asyncio.sleep(0)
            quiet = quiet + 1 if self._moves == seen and not self._on_the_way else 0
            seen = self._moves

    def enter(self, seq: int) -> "asyncio.Future[None]":
        """Get in line; done when the answer with this seq may be handed on."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._line, (seq, next(self._tickets), future))
        # An answer that was committed earlier may come here a few turns later: an effect's passes through more tasks.
        self.moved()
        if not self.giving:
            self.giving = True
            self._start(self._give())
        return future

    async def _give(self) -> None:
        try:
            # Answers of one batch come here over a few turns of the loop, not always in their order.
            await self.settled()
            while self._line:
                await self._listen()
                _, _, turn = heapq.heappop(self._line)
                if not turn.done():
                    turn.set_result(None)
                    self.moved()
                await self.settled()
        finally:
            self.giving = False
            self._rested()
