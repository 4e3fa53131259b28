"""Effects at a position of a running job: executed under its lease, replayed after a crash."""

from functools import partial
from typing import Any

from overnight import effects
from overnight.domain import BudgetStopped, Conflict, Event, Recorded
from overnight.ledger import locked_job

from .effect_execution import EffectCall
from .effect_records import EffectHolder, EffectOutcome, EffectWait, Tool
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
        self._named, self._digest = named, digest
        self._job = execution.job

    def _call(self) -> EffectCall:
        execution, scope, position, job = self._execution, self._scope, self._position, self._job
        log, services = execution.log, execution.services
        occurrence = f"{job.job_id}:{position[0]}:{position[1]}"
        workflow = job.workflow or job.name
        entry = log.find_entry(scope, position)
        holder = EffectHolder(
            store=log.store,
            job_id=job.job_id,
            tenant_id=job.tenant_id,
            owner=services.owner,
            commit=log.commit,
            fence=lambda unit: locked_job(unit, job.job_id, lease_epoch=job.lease_epoch),
            check=log.check_lease,
            rules=services.tool_rules,
            limits=lambda: services.tool_limits.of(job, scope.name),
        )
        return EffectCall(
            self._tool,
            holder,
            key=effects.effect_key(job.tenant_id, workflow, scope.path, job.root_job_id, self._tool.tool, occurrence),
            named=self._named,
            step=scope.name,
            position=effects.EffectPosition(position[0], position[1], self._digest),
            about=scope.about,
            asked_before=None if entry is None else (entry.facts.detail or {}).get("review_id"),
        )

    async def find_outcome(self, call: EffectCall | None = None) -> EffectOutcome | EffectWait:
        """Execute the effect to its durable end. Returns its outcome, or the review that asks for it.

        Without `call`, its branch was cancelled in an earlier lease: an effect that had not begun is not executed.
        """
        try:
            running = self._call().run(settles=True) if call is None else call.run()
            return await self._execution.log.or_evict(running)
        except Conflict as conflict:
            await self._diverge(conflict)
            raise

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
        call = self._call()
        outcome: EffectOutcome | EffectWait | None = None
        while not isinstance(outcome, EffectOutcome):
            try:
                outcome = await execution.tasks.protect(scope, partial(self.find_outcome, call))
            except BudgetStopped as stop:
                await wait_for_budget(execution, scope, position, stop)
                continue
            if isinstance(outcome, EffectWait):
                facts = {"for": outcome.wait_for, "review_id": outcome.review_id}
                await scheduler.wait_outside(scope, position, facts)
                if (decided := history.answers.get(position)) is not None:
                    return await scheduler.deliver(scope, decided)
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
