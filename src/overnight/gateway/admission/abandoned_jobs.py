"""The end of external jobs whose programs report none. Every gateway looks for them; under the job's lock one of them ends it."""

from __future__ import annotations

import logging

import msgspec

from overnight.effects import end_locks, end_reviews
from overnight.ledger import JOB, abandon, locked_job
from overnight.store import Store, Unit, statements

from .attempt_result import Locks

log = logging.getLogger("overnight.gateway")
HOUR_US = 3_600_000_000
EVERY = 30
"""Sweeps between two searches."""

_LIST_ABANDONED = statements("overnight.gateway.admission")["list_abandoned"]


class EndAbandoned(msgspec.Struct, frozen=True):
    """End an external job without an event since `before` (microseconds). Returns whether it was ended.

    Fields:
        hours: the configured time, for the event.
    """

    job_id: str
    parent_job_id: str | None
    before: int
    hours: int

    def locks(self) -> Locks:
        jobs = (self.job_id, self.parent_job_id)
        return [*((JOB, job_id) for job_id in jobs if job_id is not None), *end_locks(self.job_id)]

    def decide(self, unit: Unit) -> bool:
        job = locked_job(unit, self.job_id)
        if job.state != "running" or job.active_at >= self.before:
            return False  # another process was first, or a call has come
        abandon(unit, job, self.hours)
        end_reviews(unit, job)
        return True


class AbandonedJobs:
    """Looks for abandoned jobs."""

    def __init__(self, store: Store) -> None:
        self._store, self._sweeps = store, 0

    async def sweep(self, hours: int) -> None:
        """Every half minute, end external jobs without an event and without a call in flight for `hours`.

        Call it about every second. Raises StoreUnavailable.
        """
        if self._sweeps % EVERY == 0:
            await self._end(hours)
        self._sweeps += 1

    async def _end(self, hours: int) -> None:
        before, ended = self._store.clock() - hours * HOUR_US, 0
        for job_id, parent_job_id in await self._store.read(_LIST_ABANDONED, {"before": before}):
            ended += await self._store.commit(EndAbandoned(job_id, parent_job_id, before, hours))
        if ended:
            log.info("ended %d external jobs without a call for %d h (limits.external_abandoned_hours)", ended, hours)
