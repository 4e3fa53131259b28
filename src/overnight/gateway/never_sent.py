"""A try that was admitted and never sent: it is settled at nothing, and it is the call's end without being its answer."""

from __future__ import annotations

import msgspec

from overnight.budgets import RESERVATION, ReservationRow, settle
from overnight.domain import ErrorFacts, Event
from overnight.ledger import JOB, append, locked_job
from overnight.store import Unit

from .commands import Locks, decode_estimate


class NeverSent(msgspec.Struct):
    """The caller may not act for the job any more, and found that out before it sent anything. The outcome tells whether the try
    was still open: whoever has the job now may have settled it as lost."""

    call_id: str
    job_id: str
    why: str

    def locks(self) -> Locks:
        return [(JOB, self.job_id), (RESERVATION, self.call_id)]

    def decide(self, unit: Unit) -> bool:
        row: ReservationRow | None = unit.get(RESERVATION, self.call_id)
        if row is None:
            return False
        estimate = decode_estimate(row.estimate)
        job = locked_job(unit, self.job_id)
        event = Event("model_failed", attempt=job.attempt, call_id=self.call_id, kind="model")
        event.cost_microusd = settle(unit, self.call_id, 0)
        event.model, event.provider, event.route = estimate.model, estimate.provider, estimate.route
        event.agent_id = estimate.agent_id
        event.error = ErrorFacts("never_sent", self.why)
        append(unit, job, event)
        return True
