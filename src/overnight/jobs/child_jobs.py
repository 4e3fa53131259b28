"""Child jobs: started once, and continued by a retry of their parent.

A failed child is retried, because a new child would repeat its effects. If a child ended while its parent had ended, its result
is recorded now. A cancelled child stays cancelled, and a new one is started in its place.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from overnight.domain import FINISHED, ErrorFacts, Event, Recorded, new_id
from overnight.ledger import JOB, JobRow, NewJob, append, lifecycle, locked_job, open_job
from overnight.store import Unit, crash_point

from .commands import Locks
from .encoding import decode, fingerprint
from .execution import BoundaryRequest, Execution
from .positions import Position, Scope
from .replay.history import fold
from .replay.retry_plan import RetryPlan, stale_for_retry


class JobFailed(Exception):
    """A child job failed or was cancelled. `state` says which."""

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self.state = state


class ChildCode(msgspec.Struct, frozen=True):
    """The job function of a child: its name, its reference for workers, and the agent that is billed."""

    name: str
    code_ref: str
    agent: str | None
    function: Callable[..., Any]


async def run_child(execution: Execution, scope: Scope, code: ChildCode, payload: bytes) -> Any:
    """Run a child of the running job and wait for its result. `payload`: its input as JSON. Raises JobFailed."""
    log, scheduler = execution.log, execution.scheduler
    digest = fingerprint(code.name, msgspec.Raw(payload))

    async def live(position: Position) -> Recorded:
        if position in log.history.retained:
            with scheduler.in_progress():
                answered = await _continue_child(execution, scope, position)
            if answered is not None:
                return await execution.retained.replay(scope, position, answered)
        entry = log.history.entries.get(position)
        if entry is None:
            with scheduler.in_progress():
                new = _new_child(execution.job, code, position, payload)
                entry = await log.commit(StartChild(new, execution.job.lease_epoch, digest, scope.name, scope.about))
            log.add_entry(position, entry)
            crash_point("child_started")
        execution.services.notify()
        wait = {"for": "child", "child_job_id": (entry.facts.detail or {})["child_job_id"]}
        answer = await scheduler.wait_outside(scope, position, wait)
        return await scheduler.deliver(scope, answer)

    answer = await execution.resolve(scope, BoundaryRequest("child", code.name, digest, live))
    state = (answer.facts.detail or {}).get("state")
    if state != "succeeded":
        error = answer.facts.error
        raise JobFailed(f"child job {code.name} {state}: {error.message if error else 'no reason given'}", str(state))
    return decode(answer.content, code.function)


def _new_child(parent: JobRow, code: ChildCode, position: Position, payload: bytes) -> NewJob:
    return NewJob(
        job_id=new_id("job"),
        tenant_id=parent.tenant_id,
        runtime="python",
        name=code.name,
        parent_job_id=parent.job_id,
        root_job_id=parent.root_job_id,
        parent_path=position[0],
        parent_ordinal=position[1],
        agent_id=code.agent or parent.agent_id,
        workflow=parent.workflow,
        session_id=parent.session_id,
        code_ref=code.code_ref,
        brain_version=parent.brain_version,
        input=payload,
    )


class StartChild(msgspec.Struct):
    """Create a child job, and record it in its parent's log in the same transaction. Outcome: that event."""

    new: NewJob
    lease_epoch: int
    fingerprint: str
    step: str | None
    about: str | None

    def locks(self) -> Locks:
        return [(JOB, str(self.new.parent_job_id)), (JOB, self.new.job_id)]

    def decide(self, unit: Unit) -> Recorded:
        new = self.new
        parent = locked_job(unit, str(new.parent_job_id), lease_epoch=self.lease_epoch)
        open_job(unit, new)
        event = Event(
            "child_started", kind="child", name=new.name, step=self.step, attempt=parent.attempt, about=self.about
        )
        event.detail = {"child_job_id": new.job_id}
        path, ordinal, digest = new.parent_path, new.parent_ordinal, self.fingerprint
        seq = append(unit, parent, event, path=path, ordinal=ordinal, fingerprint=digest)
        return Recorded(
            job_id=parent.job_id,
            seq=seq,
            at=unit.now,
            facts=event,
            path=path,
            ordinal=ordinal,
            fingerprint=digest,
        )


# ── continuing a child of an earlier attempt ─────────────────────────────────────────────────────────────────────────


class ContinueChild(msgspec.Struct):
    """Make the parent's current attempt wait for a child of an earlier one, at this position.

    `seen`: the child's row as read before. `plan`: how to retry it, if it failed. Outcome: False if it has ended or
    continued since it was read.
    """

    parent: JobRow
    seen: JobRow
    event: Event
    position: Position
    plan: RetryPlan | None

    def locks(self) -> Locks:
        return [(JOB, self.parent.job_id), (JOB, self.seen.job_id)]

    def decide(self, unit: Unit) -> bool:
        parent = locked_job(unit, self.parent.job_id, lease_epoch=self.parent.lease_epoch)
        child = locked_job(unit, self.seen.job_id)
        if _ended_at(child) != _ended_at(self.seen):
            return False
        self.event.detail = {**(self.event.detail or {}), "child_job_id": child.job_id, "state": child.state}
        append(unit, parent, self.event, path=self.position[0], ordinal=self.position[1])
        child.parent_path, child.parent_ordinal = self.position
        unit.change(JOB, child)
        if self.plan is not None:
            lifecycle.retry(unit, child, msgspec.structs.asdict(self.plan), parent.job_id)
        elif child.state in FINISHED:
            error = msgspec.json.decode(child.error, type=ErrorFacts) if child.error else None
            lifecycle.notify_parent(unit, parent, child, error)
        return True


def _ended_at(child: JobRow) -> int | None:
    """The seq of its end; None while it is unfinished."""
    return child.last_seq if child.state in FINISHED else None


async def _continue_child(execution: Execution, scope: Scope, position: Position) -> Recorded | None:
    """Continue the retained child at this position, if there is one. Returns its answer if it ended in this attempt."""
    log = execution.log
    retained = log.history.retained[position]
    while retained.entry is not None:
        child_id = str((retained.entry.facts.detail or {})["child_job_id"])
        child = await log.or_evict(log.ledger.job(child_id))
        # If it has ended in this attempt, its end is in the log.
        await log.or_evict(execution.scheduler.read_events())
        if retained.answer is not None:
            return retained.answer
        if child.state == "cancelled":
            break
        plan = None
        if child.state == "failed":
            plan = stale_for_retry(fold(await log.or_evict(log.ledger.events(child_id))))
        event = log.kept_event(scope, retained, entry_only=True)
        if await log.commit(ContinueChild(execution.job, child, event, position, plan)):
            log.history.keep(position, None)
            return None
    return None
