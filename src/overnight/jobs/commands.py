"""Commands on jobs, each one transaction. Changes of state are those of `ledger/lifecycle.py`."""

from typing import Any

import msgspec

from overnight.domain import FINISHED, Conflict, ErrorFacts, Event
from overnight.effects import end_locks, end_reviews
from overnight.ledger import (
    EXTERNAL,
    JOB,
    JobRow,
    NewJob,
    append,
    begin_attempt,
    lifecycle,
    locked_job,
    open_job,
)
from overnight.reviews import OPEN_REVIEWS, supersede_waits
from overnight.store import Unit

from .parked_reviews import with_reviews
from .replay.retry_plan import RetryPlan

Locks = list[tuple[Any, Any]]


class CreateJob(msgspec.Struct):
    """Create a job, or find the one with this external id. Outcome: its row, and whether it is new."""

    new: NewJob

    def locks(self) -> Locks:
        if self.new.external_id is not None:
            return [(EXTERNAL, (self.new.tenant_id, self.new.external_id))]
        return [(JOB, self.new.job_id)]

    def decide(self, unit: Unit) -> tuple[JobRow, bool]:
        job, is_new = open_job(unit, self.new)
        return msgspec.structs.replace(job), is_new


# ── leases ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class TakeLease(msgspec.Struct):
    """Take a job that is due, or whose worker is lost. Outcome: its row, or None if another worker was faster."""

    job_id: str
    owner: str
    expires_at: int

    def locks(self) -> Locks:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> JobRow | None:
        job = unit.get(JOB, self.job_id)
        if job is None or job.runtime != "python":
            return None
        due = job.state == "queued" or (job.state == "parked" and job.wake_at is not None and job.wake_at <= unit.now)
        lost = job.state == "running" and (job.lease_expires_at or 0) < unit.now
        if not due and not lost:
            return None
        lifecycle.start(unit, job, self.owner, self.expires_at)
        return msgspec.structs.replace(job)


class ExpireLease(msgspec.Struct):
    """End the lease of a worker that is known to be dead. Outcome: whether it held the job."""

    job_id: str
    owner: str

    def locks(self) -> Locks:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> bool:
        job = unit.get(JOB, self.job_id)
        if job is None or job.lease_owner != self.owner or job.state != "running":
            return False
        job.lease_expires_at = 0
        unit.change(JOB, job)
        return True


class ReleaseLease(msgspec.Struct):
    """Queue a running job whose worker stops."""

    job_id: str
    lease_epoch: int

    def locks(self) -> Locks:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> None:
        lifecycle.release(unit, locked_job(unit, self.job_id, lease_epoch=self.lease_epoch))


class ClearWakeSignal(msgspec.Struct):
    """Clear the wake signal of a running job before its log is read, so that no later signal is missed."""

    job_id: str
    lease_epoch: int

    def locks(self) -> Locks:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> None:
        job = locked_job(unit, self.job_id, lease_epoch=self.lease_epoch)
        job.wake_at = None
        unit.change(JOB, job)


class RefreshWorker(msgspec.Struct):
    """Write a worker's heartbeat and extend its leases, in one statement each."""

    worker_id: str
    role: str
    host: str
    pid: int
    started_at: int
    lease_us: int
    upsert: Any
    extend: Any
    owner: str = ""
    seen_at: int = 0
    expires_at: int = 0

    def locks(self) -> Locks:
        return []

    def decide(self, unit: Unit) -> None:
        self.owner, self.seen_at, self.expires_at = self.worker_id, unit.now, unit.now + self.lease_us
        unit.append(self.upsert, self)
        unit.append(self.extend, self)


class RemoveWorker(msgspec.Struct):
    """Delete the row of a worker that stops."""

    worker_id: str
    statement: Any

    def locks(self) -> Locks:
        return []

    def decide(self, unit: Unit) -> None:
        unit.append(self.statement, self)


# ── parking, ending, retrying ────────────────────────────────────────────────────────────────────────────────────────


class Park(msgspec.Struct):
    """Park a job of which no branch can run. Outcome: False if an external event or a cancellation came first."""

    job_id: str
    lease_epoch: int
    waits: list[dict[str, Any]]
    events: list[Event] = []

    def locks(self) -> Locks:
        return [(JOB, self.job_id), (OPEN_REVIEWS, self.job_id)]

    def decide(self, unit: Unit) -> bool:
        job = locked_job(unit, self.job_id, lease_epoch=self.lease_epoch)
        if job.wake_at is not None or job.cancel_requested_at is not None:
            return False
        for event in self.events:
            append(unit, job, event)
        due = [wait["due_at"] for wait in self.waits if wait.get("due_at") is not None]
        lifecycle.park(unit, job, with_reviews(unit, job, self.waits), min(due) if due else None)
        return True


class Finish(msgspec.Struct):
    """End a job whose function returned, raised or was stopped. `unhandled`: the seqs of the failures that ended it."""

    job_id: str
    parent_job_id: str | None
    lease_epoch: int
    state: str
    result: bytes | None = None
    error: ErrorFacts | None = None
    unhandled: list[int] = []
    trace: bytes | None = None

    def locks(self) -> Locks:
        return _with_parent(self.job_id, self.parent_job_id)

    def decide(self, unit: Unit) -> None:
        job = locked_job(unit, self.job_id, lease_epoch=self.lease_epoch)
        name = "completed" if self.state == "succeeded" else self.state
        event = Event(name, attempt=job.attempt, error=self.error)
        if self.unhandled:
            event.detail = {"unhandled": self.unhandled}
        lifecycle.finish(unit, job, self.state, event, result=self.result, error=self.error, trace=self.trace)
        end_reviews(unit, job)


def _with_parent(job_id: str, parent_job_id: str | None) -> Locks:
    """The locks of a command that ends a job."""
    parent: Locks = [] if parent_job_id is None else [(JOB, parent_job_id)]
    return [(JOB, job_id), *parent, *end_locks(job_id)]


class Cancel(msgspec.Struct):
    """Request the cancellation of a job, and end it if nothing of it runs. Outcome: its state afterwards."""

    job_id: str
    parent_job_id: str | None
    actor: str

    def locks(self) -> Locks:
        return _with_parent(self.job_id, self.parent_job_id)

    def decide(self, unit: Unit) -> str:
        job = locked_job(unit, self.job_id)
        if job.state in FINISHED:
            raise Conflict(f"{self.job_id} is already {job.state}")
        if job.cancel_requested_at is None:
            job.cancel_requested_at = unit.now
            unit.change(JOB, job)
            append(unit, job, Event("cancel_requested", actor=self.actor, attempt=job.attempt))
        if job.state != "running" or job.runtime == "foreign":
            lifecycle.finish(unit, job, "cancelled", Event("cancelled", actor=self.actor, attempt=job.attempt))
            end_reviews(unit, job)
        return job.state


class Resume(msgspec.Struct):
    """Queue a parked job, or retry a failed one by a `plan` made from its history up to `last_seq`. Outcome: its state."""

    job_id: str
    actor: str
    last_seq: int
    plan: RetryPlan | None = None

    def locks(self) -> Locks:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> str:
        job = locked_job(unit, self.job_id)
        if job.state not in {"parked", "failed"}:
            raise Conflict(f"{self.job_id} is {job.state}; only parked or failed jobs can be resumed")
        if job.state == "parked":
            supersede_waits(unit, job, job.waits, "the job was resumed")
            lifecycle.queue(unit, job, self.actor)
        elif self.plan is None or job.last_seq != self.last_seq:
            raise Conflict(f"{self.job_id} has changed; retry")
        else:
            lifecycle.retry(unit, job, msgspec.structs.asdict(self.plan), self.actor)
        return job.state


# ── jobs of external programs ────────────────────────────────────────────────────────────────────────────────────────


class BeginAttempt(msgspec.Struct):
    """Begin an attempt of an external job. The previous attempt is fenced, and recorded calls are replayed.

    `number` names the attempt; None is the next one. Beginning the current attempt again changes nothing.
    """

    job_id: str
    mode: str = "recover"
    number: int | None = None
    actor: str | None = None

    def locks(self) -> Locks:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> JobRow:
        job = locked_job(unit, self.job_id)
        waits = job.waits
        begun = begin_attempt(unit, job, self.mode, self.number, self.actor)
        supersede_waits(unit, begun, waits if not begun.waits else [], "a new attempt began")
        return msgspec.structs.replace(begun)


class Complete(msgspec.Struct):
    """End an external job. Outcome: its row.

    With `attempt`, only while that attempt is the current one.
    """

    job_id: str
    state: str = "succeeded"
    result: bytes | None = None
    error: ErrorFacts | None = None
    actor: str | None = None
    attempt: int | None = None
    trace: bytes | None = None
    parent_job_id: str | None = None

    def locks(self) -> Locks:
        return _with_parent(self.job_id, self.parent_job_id)

    def decide(self, unit: Unit) -> JobRow:
        job = locked_job(unit, self.job_id)
        # A previous attempt cannot end the job of the current one.
        if self.attempt not in {None, job.attempt}:
            return msgspec.structs.replace(job)
        if job.runtime != "foreign":
            raise Conflict(f"{self.job_id} is run by Overnight itself and ends with its function")
        if job.state not in FINISHED:
            name = "completed" if self.state == "succeeded" else self.state
            event = Event(name, attempt=job.attempt, actor=self.actor, error=self.error)
            lifecycle.finish(unit, job, self.state, event, result=self.result, error=self.error, trace=self.trace)
            end_reviews(unit, job)
        return msgspec.structs.replace(job)


class ParkExternal(msgspec.Struct):
    """Park an external job until a person decides or its budget has room. Its next start is a new attempt."""

    job_id: str
    attempt: int
    waits: list[dict[str, Any]]

    def locks(self) -> Locks:
        return [(JOB, self.job_id), (OPEN_REVIEWS, self.job_id)]

    def decide(self, unit: Unit) -> None:
        job = locked_job(unit, self.job_id)
        if job.attempt == self.attempt and job.state == "running":
            lifecycle.park(unit, job, with_reviews(unit, job, self.waits), job.wake_at)
