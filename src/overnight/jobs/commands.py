"""The transitions of a job, each one transaction with its events."""

from typing import Any

import msgspec

from overnight.domain import FINISHED, Conflict, ErrorFacts, Event
from overnight.ledger import EXTERNAL, JOB, JobRow, NewJob, announce, append, locked_job, mark_idle, open_job
from overnight.store import Unit

from .retry_plan import Drop

Locks = list[tuple[Any, Any]]


def wake(unit: Unit, job: JobRow) -> None:
    """Something from outside arrived: a parked job is queued, a running one is called."""
    if job.state == "parked":
        job.state, job.wake_at, job.waiting = "queued", None, "[]"
    elif job.state == "running":
        job.wake_at = unit.now
    unit.change(JOB, job)


class CreateJob(msgspec.Struct):
    """Make a job, or find the one with this external id. The outcome is its row and whether it is new."""

    new: NewJob

    def locks(self) -> Locks:
        if self.new.external_id is not None:
            return [(EXTERNAL, (self.new.tenant_id, self.new.external_id))]
        return [(JOB, self.new.job_id)]

    def decide(self, unit: Unit) -> tuple[JobRow, bool]:
        job, fresh = open_job(unit, self.new)
        return msgspec.structs.replace(job), fresh


class TakeLease(msgspec.Struct):
    """Take a job that is due, or whose worker is lost. The outcome is its row, or None when another worker was faster."""

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
        first = job.started_at is None
        if lost:
            _lost(unit, job)
        job.state, job.lease_owner, job.lease_expires_at = "running", self.owner, self.expires_at
        job.lease_epoch += 1
        job.wake_at, job.waiting = None, "[]"
        job.started_at = job.started_at or unit.now
        unit.change(JOB, job)
        event = Event("started" if first else "resumed", attempt=job.attempt, actor=self.owner)
        event.detail = {"lease_epoch": job.lease_epoch}
        if lost:
            event.decision = {"why": "recovery: its worker was lost"}
        append(unit, job, event)
        return msgspec.structs.replace(job)


def _lost(unit: Unit, job: JobRow) -> None:
    job.recoveries += 1
    event = Event("worker_lost", attempt=job.attempt, actor=job.lease_owner)
    event.detail = {"lease_epoch": job.lease_epoch, "recoveries": job.recoveries}
    append(unit, job, event)


class ExpireLease(msgspec.Struct):
    """The worker is known to be dead: its job may be taken at once. The outcome tells whether it held the job."""

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


class GiveBack(msgspec.Struct):
    """A worker that stops in good order queues what it was running."""

    job_id: str
    lease_epoch: int

    def locks(self) -> Locks:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> None:
        job = locked_job(unit, self.job_id, lease_epoch=self.lease_epoch)
        job.state, job.lease_owner, job.lease_expires_at, job.wake_at = "queued", None, None, None
        unit.change(JOB, job)
        event = Event("scheduled", attempt=job.attempt)
        event.decision = {"why": "its worker was stopped"}
        append(unit, job, event)


class Hear(msgspec.Struct):
    """Clear the call of a running job before its news is read, so that no later call is missed."""

    job_id: str
    lease_epoch: int

    def locks(self) -> Locks:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> None:
        job = locked_job(unit, self.job_id, lease_epoch=self.lease_epoch)
        job.wake_at = None
        unit.change(JOB, job)


class Park(msgspec.Struct):
    """No branch can run. The outcome is False when news from outside came first: then the job stays."""

    job_id: str
    lease_epoch: int
    waits: list[dict[str, Any]]
    events: list[Event] = []

    def locks(self) -> Locks:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> bool:
        job = locked_job(unit, self.job_id, lease_epoch=self.lease_epoch)
        if job.wake_at is not None or job.cancel_requested_at is not None:
            return False
        for event in self.events:
            append(unit, job, event)
        due = [wait["due_at"] for wait in self.waits if wait.get("due_at") is not None]
        job.state, job.waiting = "parked", msgspec.json.encode(self.waits).decode()
        job.lease_owner, job.lease_expires_at, job.wake_at = None, None, min(due) if due else None
        unit.change(JOB, job)
        event = Event("parked", attempt=job.attempt, detail={"waiting": self.waits})
        event.decision = {"why": "waits for " + ", ".join(sorted({str(wait["for"]) for wait in self.waits}))}
        append(unit, job, event)
        return True


def finish(
    unit: Unit,
    job: JobRow,
    state: str,
    event: Event,
    *,
    result: bytes | None,
    error: ErrorFacts | None,
    trace: bytes | None = None,
) -> None:
    """End a job; its parent, which must be locked too, gets the answer. `trace` is the traceback of a failure as content."""
    job.state, job.result, job.finished_at = state, result, unit.now
    job.error = msgspec.json.encode(error).decode() if error else None
    job.lease_owner, job.lease_expires_at, job.wake_at, job.waiting = None, None, None, "[]"
    unit.change(JOB, job)
    append(unit, job, event, content=trace if result is None else result)
    parent = unit.get(JOB, job.parent_job_id) if job.parent_job_id is not None else None
    # One that is over hears of it when it is tried again, see `children.py`.
    if parent is not None and parent.state not in FINISHED:
        tell_parent(unit, parent, job, error)


def tell_parent(unit: Unit, parent: JobRow, child: JobRow, error: ErrorFacts | None) -> None:
    """The parent gets the answer of its child that has ended."""
    answer = Event("child_finished", kind="child", name=child.name, error=error, attempt=parent.attempt)
    answer.detail = {"child_job_id": child.job_id, "state": child.state}
    append(unit, parent, answer, content=child.result, path=child.parent_path, ordinal=child.parent_ordinal)
    wake(unit, parent)


class Finish(msgspec.Struct):
    """The job function returned, raised, or was stopped. `unhandled` are the failures that it did not go on from."""

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
        finish(unit, job, self.state, event, result=self.result, error=self.error, trace=self.trace)


def _with_parent(job_id: str, parent_job_id: str | None) -> Locks:
    return [(JOB, job_id)] if parent_job_id is None else [(JOB, job_id), (JOB, parent_job_id)]


class Cancel(msgspec.Struct):
    """Ask for a job to stop: at once when nothing of it runs. The outcome is its state afterwards."""

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
            event = Event("cancelled", actor=self.actor, attempt=job.attempt)
            finish(unit, job, "cancelled", event, result=None, error=None)
        return job.state


def retry(unit: Unit, job: JobRow, drop: Drop, actor: str) -> None:
    """Start a new attempt of a failed job, and put it in line."""
    job.attempt += 1
    append(unit, job, Event("attempt_started", attempt=job.attempt, actor=actor, detail={"mode": "retry"}))
    append(unit, job, Event("answers_dropped", attempt=job.attempt, detail=msgspec.structs.asdict(drop)))
    put_in_line(unit, job, actor)


def put_in_line(unit: Unit, job: JobRow, actor: str) -> None:
    """Queue a job that is not running."""
    job.state, job.waiting, job.wake_at, job.error, job.finished_at = "queued", "[]", None, None, None
    job.cancel_requested_at = None
    unit.change(JOB, job)
    append(unit, job, Event("scheduled", actor=actor, attempt=job.attempt))


class Resume(msgspec.Struct):
    """Put a parked or failed job back in line. A failed one starts a new attempt without what is to `drop`, which was chosen
    from the history up to `last_seq`. The outcome is its state."""

    job_id: str
    actor: str
    last_seq: int
    drop: Drop | None = None

    def locks(self) -> Locks:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> str:
        job = locked_job(unit, self.job_id)
        if job.state not in {"parked", "failed"}:
            raise Conflict(f"{self.job_id} is {job.state}; only parked or failed jobs can be resumed")
        if job.state == "parked":
            put_in_line(unit, job, self.actor)
        elif self.drop is None or job.last_seq != self.last_seq:
            raise Conflict(f"{self.job_id} changed meanwhile; try again")
        else:
            retry(unit, job, self.drop, self.actor)
        return job.state


class Announce(msgspec.Struct):
    """A foreign runtime starts a new attempt of its job: the old one is fenced, recorded calls become answers.

    `number` names the attempt wanted; without it, the next one. Announcing the present attempt again changes nothing.
    """

    job_id: str
    mode: str = "recover"
    number: int | None = None
    actor: str | None = None
    answers_until: int | None = None

    def locks(self) -> Locks:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> JobRow:
        return msgspec.structs.replace(
            announce(unit, locked_job(unit, self.job_id), self.mode, self.number, self.actor)
        )


class Complete(msgspec.Struct):
    """A foreign runtime says that its job is over; or, with `idle_since`, nothing was heard of the job since then."""

    job_id: str
    state: str = "succeeded"
    result: bytes | None = None
    error: ErrorFacts | None = None
    actor: str | None = None
    idle_since: int | None = None
    attempt: int | None = None
    trace: bytes | None = None

    def locks(self) -> Locks:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> JobRow:
        job = locked_job(unit, self.job_id)
        still_busy = self.idle_since is not None and job.active_at >= self.idle_since
        # An attempt that is over cannot end the job of the one that has begun.
        if still_busy or self.attempt not in {None, job.attempt}:
            return msgspec.structs.replace(job)
        if job.runtime != "foreign":
            raise Conflict(f"{self.job_id} is run by Overnight itself and ends with its function")
        if job.state not in FINISHED:
            name = "completed" if self.state == "succeeded" else self.state
            event = Event(name, attempt=job.attempt, actor=self.actor, error=self.error)
            if self.idle_since is not None:
                mark_idle(event)
            finish(unit, job, self.state, event, result=self.result, error=self.error, trace=self.trace)
        return msgspec.structs.replace(job)


class ParkForeign(msgspec.Struct):
    """A foreign program stops until a person has decided; its next start is a new attempt."""

    job_id: str
    attempt: int
    waits: list[dict[str, Any]]

    def locks(self) -> Locks:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> None:
        job = locked_job(unit, self.job_id)
        if job.attempt != self.attempt or job.state != "running":
            return
        job.state, job.waiting = "parked", msgspec.json.encode(self.waits).decode()
        unit.change(JOB, job)
        event = Event("parked", attempt=job.attempt, detail={"waiting": self.waits})
        event.decision = {"why": "waits for " + ", ".join(sorted({str(wait["for"]) for wait in self.waits}))}
        append(unit, job, event)


class Forget(msgspec.Struct):
    """A worker that stops in good order is not counted as alive any more."""

    worker_id: str
    statement: Any

    def locks(self) -> Locks:
        return []

    def decide(self, unit: Unit) -> None:
        unit.append(self.statement, self)


class Refresh(msgspec.Struct):
    """Write a worker's sign of life and extend its leases, in one statement each."""

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
