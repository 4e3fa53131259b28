"""The outcomes of an admission, one class for each."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from overnight.budgets import Booked, Limit, Rate, ReservationGrant, Wait
from overnight.domain import BudgetStopped, Recorded


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt is admitted: its reservation and its `model_called` are durable.

    Fields:
        call_id: the attempt.
        grant: the reservation.
        called_seq: the sequence number of `model_called`.
        at: the time of `model_called`, in microseconds.
        limits, rates: the budgets and rate limits of the attempt.
        remaining_microusd: the lowest remaining amount of its money budgets; None without such a budget.
    """

    call_id: str
    grant: ReservationGrant
    called_seq: int
    at: int
    limits: Sequence[Limit]
    rates: Sequence[Rate]
    remaining_microusd: int | None


class MustWait(msgspec.Struct, frozen=True):
    """The call must wait for outstanding calls or for a rate limit."""

    wait: Wait


class Stopped(msgspec.Struct, frozen=True):
    """A hard stop blocks the call. The stop is recorded."""

    error: BudgetStopped


class Replayed(msgspec.Struct, frozen=True):
    """An older attempt of the job has recorded an answer to the same request."""

    recorded: Recorded


class CacheHit(msgspec.Struct, frozen=True):
    """A cache has the answer; it was recorded for this call `at` (microseconds)."""

    recorded: Recorded
    at: int = 0


class Concluded(msgspec.Struct, frozen=True):
    """No target was left, and the final outcome of the call is recorded."""

    recorded: Recorded


class NoRecordedAnswer(msgspec.Struct, frozen=True):
    """A probe found no recorded answer."""


class NeedsAncestors(msgspec.Struct, frozen=True):
    """The job has a parent. Repeat the admission with its ancestors, whose budgets the call draws on too."""


class NeedsTurn(msgspec.Struct, frozen=True):
    """The job has recorded answers. Repeat the admission, with one admission of this job at a time."""


class StillInFlight(msgspec.Struct, frozen=True):
    """The same request of an older attempt is still in flight. Repeat the admission later."""


AdmissionOutcome = (
    Granted
    | MustWait
    | Stopped
    | Replayed
    | CacheHit
    | Concluded
    | NoRecordedAnswer
    | NeedsAncestors
    | NeedsTurn
    | StillInFlight
)


class AdmissionReport(msgspec.Struct, frozen=True):
    """The outcome of an admission, the job and its attempt, and the booking of the failed attempt before it."""

    job_id: str
    attempt: int
    outcome: AdmissionOutcome
    settled: Booked = Booked()
