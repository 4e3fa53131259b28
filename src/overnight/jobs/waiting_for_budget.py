"""A call that may not be made now: wait for room in its budget, or for a person to say that the job goes on."""

import asyncio
from typing import Any

from overnight.budgets import bounds_of, hear_top_up
from overnight.domain import BudgetStopped, Event, LoopStopped, Recorded

from .execution import Execution
from .positions import Position, Scope

LOOK_EVERY_S = 1.0


def budget_wait(stop: BudgetStopped) -> dict[str, Any]:
    """What a job that was stopped waits for; where its day or month ends, until then at most."""
    facts: dict[str, Any] = {
        "for": "budget",
        "scope": stop.scope,
        "name": stop.name,
        "per": stop.per,
        "row": stop.scope_id,
        "limit": stop.limit,
        "top_ups": stop.top_ups,
        "corrections": stop.corrections,
        "why": str(stop),
    }
    if stop.bounds:
        facts["bounds"] = bounds_of(stop)
    return facts if stop.resets_at is None else facts | {"due_at": stop.resets_at}


async def room_in_budget(scope: Scope, position: Position, stop: BudgetStopped) -> None:
    """Return when asking again is worth it: somebody added to the budget, or its day or month is over. Meanwhile the job may
    park; then the top-up or the timer queues it."""
    execution = scope.execution
    watch = execution.branches.chore(_watch(execution, position, stop))
    try:
        await execution.wait_outside(scope, position, budget_wait(stop))
    finally:
        watch.cancel()


async def _watch(execution: Execution, position: Position, stop: BudgetStopped) -> None:
    """For as long as other branches keep the job from parking."""
    store, job = execution.store, execution.job
    while stop.resets_at is None or store.clock() < stop.resets_at:
        row = (job.tenant_id, stop.scope, stop.scope_id)
        if await hear_top_up(store, job.job_id, *row, stop.top_ups, stop.corrections):
            break
        left_s = (stop.resets_at - store.clock()) / 1_000_000 if stop.resets_at is not None else LOOK_EVERY_S
        await asyncio.sleep(max(0.001, min(LOOK_EVERY_S, left_s)))
    waiting = execution.waits.get(position)
    if waiting is not None and not waiting.future.done():
        waiting.future.set_result(Recorded("", 0, 0, Event("budget_topped_up")))


async def word_from_a_person(scope: Scope, position: Position, stop: LoopStopped) -> None:
    """Return when a person has decided whether the job goes on."""
    facts = {"for": "approval", "review_id": stop.review_id, "why": str(stop)}
    await scope.execution.wait_outside(scope, position, facts)
