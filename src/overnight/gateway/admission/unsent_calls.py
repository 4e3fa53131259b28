"""Settle at zero an attempt that was admitted and never sent. The call ends without an answer."""

from __future__ import annotations

import msgspec

from overnight.budgets import (
    RESERVATION,
    ReservationRow,
    decode_estimate,
    settle,
)
from overnight.domain import ErrorFacts
from overnight.ledger import JOB, append, locked_job
from overnight.store import Unit

from .attempt_result import Locks
from .external_job_lifecycle import close_unattributed


class SettleUnsent(msgspec.Struct):
    """Settle at zero an attempt that was abandoned before it was sent: its client disconnected, or may no longer act for the job.

    Returns whether the attempt was still open: another process may have settled it as lost."""

    call_id: str
    job_id: str
    why: str

    def locks(self) -> Locks:
        return [(JOB, self.job_id), (RESERVATION, self.call_id)]

    def decide(self, unit: Unit) -> bool:
        row: ReservationRow | None = unit.get(RESERVATION, self.call_id)
        if row is None:
            return False
        job = locked_job(unit, self.job_id)
        event = decode_estimate(row.estimate).event("model_failed", self.call_id)
        event.attempt, event.cost_microusd = job.attempt, settle(unit, self.call_id, 0).cost_microusd
        event.error = ErrorFacts("never_sent", self.why)
        append(unit, job, event)
        close_unattributed(unit, job, event.error)
        return True
