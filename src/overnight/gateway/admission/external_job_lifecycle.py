"""Create, restart, reopen and close the job of a call, or reject the call. Under the job's lock."""

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


def find_or_create_job(unit: Unit, subject: Subject) -> tuple[JobRow, bool]:
    """Return the locked job of a call, and whether it was created. Raises NotFound, also for a job outside the scope of the
    caller's key."""
    who = subject.who
    job_id = subject.job_id
    if subject.external_id is not None and not subject.known:
        mapped = unit.get(EXTERNAL, (who.tenant_id, subject.external_id))
        if mapped is not None:
            job_id = mapped.job_id
            unit.lock([(JOB, job_id)])
    job = unit.get(JOB, job_id)
    if (
        job is not None
        and job.tenant_id == who.tenant_id
        and who.key_scope.allows(job.agent_id, job.workflow, job.scope_name)
    ):
        return job, False
    if job is not None and subject.external_id is not None:
        # External ids are unique per tenant.
        raise NotFound(f"job {subject.external_id} in the scope of this key; choose another name for a new job")
    if subject.known or job is not None:
        raise NotFound(f"job {job_id}. `overnight jobs` lists jobs")
    new = NewJob(
        job_id,
        who.tenant_id,
        "foreign",
        who.workflow or who.agent_id or "external job",
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
    # Earlier attempts made no call, so there is nothing to fence.
    made.attempt = who.attempt or 1
    return made, is_new


def admit_call(unit: Unit, job: JobRow, subject: Subject) -> None:
    """Admit a call to an existing job. Start the attempt that the call names, or reopen the job, if required.

    Raises Fenced for an attempt or lease that has ended, Conflict for a job that accepts no more calls, Forbidden if the
    caller's key may not start an attempt.
    """
    place, wanted = subject.place, subject.who.attempt
    if place is not None:
        # A parked job keeps its epoch, but its code no longer waits for the answer.
        if job.lease_epoch != place.lease_epoch or job.state != "running":
            raise Fenced(f"{job.job_id} is at lease epoch {job.lease_epoch} ({job.state}): this worker must stop")
        return
    if job.state == "cancelled":
        raise Conflict(f"{job.job_id} was cancelled; start another job, under another x-job-id")
    if job.runtime != "foreign":
        if job.state in FINISHED:
            raise Conflict(f"{job.job_id} has {job.state} and is run by Overnight; `overnight resume` restarts it")
        return
    if not subject.who.operates:
        _check_scope(unit, job, wanted)
    if wanted is not None:
        begin_attempt(unit, job, "recover", wanted, subject.who.actor)
    if job.state in FINISHED:
        lifecycle.reopen(unit, job)


def _check_scope(unit: Unit, job: JobRow, wanted: int | None) -> None:
    """Require the scope `jobs.operate` to fence the running attempt or to undo the completion of a job, as the job endpoints do.

    The scope is not required for a job that ended with its only call, or because no call came. Raises Forbidden."""
    if wanted == job.attempt + 1:
        raise Forbidden(
            f"x-job-attempt: starting attempt {wanted} of {job.job_id} requires a key with the scope jobs.operate"
        )
    if job.state in FINISHED and not job.unattributed and not _was_idle(unit, job):
        raise Forbidden(f"{job.job_id} is {job.state}; reopening it requires a key with the scope jobs.operate")


def _was_idle(unit: Unit, job: JobRow) -> bool:
    """Whether the job was closed as idle, and not by a program or a person."""
    name = "completed" if job.state == "succeeded" else "failed"
    ended = next(search_log(unit, job, f'"event":"{name}"', most=1), None)
    return ended is not None and closed_idle(ended.facts)


def close_unattributed(unit: Unit, job: JobRow, error: ErrorFacts | None) -> None:
    """Finish a job that was created for one call."""
    if not job.unattributed or job.state in FINISHED:
        return
    event = Event("failed" if error else "completed", attempt=job.attempt, error=error)
    event.decision = {"why": "unattributed: a job for one call"}
    lifecycle.finish(unit, job, "failed" if error else "succeeded", event, error=error)
