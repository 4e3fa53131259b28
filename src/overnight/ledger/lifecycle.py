"""The state of a job. This module is the only writer of `job.state`; every change is written with its event.

All functions run inside a unit of work, under the lock of the job's row. `TRANSITIONS` lists the states in which each
is allowed; in another state it raises Conflict and changes nothing.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from overnight.domain import FINISHED, Conflict, ErrorFacts, Event, Fenced
from overnight.store import Unit

from .log import append
from .rows import JOB, JobRow

ATTEMPT_MARK = "attempt_started"
"""The fingerprint column of `attempt_started`, so that the attempts of a job are found without reading its log."""


class Transition(msgspec.Struct, frozen=True):
    """One kind of state change: the allowed states before it, and the possible states after it."""

    sources: frozenset[str]
    targets: frozenset[str]


def _transition(sources: str, targets: str) -> Transition:
    return Transition(frozenset(sources.split()), frozenset(targets.split()))


INITIAL_STATES = frozenset({"queued", "running"})
"""The states of a new job: queued for a worker, or running in an external program."""

TRANSITIONS = {
    "start": _transition("queued parked running", "running"),
    "release": _transition("running", "queued"),
    "park": _transition("running", "parked"),
    "wake": _transition("parked", "queued"),
    "queue": _transition("parked failed", "queued"),
    "retry": _transition("failed", "queued"),
    "begin_attempt": _transition("queued running parked succeeded failed", "running"),
    "reopen": _transition("succeeded failed", "running"),
    "finish": _transition("queued running parked", "succeeded failed cancelled"),
}


def _enter(job: JobRow, transition: str, target: str) -> None:
    allowed = TRANSITIONS[transition]
    if job.state not in allowed.sources or target not in allowed.targets:
        raise Conflict(f"{job.job_id} is {job.state}: {transition} to {target} is not possible")
    job.state = target


# ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def start(unit: Unit, job: JobRow, owner: str, expires_at: int) -> None:
    """Give a worker the lease of a job until `expires_at` (microseconds). A running job has lost its worker."""
    first, lost = job.started_at is None, job.state == "running"
    previous_owner = job.lease_owner
    _enter(job, "start", "running")
    if lost:
        job.recoveries += 1
        event = Event("worker_lost", attempt=job.attempt, actor=previous_owner)
        event.detail = {"lease_epoch": job.lease_epoch, "recoveries": job.recoveries}
        append(unit, job, event)
    job.lease_owner, job.lease_expires_at = owner, expires_at
    job.lease_epoch += 1
    job.wake_at, job.waiting = None, "[]"
    job.started_at = job.started_at or unit.now
    unit.change(JOB, job)
    event = Event("started" if first else "resumed", attempt=job.attempt, actor=owner)
    event.detail = {"lease_epoch": job.lease_epoch}
    if lost:
        event.decision = {"why": "recovery: its worker was lost"}
    append(unit, job, event)


def release(unit: Unit, job: JobRow) -> None:
    """Queue a running job whose worker stops."""
    _enter(job, "release", "queued")
    job.lease_owner, job.lease_expires_at, job.wake_at = None, None, None
    unit.change(JOB, job)
    event = Event("scheduled", attempt=job.attempt)
    event.decision = {"why": "its worker was stopped"}
    append(unit, job, event)


def park(unit: Unit, job: JobRow, waits: Sequence[dict[str, Any]], wake_at: int | None) -> None:
    """End the lease of a waiting job. `wake_at`: the latest time at which a worker continues it, in microseconds."""
    _enter(job, "park", "parked")
    job.waiting = msgspec.json.encode(waits).decode()
    job.lease_owner, job.lease_expires_at, job.wake_at = None, None, wake_at
    unit.change(JOB, job)
    event = Event("parked", attempt=job.attempt, detail={"waiting": waits})
    event.decision = {"why": "waits for " + ", ".join(sorted({str(wait["for"]) for wait in waits}))}
    append(unit, job, event)


def mark_wait(unit: Unit, job: JobRow, review_id: str, expired_at: int | None) -> None:
    """Note in a parked job's wait for a review that nobody decided in time, or with None that the review was renewed."""
    waits = job.waits
    for wait in waits:
        if wait.get("review_id") == review_id:
            wait.pop("expired_at", None)
            if expired_at is not None:
                wait["expired_at"] = expired_at
    job.waiting = msgspec.json.encode(waits).decode()
    unit.change(JOB, job)


# ── queueing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def wake(unit: Unit, job: JobRow) -> None:
    """Queue a parked job, or signal a new external event to a running one. A job in another state does not change.

    The caller appends the event that wakes it.
    """
    if job.state == "parked":
        _enter(job, "wake", "queued")
        job.wake_at, job.waiting = None, "[]"
    elif job.state == "running":
        job.wake_at = unit.now
    unit.change(JOB, job)


def queue(unit: Unit, job: JobRow, actor: str) -> None:
    """Queue a parked or failed job again."""
    _enter(job, "queue", "queued")
    _scheduled(unit, job, actor)


def retry(unit: Unit, job: JobRow, dropped: dict[str, Any], actor: str) -> None:
    """Begin the next attempt of a failed job, and queue it. `dropped`: the detail of `answers_dropped`."""
    _enter(job, "retry", "queued")
    job.attempt += 1
    append(unit, job, Event("attempt_started", attempt=job.attempt, actor=actor, detail={"mode": "retry"}))
    append(unit, job, Event("answers_dropped", attempt=job.attempt, detail=dropped))
    _scheduled(unit, job, actor)


def _scheduled(unit: Unit, job: JobRow, actor: str) -> None:
    job.waiting, job.wake_at, job.error, job.finished_at = "[]", None, None, None
    job.cancel_requested_at = None
    unit.change(JOB, job)
    append(unit, job, Event("scheduled", actor=actor, attempt=job.attempt))


# ── jobs of external programs ────────────────────────────────────────────────────────────────────────────────────────


def begin_attempt(
    unit: Unit, job: JobRow, mode: str, number: int | None, actor: str | None, answers_until: int | None = None
) -> JobRow:
    """Begin attempt `number` of an external job, or the next one. Beginning the current attempt again changes nothing.

    `mode` is `recover` (every recorded result is replayed) or `retry` (results after the seq `answers_until` are
    not).

    Raises:
        Fenced: the number is that of a previous attempt.
        Conflict: the number skips an attempt, or the job is cancelled.
    """
    if job.state == "cancelled":
        raise Conflict(f"{job.job_id} was cancelled; start another job")
    wanted = job.attempt + 1 if number is None else number
    if wanted < job.attempt:
        raise Fenced(f"attempt {wanted} of {job.job_id} is over: attempt {job.attempt} has begun")
    if wanted > job.attempt + 1:
        raise Conflict(f"attempt {wanted} skips ahead: {job.job_id} is at attempt {job.attempt}")
    if wanted == job.attempt:
        return job
    _enter(job, "begin_attempt", "running")
    job.attempt = wanted
    job.lease_epoch += 1
    job.finished_at, job.result, job.error, job.waiting = None, None, None, "[]"
    unit.change(JOB, job)
    event = Event("attempt_started", attempt=wanted, actor=actor, detail={"mode": mode})
    if answers_until is not None:
        event.detail = {"mode": mode, "answers_until": answers_until}
    append(unit, job, event, fingerprint=ATTEMPT_MARK)
    return job


def reopen(unit: Unit, job: JobRow) -> None:
    """Continue an external job that has ended."""
    previous = job.state
    _enter(job, "reopen", "running")
    job.finished_at, job.result, job.error = None, None, None
    unit.change(JOB, job)
    append(unit, job, Event("started", attempt=job.attempt, decision={"why": f"reopened: it had {previous}"}))


# ── ending ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def finish(
    unit: Unit,
    job: JobRow,
    state: str,
    event: Event,
    *,
    result: bytes | None = None,
    error: ErrorFacts | None = None,
    trace: bytes | None = None,
) -> None:
    """End a job with this event, and report the end to its parent, unless that has finished too. Commands that know the parent
    lock its row beforehand, in the global order.

    `result` is JSON. `trace` is the traceback of a failure as JSON, recorded if there is no result.
    """
    _enter(job, "finish", state)
    job.result, job.finished_at = result, unit.now
    job.error = msgspec.json.encode(error).decode() if error else None
    job.lease_owner, job.lease_expires_at, job.wake_at, job.waiting = None, None, None, "[]"
    unit.change(JOB, job)
    append(unit, job, event, content=trace if result is None else result)
    if job.parent_job_id is None:
        return
    if not unit.is_loaded(JOB, job.parent_job_id):
        unit.lock([(JOB, job.parent_job_id)])
    parent = unit.get(JOB, job.parent_job_id)
    # A finished parent reads the result of its child when it is retried.
    if parent is not None and parent.state not in FINISHED:
        notify_parent(unit, parent, job, error)


def notify_parent(unit: Unit, parent: JobRow, child: JobRow, error: ErrorFacts | None) -> None:
    """Record the result of a finished child job in the log of its parent, and wake a parent that waits for it.

    The code of a parent waits at the position of its child. The child of an external program has none.
    """
    event = Event("child_finished", kind="child", name=child.name, error=error, attempt=parent.attempt)
    event.detail = {"child_job_id": child.job_id, "state": child.state}
    append(unit, parent, event, content=child.result, path=child.parent_path, ordinal=child.parent_ordinal)
    waited = any(wait.get("for") == "child" and wait.get("child_job_id") == child.job_id for wait in parent.waits)
    if child.parent_path is not None or waited:
        wake(unit, parent)
