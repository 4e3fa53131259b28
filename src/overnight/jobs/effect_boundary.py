"""Effects at a position of a running job: executed under its lease, replayed after a crash."""

from collections.abc import Sequence
from typing import Any

from overnight import effects
from overnight.budgets import Limit
from overnight.domain import BudgetStopped, Conflict, Event, Recorded
from overnight.ledger import JobRow, locked_job
from overnight.store import Unit

from .effect_execution import EffectAction, EffectCall, EffectCommand, EffectOutcome, Tool
from .execution import Execution
from .positions import Position, Scope
from .waiting_for_budget import wait_for_budget


class EffectBoundary:
    """One effect at its position. `digest`: the fingerprint of its request."""

    def __init__(
        self,
        tool: Tool,
        execution: Execution,
        scope: Scope,
        position: Position,
        named: dict[str, Any],
        digest: str,
    ) -> None:
        self._tool, self._execution, self._scope, self._position = tool, execution, scope, position
        self._digest = digest
        job = self._job = execution.job
        occurrence = f"{job.job_id}:{position[0]}:{position[1]}"
        workflow = job.workflow or job.name
        self._key = effects.effect_key(job.tenant_id, workflow, scope.path, job.root_job_id, tool.tool, occurrence)
        self._call = EffectCall(
            tool,
            key=self._key,
            named=named,
            write=self._write,
            clock=execution.log.store.clock,
            owner=execution.services.owner,
            check=execution.log.check_lease,
            step=scope.name,
            position=effects.EffectPosition(position[0], position[1], digest),
            limits=lambda: execution.services.tool_limits.of(job, scope.name),
            about=scope.about,
        )

    def _fence(self, unit: Unit) -> JobRow:
        return locked_job(unit, self._job.job_id, lease_epoch=self._job.lease_epoch)

    async def _write(self, act: EffectAction, limits: Sequence[Limit] = ()) -> Any:
        command = EffectCommand(
            job_id=self._job.job_id,
            tenant_id=self._job.tenant_id,
            key=self._key,
            fence=self._fence,
            act=act,
            limits=limits,
        )
        return await self._execution.log.commit(command)

    async def find_outcome(self) -> EffectOutcome | str:
        """Execute the effect to its durable end. Returns its outcome, or the id of the review that asks for it."""
        log = self._execution.log
        entry = log.find_entry(self._scope, self._position)
        try:
            outcome = await log.or_evict(self._call.run())
        except Conflict as conflict:
            await self._diverge(conflict)
            raise
        if outcome is not None:
            return outcome
        # A review that was requested before the last call is already decided.
        entry = None if self._call.was_called else entry
        review_id = (entry.facts.detail or {}).get("review_id") if entry is not None else None
        return review_id or await self._call.request_review()

    async def _diverge(self, conflict: Conflict) -> None:
        tool = self._tool.tool
        changed = {"arguments": {"recorded": "other arguments under the same key", "asked": str(conflict)}}
        place = {"path": self._position[0], "ordinal": self._position[1]}
        why = f"effect {tool} was started with other arguments, so it is not executed with these"
        await self._execution.log.diverge(
            {"position": place, "boundary": f"effect {tool}", "changed": changed, "why": why}
        )

    async def run(self) -> Recorded:
        """The answer at this position: from the call, the status check, or a person."""
        execution, scope, position = self._execution, self._scope, self._position
        history, scheduler = execution.log.history, execution.scheduler
        outcome: EffectOutcome | str | None = None
        while not isinstance(outcome, EffectOutcome):
            try:
                outcome = await execution.tasks.protect(scope, self.find_outcome)
            except BudgetStopped as stop:
                await wait_for_budget(execution, scope, position, stop)
                continue
            if isinstance(outcome, str):
                await scheduler.wait_outside(scope, position, {"for": "quarantine", "review_id": outcome})
                if (decided := history.answers.get(position)) is not None:
                    return await scheduler.deliver(scope, decided)
                outcome = None
        event = Event(outcome.event, kind="effect", name=self._tool.tool, error=outcome.error, about=scope.about)
        if outcome.seq:
            answer = Recorded(
                job_id=self._job.job_id,
                seq=outcome.seq,
                at=0,
                facts=event,
                path=position[0],
                ordinal=position[1],
                fingerprint=self._digest,
                content=outcome.content,
                tenant_id=self._job.tenant_id,
            )
            return await scheduler.deliver(scope, answer)
        return await self._replay(outcome, event)

    async def _replay(self, outcome: EffectOutcome, event: Event) -> Recorded:
        """Deliver an earlier outcome: from a person's decision, or from an earlier attempt at another position."""
        execution, scope, position = self._execution, self._scope, self._position
        log, scheduler = execution.log, execution.scheduler
        # The decision may be recorded without this worker having read it.
        await log.or_evict(scheduler.read_events())
        if (decided := log.history.answers.get(position)) is not None:
            return await scheduler.deliver(scope, decided)
        event.attempt, event.step, event.detail = self._job.attempt, scope.name, {"replayed": True}
        event.decision = {"why": "replayed from an earlier attempt"}
        with scheduler.in_progress():
            return await scheduler.deliver(scope, await log.record(event, position, self._digest, outcome.content))
