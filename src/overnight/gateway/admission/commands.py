"""The transactions of a model call: admit (with the settlement of the failed try before it), settle, lose.

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
    LOST,
    RESERVATION,
    Booked,
    Call,
    Granted,
    Limit,
    Policy,
    Rate,
    ReservationRow,
    Wait,
    decode_estimate,
    estimate_of,
    left_microusd,
    locks,
    reserve,
    settle,
    stop_facts,
)
from overnight.circuit_breakers import CIRCUIT, Mark
from overnight.domain import (
    FINISHED,
    BudgetStopped,
    ErrorFacts,
    Event,
    Recorded,
)
from overnight.ledger import (
    EXTERNAL,
    JOB,
    JobRow,
    KnownContent,
    append,
    count_usage,
    locked_job,
)
from overnight.store import Unit
from overnight.wire_formats.request import Request

from ..cache.cache_result import Ticket
from ..call.degraded_answer import Ending
from ..identity import Subject, caller_of
from .cost_alerts import Alarm, sound
from .event_writer import append_asked
from .foreign_replay import give_again, is_in_flight, note_divergence
from .job_entry import close_unattributed, enter, find_job
from .settlement import booked_at, write_spent

Locks = list[tuple[Any, Any]]
Tokens = tuple[int, int, int]
"""Input, cached and output tokens."""


class Reservation(msgspec.Struct, frozen=True):
    """One try: its id, the process that makes it, and what it may cost."""

    call_id: str
    owner: str
    demand: Any
    called: Event


class Rider(Protocol):
    """A row that is written with the answer of a call, in the same transaction."""

    def write(self, unit: Unit, answer: Recorded) -> None: ...


class Spent(msgspec.Struct, frozen=True):
    """How a try came out. `event` is its fact; `content` the answer; `cost_microusd` its known cost, None where nothing is
    known: then all that was reserved is booked as a bound. `bound_microusd` is what it may have cost beyond a known cost.
    `mark` is what it says of its target."""

    call_id: str
    event: Event
    model: str
    tokens: Tokens
    cost_microusd: int | None
    content: bytes | None = None
    also: Rider | None = None
    mark: Mark | None = None
    bound_microusd: int = 0

    def locks(self) -> Locks:
        reservation = (RESERVATION, self.call_id)
        return [reservation] if self.mark is None else [reservation, *((CIRCUIT, key) for key in self.mark.keys)]


class Outcome(msgspec.Struct):
    """What an admission came to: exactly one of the fields from `granted` to `in_flight` is set."""

    job_id: str
    attempt: int = 1
    lease_epoch: int = 0
    granted: Granted | None = None
    wait: Wait | None = None
    stopped: BudgetStopped | None = None
    answer: Recorded | None = None
    cached: bool = False
    """The answer comes from a cache; it was recorded for this call."""
    unanswered: bool = False
    """A probe found no recorded answer."""
    kin: bool = False
    """Ask again with the job's ancestors."""
    serial: bool = False
    """Ask again, one admission of this job at a time: it has recorded answers."""
    in_flight: bool = False
    """Ask again later: an older attempt is still being answered the same request."""
    called_seq: int = 0
    at: int = 0
    """Where a granted call stands in the log; and when it, or the hit of a cache, was written (microseconds)."""
    limits: Sequence[Limit] = ()
    rates: Sequence[Rate] = ()
    """What a granted call draws on."""
    left_microusd: int | None = None
    """Of the budget with least left in money, after the reservation."""
    ended: Recorded | None = None
    """The end of a call that no target could be asked for."""
    after_microusd: Booked = Booked()
    """What the failed try before it came to."""


class Admit(msgspec.Struct):
    """Reserve for a try and write `model_called`; make, reopen or re-announce the job where that is due.

    With `after`, the failed try before it is settled in the same transaction, whatever comes of the new one. A `probe` only
    looks for a recorded answer; `ticket` is what a look at the caches brought; `waited` tells that a rate limit made it wait.
    """

    subject: Subject
    request: Request
    policy: Policy
    known: KnownContent
    reservation: Reservation
    now: int
    after: Spent | None = None
    moved: Event | None = None
    serial: bool = False
    probe: bool = False
    ticket: Ticket | None = None
    waited: Event | None = None
    ending: Ending | None = None
    """No target is left to be asked: this is what the call comes to."""

    def locks(self) -> Locks:
        subject = self.subject
        who = subject.who
        found: Locks = []
        if subject.external_id is not None and not subject.known:
            found.append((EXTERNAL, (who.tenant_id, subject.external_id)))
        found.append((JOB, subject.job_id))
        if self.policy.plain:
            found += [(BUDGET, (who.tenant_id, "job", each)) for each in subject.ancestors]
        else:
            caller = caller_of(subject, self.reservation.called.model)
            found += locks(who.tenant_id, self.policy.limits(caller, self.now), self.policy.rates(caller))
        if self.after is not None:
            found += self.after.locks()
        return found

    def decide(self, unit: Unit) -> Outcome:
        subject, after = self.subject, Booked()
        held, is_new = find_job(unit, subject)
        if held.parent_job_id is not None and subject.ancestors[-1] != held.job_id:
            return Outcome(held.job_id, kin=True)
        caller = caller_of(subject, self.reservation.called.model, held)
        limits, rates = self.policy.limits(caller, unit.now), self.policy.rates(caller)
        unit.lock(locks(held.tenant_id, limits, rates))
        if not is_new:
            enter(unit, held, subject)
        if self.after is not None:
            after = booked_at(write_spent(unit, held, self.after, subject))
        elif subject.fingerprint is not None and held.attempt > 1 and held.runtime == "foreign" and not is_new:
            if not self.serial:
                return Outcome(held.job_id, held.attempt, serial=True)
            replayed = self._replay(unit, held, subject.fingerprint)
            if replayed is not None:
                return replayed
        if self.probe:
            return Outcome(held.job_id, held.attempt, unanswered=True, after_microusd=after)
        if self.ticket is not None:
            hit = self.ticket.take(unit, held, subject, self.request, self.known, self.reservation.called)
            if hit is not None:
                close_unattributed(unit, held, None)
                return Outcome(held.job_id, held.attempt, answer=hit, cached=True, at=unit.now, after_microusd=after)
        if self.moved is not None:
            append(unit, held, self.moved)
        if self.ending is not None:
            ended = self.ending.write(unit, held, subject, self.request, self.known)
            return Outcome(held.job_id, held.attempt, ended=ended, after_microusd=after)
        outcome = self._reserve(unit, held, limits, rates)
        outcome.after_microusd = after
        return outcome

    def _replay(self, unit: Unit, job: JobRow, fingerprint: str) -> Outcome | None:
        """The recorded answer, or the word that it is still to come; None where the call has to be made."""
        called = self.reservation.called
        event = msgspec.structs.replace(called, event="model_replayed", call_id=None, detail=None)
        event.decision = {"why": "recorded by an older attempt; given again, not paid again"}
        answer = give_again(unit, job, fingerprint, event)
        if answer is not None:
            return Outcome(job.job_id, job.attempt, answer=answer)
        if is_in_flight(unit, job, fingerprint):
            return Outcome(job.job_id, job.attempt, in_flight=True)
        note_divergence(unit, job, fingerprint, msgspec.structs.replace(event, event="diverged"))
        return None

    def _reserve(self, unit: Unit, job: JobRow, limits: Sequence[Limit], rates: Sequence[Rate]) -> Outcome:
        mine = self.reservation
        call = Call(
            mine.call_id,
            job.tenant_id,
            job.job_id,
            mine.owner,
            estimate_of(mine.called),
            job.lease_epoch,
            self.subject.fingerprint if job.runtime == "foreign" else None,
            job.attempt,
        )
        try:
            granted = reserve(unit, call, limits, mine.demand, rates)
        except BudgetStopped as stop:
            self._write_stop(unit, job, stop)
            return Outcome(job.job_id, job.attempt, stopped=stop)
        if isinstance(granted, Wait):
            return Outcome(job.job_id, job.attempt, wait=granted)
        if self.waited is not None:
            append(unit, job, self.waited)
        outcome = Outcome(job.job_id, job.attempt, job.lease_epoch, granted, limits=limits, rates=rates)
        outcome.called_seq, outcome.at = self._write_called(unit, job, granted), unit.now
        outcome.left_microusd = left_microusd(unit, job.tenant_id, limits)
        return outcome

    def _write_called(self, unit: Unit, job: JobRow, granted: Granted) -> int:
        event = msgspec.structs.replace(self.reservation.called)
        event.attempt = job.attempt
        detail: dict[str, Any] = dict(event.detail or {})
        detail["reserved_microusd"], detail["max_output_tokens"] = granted.amount_microusd, granted.tokens
        if granted.lowered:
            detail["lowered"] = True
        event.detail = detail
        return append_asked(unit, job, event, self.request, self.known, place=self.subject.place)

    def _write_stop(self, unit: Unit, job: JobRow, stop: BudgetStopped) -> None:
        event = msgspec.structs.replace(self.reservation.called, event="budget_stopped", call_id=None, detail=None)
        event.attempt = job.attempt
        event.decision = stop_facts(stop)
        append(unit, job, event)
        if not self.subject.aside:
            close_unattributed(unit, job, ErrorFacts("budget_stopped", str(stop)))


class Settle(msgspec.Struct):
    """The end of a call: its answer, or its last failure. Raises nothing for a fenced caller: what was paid is written
    all the same, but it answers nothing; `Ended.fenced` says so."""

    subject: Subject
    spent: Spent
    limits: Sequence[Limit] = ()
    rates: Sequence[Rate] = ()
    alarms: Sequence[Alarm] = ()
    last: bool = True
    """Else the call goes on after this try."""

    def locks(self) -> Locks:
        subject = self.subject
        drawn = locks(subject.who.tenant_id, self.limits, self.rates)
        return [(JOB, subject.job_id), *drawn, *self.spent.locks()]

    def decide(self, unit: Unit) -> Ended:
        subject, place = self.subject, self.subject.place
        job = locked_job(unit, subject.job_id)
        if place is not None:
            fenced = job.lease_epoch != place.lease_epoch or job.state in FINISHED
        else:
            fenced = job.attempt > subject.attempt
        recorded = write_spent(unit, job, self.spent, subject, place=None if fenced or not self.last else place)
        if self.last and not subject.aside:
            close_unattributed(unit, job, self.spent.event.error)
        alarmed = [alarm for alarm in self.alarms if sound(unit, job, alarm)]
        return Ended(recorded, fenced, left_microusd(unit, job.tenant_id, self.limits), alarmed)


class Ended(msgspec.Struct):
    """The recorded end of a call. `fenced`: a newer attempt or lease has begun meanwhile. `left_microusd` is what the budget
    with least left in money has left; `alarmed` are the alarms that the call set off."""

    recorded: Recorded
    fenced: bool
    left_microusd: int | None = None
    alarmed: Sequence[Alarm] = ()


class Lose(msgspec.Struct):
    """Nobody will hear of this call again: its whole reservation is booked as a bound. The outcome tells whether it was open.

    `silent` is the owner of the reservation and the `seen_at` at which its row stood still: where the owner has renewed its
    row meanwhile, it is alive, and nothing is written."""

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
        estimate = decode_estimate(row.estimate)
        job = locked_job(unit, self.job_id)
        bound = settle(unit, self.call_id, None, why=LOST).bound_microusd
        event = estimate.event("model_lost", self.call_id)
        event.attempt, event.cost_microusd, event.bound_microusd = job.attempt, 0, bound
        event.decision = {"why": self.why}
        event.detail = {"estimated": True}
        append(unit, job, event)
        count_usage(unit, job, estimate.agent_id, estimate.model, (0, 0, 0), 0, bound)
        close_unattributed(unit, job, ErrorFacts("model_lost", "the call was lost in flight", retryable=True))
        return True


def _is_silent(unit: Unit, owner: str, seen_at: int | None) -> bool:
    rows = unit.query(BUDGET_SQL["read_owner_seen_at"], {"owner": owner})
    return (rows[0][0] if rows else None) == seen_at
