"""An attempt that was admitted and never sent: it is settled at zero, and ends the call without an answer."""

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
    """The call was given up before anything was sent: its caller left, or may not act for the job any more. The outcome tells
    whether the try was still open: whoever has the job now may have settled it as lost."""

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
