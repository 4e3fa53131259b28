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
        grant: what was reserved.
        called_seq: the sequence number of `model_called`.
        at: when it was written, in microseconds.
        limits, rates: what the attempt draws on.
        left_microusd: what the budget with least left in money has left; None where no such budget holds.
    """

    call_id: str
    grant: ReservationGrant
    called_seq: int
    at: int
    limits: Sequence[Limit]
    rates: Sequence[Rate]
    left_microusd: int | None


class MustWait(msgspec.Struct, frozen=True):
    """Outstanding calls or a rate limit are in the way."""

    wait: Wait


class Stopped(msgspec.Struct, frozen=True):
    """A hard stop blocks the call; it is recorded."""

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
    """The job has a parent: ask again with its ancestors, whose budgets the call draws on too."""


class NeedsTurn(msgspec.Struct, frozen=True):
    """The job has recorded answers: ask again, one admission of this job at a time."""


class StillInFlight(msgspec.Struct, frozen=True):
    """An older attempt is still being answered the same request: ask again later."""


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
    """The outcome of an admission, the job and its attempt, and what the failed attempt before it was booked at."""

    job_id: str
    attempt: int
    outcome: AdmissionOutcome
    settled: Booked = Booked()
