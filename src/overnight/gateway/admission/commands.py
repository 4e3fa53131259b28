"""The transactions of a model call: admit (with the settlement of the failed attempt before it), settle, declare lost, refuse.

A reservation is part of `model_called`, its settlement part of `model_succeeded`, `model_failed` or `model_lost`: these
events carry the money, so there are no separate rows for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from overnight.budgets import (
    BUDGET,
    BUDGET_SQL,
    RESERVATION,
    Booked,
    Call,
    Limit,
    Policy,
    Rate,
    ReservationGrant,
    ReservationRow,
    Wait,
    estimate_of,
    locks,
    remaining_microusd,
    reserve,
    stop_facts,
)
from overnight.domain import (
    FINISHED,
    BudgetStopped,
    ErrorFacts,
    Event,
    Recorded,
)
from overnight.ledger import (
    JOB,
    JobRow,
    KnownContent,
    append,
    locked_job,
)
from overnight.store import Unit
from overnight.wire_formats.request import Request

from ..identity import NO_IDENTITY, Subject, caller_of
from .admission_outcomes import (
    AdmissionOutcome,
    AdmissionReport,
    CacheHit,
    Concluded,
    Granted,
    MustWait,
    NeedsAncestors,
    NeedsTurn,
    NoRecordedAnswer,
    Replayed,
    StillInFlight,
    Stopped,
)
from .attempt_result import AttemptResult, Locks
from .cost_alerts import CostAlarm, raise_alarm
from .decision import ReplayStep, needs_ancestors, replay_step
from .event_writer import append_with_request
from .external_job_lifecycle import (
    admit_call,
    close_unattributed,
    find_or_create_job,
    job_identity,
    job_locks,
    parent_locks,
)
from .external_job_replay import is_in_flight, note_divergence, replay_answer
from .reservation import Reservation
from .settlement import booked_amounts, write_lost, write_result

FENCED = "its worker had lost the job while the call was in flight"


class CacheLookupResult(Protocol):
    """The result of a cache lookup, applied by the admission of its call."""

    def take(
        self, unit: Unit, job: JobRow, subject: Subject, request: Request, known: KnownContent, called: Event
    ) -> Recorded | None:
        """Under the job's lock: record the hit for this call and return it; None if the call must be made."""
        ...


class UnreservedEnd(Protocol):
    """The end of a call without a target."""

    def write(self, unit: Unit, job: JobRow, subject: Subject, request: Request, known: KnownContent) -> Recorded:
        """Under the job's lock: record the end and return it."""
        ...


class Admit(msgspec.Struct, frozen=True, kw_only=True):
    """Reserve an attempt and write `model_called`. Create the job, start its next attempt or reopen it, if required.

    Fields:
        subject, request, reservation: the call and its attempt.
        policy: the budgets and rate limits.
        known: content that need not be written again.
        now: the time of the command, in microseconds.
        unsettled: the failed attempt before it, settled in the same transaction with any outcome.
        fallback: the event `fallback_taken`, if the call continues at another target.
        serial: whether it is the only admission of the job in this process.
        probe: only look for a recorded answer.
        cache_result: the result of the cache lookup.
        waited: the event `rate_limited`, if the call waited for a rate limit.
        final: the end of the call, if no target is left.
    """

    subject: Subject
    request: Request
    policy: Policy
    known: KnownContent
    reservation: Reservation
    now: int
    unsettled: AttemptResult | None = None
    fallback: Event | None = None
    serial: bool = False
    probe: bool = False
    cache_result: CacheLookupResult | None = None
    waited: Event | None = None
    final: UnreservedEnd | None = None

    def locks(self) -> Locks:
        subject = self.subject
        who = subject.who
        found = job_locks(subject)
        if self.policy.plain:
            found += [(BUDGET, (who.tenant_id, "job", each)) for each in subject.ancestors]
        else:
            caller = caller_of(subject, self.reservation.called.model)
            found += locks(who.tenant_id, self.policy.limits(caller, self.now), self.policy.rates(caller))
        if self.unsettled is not None:
            found += self.unsettled.locks()
        return found

    def decide(self, unit: Unit) -> AdmissionReport:
        subject, settled = self.subject, Booked()
        job, is_new = find_or_create_job(unit, subject)
        if needs_ancestors(job, subject):
            return AdmissionReport(job.job_id, 1, NeedsAncestors())
        identity = job_identity(unit, job, subject.who) if not (is_new or self.policy.plain) else NO_IDENTITY
        caller = caller_of(subject, self.reservation.called.model, job, identity)
        limits, rates = self.policy.limits(caller, unit.now), self.policy.rates(caller)
        unit.lock(locks(job.tenant_id, limits, rates))
        if not is_new:
            admit_call(unit, job, subject)
        if self.unsettled is not None:
            settled = booked_amounts(write_result(unit, job, self.unsettled, subject))
        outcome = self._replay(unit, job, is_new=is_new) or self._answer(unit, job)
        if outcome is None:
            outcome = self._reserve(unit, job, limits, rates)
        return AdmissionReport(job.job_id, job.attempt, outcome, settled)

    def _replay(self, unit: Unit, job: JobRow, *, is_new: bool) -> AdmissionOutcome | None:
        """The recorded answer of an older attempt, or the outcome that must come before; None if the call must be made."""
        subject = self.subject
        step = replay_step(job, subject, is_new=is_new, settles=self.unsettled is not None, serial=self.serial)
        if step is ReplayStep.TAKE_TURN:
            return NeedsTurn()
        fingerprint = subject.fingerprint
        if step is ReplayStep.NONE or fingerprint is None:
            return None
        event = msgspec.structs.replace(self.reservation.called, event="model_replayed", call_id=None, detail=None)
        event.decision = {"why": "recorded by an older attempt; replayed at no cost"}
        answer = replay_answer(unit, job, fingerprint, event)
        if answer is not None:
            return Replayed(answer)
        if is_in_flight(unit, job, fingerprint):
            return StillInFlight()
        note_divergence(unit, job, fingerprint, msgspec.structs.replace(event, event="diverged"))
        return None

    def _answer(self, unit: Unit, job: JobRow) -> AdmissionOutcome | None:
        """The outcome without a reservation; None where one is needed."""
        if self.probe:
            return NoRecordedAnswer()
        subject, request, known = self.subject, self.request, self.known
        if self.cache_result is not None:
            hit = self.cache_result.take(unit, job, subject, request, known, self.reservation.called)
            if hit is not None:
                close_unattributed(unit, job, None)
                return CacheHit(hit, unit.now)
        if self.fallback is not None:
            append(unit, job, self.fallback)
        if self.final is not None:
            return Concluded(self.final.write(unit, job, subject, request, known))
        return None

    def _reserve(self, unit: Unit, job: JobRow, limits: Sequence[Limit], rates: Sequence[Rate]) -> AdmissionOutcome:
        mine = self.reservation
        call = Call(
            call_id=mine.call_id,
            tenant_id=job.tenant_id,
            job_id=job.job_id,
            owner=mine.owner,
            estimate=estimate_of(mine.called),
            lease_epoch=job.lease_epoch,
            fingerprint=self.subject.fingerprint,
            attempt=job.attempt,
        )
        try:
            grant = reserve(unit, call, limits, mine.bound, rates)
        except BudgetStopped as stop:
            self._write_stop(unit, job, stop)
            return Stopped(stop)
        if isinstance(grant, Wait):
            return MustWait(grant)
        if self.waited is not None:
            append(unit, job, self.waited)
        return Granted(
            call_id=mine.call_id,
            grant=grant,
            called_seq=self._write_called(unit, job, grant),
            at=unit.now,
            limits=limits,
            rates=rates,
            remaining_microusd=remaining_microusd(unit, job.tenant_id, limits),
        )

    def _write_called(self, unit: Unit, job: JobRow, grant: ReservationGrant) -> int:
        event = msgspec.structs.replace(self.reservation.called)
        event.attempt = job.attempt
        detail: dict[str, Any] = dict(event.detail or {})
        detail["reserved_microusd"], detail["max_output_tokens"] = grant.amount_microusd, grant.tokens
        if grant.lowered:
            detail["lowered"] = True
        event.detail = detail
        return append_with_request(unit, job, event, self.request, self.known, place=self.subject.place)

    def _write_stop(self, unit: Unit, job: JobRow, stop: BudgetStopped) -> None:
        event = msgspec.structs.replace(self.reservation.called, event="budget_stopped", call_id=None, detail=None)
        event.attempt = job.attempt
        event.decision = stop_facts(stop)
        append(unit, job, event)
        if not self.subject.is_auxiliary:
            close_unattributed(unit, job, ErrorFacts("budget_stopped", str(stop)))


class Settle(msgspec.Struct, frozen=True, kw_only=True):
    """Settle an attempt: the answer or the failure of a call.

    A fenced caller raises no error: the cost is booked, but the result is no answer (see `Settled.fenced`). At a position of
    job code, the call is settled as lost, and its answer corrects the cost.

    Fields:
        subject: the job of the call.
        result: the result of its attempt.
        limits, rates: the budgets and rate limits of the attempt.
        alarms: the cost alarms that it may trigger.
        last: False if the call continues after this attempt.
    """

    subject: Subject
    result: AttemptResult
    limits: Sequence[Limit] = ()
    rates: Sequence[Rate] = ()
    alarms: Sequence[CostAlarm] = ()
    last: bool = True

    def locks(self) -> Locks:
        subject = self.subject
        drawn = locks(subject.who.tenant_id, self.limits, self.rates)
        return [(JOB, subject.job_id), *parent_locks(subject), *drawn, *self.result.locks()]

    def decide(self, unit: Unit) -> Settled:
        subject, place = self.subject, self.subject.place
        job = locked_job(unit, subject.job_id)
        if place is not None:
            fenced = job.lease_epoch != place.lease_epoch or job.state in FINISHED
        else:
            fenced = job.attempt > subject.attempt
        if fenced and place is not None and self.result.event.event == "model_succeeded":
            # The position belongs to another lease, which repeats the call: this answer may only correct the cost.
            write_lost(unit, job, self.result.call_id, FENCED)
        recorded = write_result(unit, job, self.result, subject, place=None if fenced or not self.last else place)
        if self.last and not subject.is_auxiliary:
            close_unattributed(unit, job, self.result.event.error)
        alarmed = [alarm for alarm in self.alarms if raise_alarm(unit, job, alarm)]
        return Settled(recorded, fenced, remaining_microusd(unit, job.tenant_id, self.limits), alarmed)


class Settled(msgspec.Struct, frozen=True):
    """The recorded end of an attempt.

    Fields:
        recorded: its event, as read back.
        fenced: whether a newer attempt or lease of the job has begun.
        remaining_microusd: the lowest remaining amount of its money budgets.
        alarmed: the cost alarms that the call triggered.
    """

    recorded: Recorded
    fenced: bool
    remaining_microusd: int | None = None
    alarmed: Sequence[CostAlarm] = ()


class SettleLost(msgspec.Struct):
    """Settle a call as lost: its end is unknown, so the whole reservation is booked as a bound. Returns whether it was open.

    `silent`: the owner of the reservation and the last `seen_at` of its row. If the owner has renewed its row since, it is
    alive, and nothing is written."""

    call_id: str
    job_id: str
    why: str
    silent: tuple[str, int | None] | None = None

    def locks(self) -> Locks:
        return [(JOB, self.job_id), (RESERVATION, self.call_id)]

    def decide(self, unit: Unit) -> bool:
        row: ReservationRow | None = unit.get(RESERVATION, self.call_id)
        if row is None or (self.silent is not None and not _is_silent(unit, *self.silent)):
            return False
        job = locked_job(unit, self.job_id)
        write_lost(unit, job, self.call_id, self.why)
        close_unattributed(unit, job, ErrorFacts("model_lost", "the call was lost in flight", retryable=True))
        return True


def _is_silent(unit: Unit, owner: str, seen_at: int | None) -> bool:
    rows = unit.query(BUDGET_SQL["read_owner_seen_at"], {"owner": owner})
    return (rows[0][0] if rows else None) == seen_at


class RecordRejection(msgspec.Struct, frozen=True):
    """Record the rejection of a call in its job. Create the job if it does not exist."""

    subject: Subject
    event: Event

    def locks(self) -> Locks:
        return job_locks(self.subject)

    def decide(self, unit: Unit) -> None:
        job, _ = find_or_create_job(unit, self.subject)
        append(unit, job, self.event)
        why = str((self.event.decision or {}).get("why", self.event.event))
        if not self.subject.is_auxiliary:
            close_unattributed(unit, job, ErrorFacts(self.event.event, why, retryable=True))
