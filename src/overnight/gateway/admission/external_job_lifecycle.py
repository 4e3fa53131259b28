"""Create, restart, reopen and close the job of a call, or reject the call. Under the job's lock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from overnight.domain import (
    FINISHED,
    Attribution,
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
    LEDGER_SQL,
    JobRow,
    NewJob,
    append,
    begin_attempt,
    closed_idle,
    lifecycle,
    locked_job,
    open_job,
)
from overnight.reviews import supersede_waits
from overnight.store import Unit, statements

from ..identity import NO_IDENTITY, JobIdentity, Subject, other_parent
from .log_search import search_log

_READ_CREATED = statements("overnight.gateway.admission")["read_created"]
_INSERT_EVENT = LEDGER_SQL["insert_event"]
_decode = msgspec.json.Decoder(Event).decode


def job_locks(subject: Subject) -> list[tuple[Any, Any]]:
    """The locks of `find_or_create_job`."""
    found: list[tuple[Any, Any]] = [(JOB, subject.job_id)]
    if subject.external_id is not None and not subject.known:
        found.append((EXTERNAL, (subject.who.tenant_id, subject.external_id)))
    if subject.parent_job_id is not None and not subject.known:
        found.append((JOB, subject.parent_job_id))
    return found + parent_locks(subject)


def parent_locks(subject: Subject) -> list[tuple[Any, Any]]:
    """The lock of the parent of a job for one call, which ends with the call and reports to its parent."""
    return [(JOB, subject.ancestors[-2])] if subject.unattributed and len(subject.ancestors) > 1 else []


def find_or_create_job(unit: Unit, subject: Subject) -> tuple[JobRow, bool]:
    """Return the locked job of a call, and whether it was created. Raises NotFound, also for a job outside the scope of the
    caller's key, and Conflict for a job with another parent, or a new one below a finished parent."""
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
        if subject.parent_job_id not in (None, job.parent_job_id):
            raise Conflict(other_parent(job.job_id, str(subject.parent_job_id)))
        return job, False
    if job is not None and subject.external_id is not None:
        # External ids are unique per tenant.
        raise NotFound(f"job {subject.external_id} in the scope of this key; choose another name for a new job")
    if subject.known or job is not None:
        raise NotFound(f"job {job_id}. `overnight jobs` lists jobs")
    parent, own = _open_parent(unit, subject), who.key_scope
    new = NewJob(
        job_id,
        who.tenant_id,
        "foreign",
        who.workflow or who.agent_id or "external job",
        parent_job_id=subject.parent_job_id,
        root_job_id=parent.root_job_id if parent else None,
        external_id=subject.external_id,
        agent_id=who.agent_id,
        workflow=who.workflow,
        session_id=who.session_id,
        brain_version=subject.brain_version,
        state="running",
        unattributed=subject.unattributed,
        actor=who.actor,
        key_id=who.key_id,
        bound=[kind for kind, own in (("agent", own.agent_id), ("workflow", own.workflow)) if own is not None],
    )
    made, is_new = open_job(unit, new)
    # Earlier attempts made no call, so there is nothing to fence.
    made.attempt = who.attempt or 1
    if parent is not None:
        event = Event("child_started", kind="child", name=new.name, actor=who.actor, attempt=parent.attempt)
        event.detail = {"child_job_id": made.job_id}
        append(unit, parent, event)
    return made, is_new


def _open_parent(unit: Unit, subject: Subject) -> JobRow | None:
    """The locked parent of a new job. Raises Conflict for a parent that has finished."""
    if subject.parent_job_id is None:
        return None
    parent = locked_job(unit, subject.parent_job_id)
    if parent.state in FINISHED:
        raise Conflict(f"x-parent-job-id: {parent.job_id} has {parent.state}, so it can start no more child jobs")
    return parent


def job_identity(unit: Unit, job: JobRow, who: Attribution) -> JobIdentity:
    """The agent and workflow of a job where the call names others. They hold as well if they come from the job's code, or from
    the bindings of the key that made the job: a header cannot leave their limits."""
    agent = job.agent_id if who.agent_id not in (None, job.agent_id) else None
    workflow = job.workflow if who.workflow not in (None, job.workflow) else None
    if agent is None and workflow is None:
        return NO_IDENTITY
    if job.runtime == "foreign":
        bound = _bound_fields(unit, job)
        return JobIdentity(agent if "agent" in bound else None, workflow if "workflow" in bound else None)
    return JobIdentity(agent, workflow)


def _bound_fields(unit: Unit, job: JobRow) -> Sequence[str]:
    """The fields of an external job that the key that made it was bound to, from the job's first event."""
    bodies = [row.body for row in unit.appended(_INSERT_EVENT) if (row.job_id, row.seq) == (job.job_id, 1)]
    bodies += [body for (body,) in unit.query(_READ_CREATED, {"job_id": job.job_id})]
    return (_decode(bytes(bodies[0])).detail or {}).get("bound", ()) if bodies else ()


class StartJob(msgspec.Struct):
    """Start an external job, unless it exists. Outcome: its id, and whether it is new. Raises NotFound, Conflict."""

    subject: Subject

    def locks(self) -> list[tuple[Any, Any]]:
        return job_locks(self.subject)

    def decide(self, unit: Unit) -> tuple[str, bool]:
        job, is_new = find_or_create_job(unit, self.subject)
        return job.job_id, is_new


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
        waits = job.waits
        begin_attempt(unit, job, "recover", wanted, subject.who.actor)
        supersede_waits(unit, job, waits if not job.waits else [], "a new attempt began")
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
