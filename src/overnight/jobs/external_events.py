"""What arrives from outside while a job runs: decisions of people, ends of child jobs. It is read from the job's own log, so
that it gets its turn at its seq."""

import asyncio
from typing import TYPE_CHECKING

from overnight.domain import Recorded

from .commands import ClearWakeSignal
from .history import FROM_OUTSIDE, position_of

if TYPE_CHECKING:
    from .execution import Execution, Waiting

NO_NEWS = frozenset({"timer", "budget"})
ASKS_OUTSIDE = frozenset({"child_started", "review_requested"})


class News:
    """`decided` holds the decisions heard of by their review: a review of an effect's outcome has no position of its own."""

    def __init__(self, execution: "Execution") -> None:
        self._execution, history = execution, execution.history
        self.decided: dict[str, Recorded] = {}
        self._heard_seq = history.last_seq
        self._hearing = 0
        self._reading = asyncio.Lock()
        # Until its branch waits for it again, nothing else tells that the job has asked something outside.
        self._asked_before = any(
            known.entry is not None and known.answer is None and known.entry.facts.event in ASKS_OUTSIDE
            for known in history.known().values()
        )

    @property
    def hearing(self) -> bool:
        return self._hearing > 0

    async def hear(self) -> None:
        """Let in what the job was called for. A replay is not disturbed: the call stands until it is over."""
        execution = self._execution
        if execution.replay.active:
            return
        self._hearing += 1
        try:
            await execution.commit(ClearWakeSignal(execution.job.job_id, execution.job.lease_epoch))
            await self.read()
        finally:
            self._hearing -= 1
        execution.consider_parking()

    async def listen(self) -> None:
        """News recorded before an own answer are handed on before it, as they will be in every replay."""
        waits = self._execution.waits.values()
        if not self._execution.replay.active and (
            self._asked_before or any(wait.facts["for"] not in NO_NEWS for wait in waits)
        ):
            await self.read()

    async def read(self) -> None:
        """Take in all that stands in the log by now."""
        async with self._reading:
            for event in await self._execution.ledger.events(self._execution.job.job_id, self._heard_seq):
                self._heard_seq = event.seq
                if event.facts.event in FROM_OUTSIDE:
                    self._take_in(event)

    def _take_in(self, event: Recorded) -> None:
        history, place = self._execution.history, position_of(event)
        review_id = (event.facts.detail or {}).get("review_id")
        # Kept, because the branch that waits for it may not have come there yet.
        if place is not None:
            history.hear(place, event)
        elif review_id is not None:
            self.decided[review_id] = event
        waiting = self._waiting(event, review_id)
        if waiting is None:
            return
        if self._execution.alone():
            _hand_on(waiting, event)
        else:
            self._execution.turns.enter(event.seq).add_done_callback(lambda _: _hand_on(waiting, event))

    def _waiting(self, event: Recorded, review_id: str | None) -> "Waiting | None":
        waits, place = self._execution.waits, position_of(event)
        if place is not None:
            return waits.get(place) if self._execution.history.answers.get(place) is event else None
        return next((wait for wait in waits.values() if review_id and wait.facts.get("review_id") == review_id), None)


def _hand_on(waiting: "Waiting", event: Recorded) -> None:
    if not waiting.future.done():
        waiting.future.set_result(event)
