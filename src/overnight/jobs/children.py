"""Child jobs: started once, and taken up again by a retry of their parent.

A child that failed is tried again itself, because a new one would do its effects a second time. One that ended while its
parent was over tells its result now. One that was cancelled stays so, and another is started in its place.
"""

from typing import TYPE_CHECKING

import msgspec

from overnight.domain import FINISHED, ErrorFacts, Event, Recorded
from overnight.ledger import JOB, JobRow, NewJob, append, lifecycle, locked_job, open_job
from overnight.store import Unit

from .commands import Locks
from .history import fold
from .positions import Position, Scope
from .retained_answers import kept
from .retry_plan import RetryPlan, stale_for_retry

if TYPE_CHECKING:
    from .execution import Execution


class StartChild(msgspec.Struct):
    """Make a child job; the parent's history says so in the same transaction. The outcome is what it says."""

    new: NewJob
    lease_epoch: int
    fingerprint: str
    step: str | None

    def locks(self) -> Locks:
        return [(JOB, str(self.new.parent_job_id)), (JOB, self.new.job_id)]

    def decide(self, unit: Unit) -> Recorded:
        new = self.new
        parent = locked_job(unit, str(new.parent_job_id), lease_epoch=self.lease_epoch)
        open_job(unit, new)
        event = Event("child_started", kind="child", name=new.name, step=self.step, attempt=parent.attempt)
        event.detail = {"child_job_id": new.job_id}
        path, ordinal, print_ = new.parent_path, new.parent_ordinal, self.fingerprint
        seq = append(unit, parent, event, path=path, ordinal=ordinal, fingerprint=print_)
        return Recorded(parent.job_id, seq, unit.now, event, path, ordinal, print_)


class TakeUpChild(msgspec.Struct):
    """A new attempt of the parent waits for the child it `saw`, at this position. The outcome is False when that one has changed
    meanwhile."""

    parent: JobRow
    saw: JobRow
    event: Event
    position: Position
    plan: RetryPlan | None

    def locks(self) -> Locks:
        return [(JOB, self.parent.job_id), (JOB, self.saw.job_id)]

    def decide(self, unit: Unit) -> bool:
        parent = locked_job(unit, self.parent.job_id, lease_epoch=self.parent.lease_epoch)
        child = locked_job(unit, self.saw.job_id)
        if _ended_at(child) != _ended_at(self.saw):
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
    """The seq of its end; None while it goes on."""
    return child.last_seq if child.state in FINISHED else None


async def take_up(execution: "Execution", scope: Scope, position: Position) -> Recorded | None:
    """Go on with the child that an earlier attempt started at this position, where there is one to go on with. When it has
    ended in this attempt already, that is its answer."""
    aside = execution.history.aside[position]
    while aside.entry is not None:
        child_id = str((aside.entry.facts.detail or {})["child_job_id"])
        child = await execution.unless_gone(execution.ledger.job(child_id))
        # What it told this attempt of its end stands in the log by now.
        await execution.unless_gone(execution.news.read())
        if aside.answer is not None:
            return aside.answer
        if child.state == "cancelled":
            break
        plan = None
        if child.state == "failed":
            plan = stale_for_retry(fold(await execution.unless_gone(execution.ledger.events(child_id))))
        event = kept(execution, scope, aside, begun=True)
        if await execution.commit(TakeUpChild(execution.job, child, event, position, plan)):
            execution.history.keep(position, None)
            return None
    return None
