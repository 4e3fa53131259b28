"""Job entry: the job of a call is made, restarted or reopened, or the call is refused. Under the job's lock."""

from __future__ import annotations

from overnight.domain import (
    FINISHED,
    Conflict,
    ErrorFacts,
    Event,
    Fenced,
    Forbidden,
    NotFound,
)
from overnight.ledger import (
    EXTERNAL,
    JOB,
    JobRow,
    NewJob,
    begin_attempt,
    closed_idle,
    lifecycle,
    open_job,
)
from overnight.store import Unit

from ..identity import Subject
from .log_search import search_log


def find_job(unit: Unit, subject: Subject) -> tuple[JobRow, bool]:
    """The locked job of a call, made where it is the first, and whether it was. Raises NotFound: also for a job that is there,
    and outside the scope of the caller's key."""
    who = subject.who
    job_id = subject.job_id
    if subject.external_id is not None and not subject.known:
        mapped = unit.get(EXTERNAL, (who.tenant_id, subject.external_id))
        if mapped is not None:
            job_id = mapped.job_id
            unit.lock([(JOB, job_id)])
    job = unit.get(JOB, job_id)
    if job is not None and job.tenant_id == who.tenant_id and who.reach.covers(job.agent_id, job.workflow):
        return job, False
    if job is not None and subject.external_id is not None:
        # Names are the tenant's: it cannot be given to two jobs.
        raise NotFound(f"job {subject.external_id} within the reach of this key; choose another name for a new job")
    if subject.known or job is not None:
        raise NotFound(f"job {job_id}. `overnight jobs` lists jobs")
    new = NewJob(
        job_id,
        who.tenant_id,
        "foreign",
        who.workflow or who.agent_id or "foreign job",
        external_id=subject.external_id,
        agent_id=who.agent_id,
        workflow=who.workflow,
        session_id=who.session_id,
        brain_version=subject.brain_version,
        state="running",
        unattributed=subject.unattributed,
        actor=who.actor,
    )
    made, is_new = open_job(unit, new)
    # Attempts that ended before their first call were never heard of here: there is nothing to fence.
    made.attempt = who.attempt or 1
    return made, is_new


def enter(unit: Unit, job: JobRow, subject: Subject) -> None:
    """Let a call into a job that exists; begin the attempt it names, or reopen the job, where that is due.

    Raises Fenced for an attempt or lease that is over, Conflict for a job that takes no more calls, Forbidden where the caller's
    key may not begin an attempt.
    """
    place, wanted = subject.place, subject.who.attempt
    if place is not None:
        # A job that parked meanwhile keeps its epoch, and nobody there waits for the answer any more.
        if job.lease_epoch != place.lease_epoch or job.state != "running":
            raise Fenced(f"{job.job_id} is at lease epoch {job.lease_epoch} ({job.state}): this worker must stop")
        return
    if job.state == "cancelled":
        raise Conflict(f"{job.job_id} was cancelled; start another job, under another x-job-id")
    if job.runtime != "foreign":
        if job.state in FINISHED:
            raise Conflict(
                f"{job.job_id} has {job.state} and is run by Overnight itself; `overnight resume` starts it again"
            )
        return
    if not subject.who.operates:
        _check_right(unit, job, wanted)
    if wanted is not None:
        begin_attempt(unit, job, "recover", wanted, subject.who.actor)
    if job.state in FINISHED:
        lifecycle.reopen(unit, job)


def _check_right(unit: Unit, job: JobRow, wanted: int | None) -> None:
    """What the routes of jobs refuse without the scope `operate` cannot be had by a header or metadata of a call: to fence the
    attempt under way, and to undo the completion of a job. A job that ended with its one call, or because no call came, was
    completed by nobody."""
    if wanted == job.attempt + 1:
        raise Forbidden(
            f"x-job-attempt: starting attempt {wanted} of {job.job_id} requires a key with the scope operate"
        )
    if job.state in FINISHED and not job.unattributed and not _was_idle(unit, job):
        raise Forbidden(f"{job.job_id} is {job.state}; reopening it requires a key with the scope operate")


def _was_idle(unit: Unit, job: JobRow) -> bool:
    """Whether the job was closed because no call came, and not by a program or a person."""
    completed = next(search_log(unit, job, '"event":"completed"', most=1), None)
    return job.state == "succeeded" and completed is not None and closed_idle(completed.facts)


def close_unattributed(unit: Unit, job: JobRow, error: ErrorFacts | None) -> None:
    """A job that was made for one call ends with it."""
    if not job.unattributed or job.state in FINISHED:
        return
    event = Event("failed" if error else "completed", attempt=job.attempt, error=error)
    event.decision = {"why": "unattributed: a job for one call"}
    lifecycle.finish(unit, job, "failed" if error else "succeeded", event, error=error)
