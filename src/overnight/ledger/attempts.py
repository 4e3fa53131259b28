"""A foreign runtime begins its job anew: the old attempt is fenced, and what it recorded becomes answers."""

from overnight.domain import Conflict, Event, Fenced
from overnight.store import Unit

from .log import append
from .rows import JOB, JobRow

ATTEMPT_MARK = "attempt_started"
"""Stands in the fingerprint column of `attempt_started`, so that the attempts of a job are found without reading its log."""


def announce(
    unit: Unit, job: JobRow, mode: str, number: int | None, actor: str | None, answers_until: int | None = None
) -> JobRow:
    """Begin attempt `number`, or the next one; announcing the present attempt again changes nothing.

    `mode` is `recover` (every recorded answer holds) or `retry` (those after the seq `answers_until` are asked for anew).
    Raises Fenced for an attempt that is over, Conflict for one that skips ahead and for a cancelled job.
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
    job.attempt = wanted
    job.lease_epoch += 1
    job.state, job.finished_at, job.result, job.error, job.waiting = "running", None, None, None, "[]"
    unit.change(JOB, job)
    event = Event("attempt_started", attempt=wanted, actor=actor, detail={"mode": mode})
    if answers_until is not None:
        event.detail = {"mode": mode, "answers_until": answers_until}
    append(unit, job, event, fingerprint=ATTEMPT_MARK)
    return job
