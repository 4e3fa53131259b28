"""What a retry gives again: answers that stand aside are handed on one at a time, in the order in which they were given first,
all branches at rest in between; what is asked afresh waits for them. So who was faster then is faster again, and the code comes
to the same places."""

import asyncio
import heapq
import itertools
from typing import TYPE_CHECKING, TypeVar

from overnight.domain import Event, Recorded

from .history import Known, first_seq
from .positions import Position, Scope

if TYPE_CHECKING:
    from .execution import Execution


T = TypeVar("T")


class Keeping:
    """The line of those who ask for what stands aside, and behind it those who ask for something else."""

    def __init__(self, execution: "Execution") -> None:
        self._execution = execution
        self._line: list[tuple[int, int, asyncio.Future[Recorded], Scope, Position]] = []
        self._tickets = itertools.count()
        self._last: list[asyncio.Future[None]] = []
        self._giving = False

    async def give(self, scope: Scope, position: Position, answer: Recorded) -> Recorded:
        """The answer that stands aside at this position, when it is its turn."""
        future: asyncio.Future[Recorded] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._line, (first_seq(answer), next(self._tickets), future, scope, position))
        return await self._wait(future)

    async def last(self) -> None:
        """Wait until nobody asks for what stands aside any more."""
        if self._execution.history.aside:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._last.append(future)
            await self._wait(future)

    async def _wait(self, future: "asyncio.Future[T]") -> T:
        execution = self._execution
        execution.turns.moved()
        with execution.flight():
            if not self._giving:
                self._giving = True
                execution.branches.chore(self._give())
            return await future

    async def _give(self) -> None:
        turns = self._execution.turns
        try:
            while self._line or self._last:
                await turns.settled()
                if self._line:
                    *_, future, scope, position = heapq.heappop(self._line)
                    if not future.done():
                        await self._hand_on(future, scope, position)
                else:
                    waiting, self._last = self._last, []
                    for each in waiting:
                        if not each.done():
                            each.set_result(None)
                    turns.moved()
        finally:
            self._giving = False

    async def _hand_on(self, future: "asyncio.Future[Recorded]", scope: Scope, position: Position) -> None:
        execution = self._execution
        # Recorded anew: a later replay must know when it was given.
        given = await execution.record(kept(execution, scope, execution.history.aside[position]), position)
        execution.history.keep(position, given.seq)
        await execution.turn(given.seq)
        if not future.done():
            future.set_result(execution.history.answers[position])
            execution.turns.moved()


def kept(execution: "Execution", scope: Scope, known: Known, *, begun: bool = False) -> Event:
    """The event that says that what an earlier attempt was answered, or had only `begun`, stands."""
    recorded = known.entry if begun or known.answer is None else known.answer
    event = Event("boundary_kept", step=scope.name, attempt=execution.job.attempt, detail={})
    if recorded is not None:
        event.kind, event.name = recorded.facts.kind, recorded.facts.name
        event.detail = {} if recorded is known.entry else {"of": recorded.seq}
    if known.was is not None:
        event.detail = {**(event.detail or {}), "was": {"path": known.was[0], "ordinal": known.was[1]}}
    return event
