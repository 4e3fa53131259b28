"""External events: decisions of people and ends of child jobs, read from the job's own log while it runs."""

import asyncio

from overnight.domain import Recorded

from .boundary_log import BoundaryLog
from .replay.history import FROM_OUTSIDE, position_of

ASKS_OUTSIDE = frozenset({"child_started", "review_requested"})


class ExternalEvents:
    """Reads new external events into the history.

    `decisions` holds them by review: the review of an effect's outcome has no position of its own. `expected` tells
    whether the job began with an unanswered request to the outside.
    """

    def __init__(self, log: BoundaryLog) -> None:
        self._log = log
        self.decisions: dict[str, Recorded] = {}
        self._read_seq = log.history.last_seq
        self._reading = asyncio.Lock()
        # Until its branch waits again, the unanswered request in the log is the only sign of it.
        self.expected = any(
            known.entry is not None and known.answer is None and known.entry.facts.event in ASKS_OUTSIDE
            for known in log.history.known().values()
        )

    async def read(self) -> list[Recorded]:
        """Take the external events recorded since the last reading into the history. Returns them in order."""
        found: list[Recorded] = []
        async with self._reading:
            for event in await self._log.ledger.events(self._log.job.job_id, self._read_seq):
                self._read_seq = event.seq
                if event.facts.event in FROM_OUTSIDE:
                    self._take(event)
                    found.append(event)
        return found

    def _take(self, event: Recorded) -> None:
        # Kept even without a waiting branch, which may not have reached its boundary yet.
        place, review_id = position_of(event), (event.facts.detail or {}).get("review_id")
        if place is not None:
            self._log.history.add_external(place, event)
        elif review_id is not None:
            self.decisions[review_id] = event
