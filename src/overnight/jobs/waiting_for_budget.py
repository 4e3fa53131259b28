"""Waits of a call that may not be made now: for room in its budget, or for a person's decision that the job continues."""

import asyncio
from typing import Any

from overnight.budgets import bounds_of, record_missed_top_up
from overnight.domain import BudgetStopped, Event, LoopStopped, Recorded

from .execution import Execution
from .positions import Position, Scope

POLL_S = 1.0


def budget_wait(stop: BudgetStopped) -> dict[str, Any]:
    """The wait of a job that a budget stopped, as recorded; with `due_at` if its day or month ends."""
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


async def wait_for_budget(execution: Execution, scope: Scope, position: Position, stop: BudgetStopped) -> None:
    """Return when another try may succeed: the budget was topped up or corrected, or its day or month has ended.

    Meanwhile the job may park; then the top-up or the timer queues it.
    """
    watch = execution.background.start(_watch(execution, position, stop))
    try:
        await execution.scheduler.wait_outside(scope, position, budget_wait(stop))
    finally:
        watch.cancel()


async def _watch(execution: Execution, position: Position, stop: BudgetStopped) -> None:
    """Poll the budget for as long as other branches keep the job from parking."""
    store, job = execution.log.store, execution.job
    while stop.resets_at is None or store.clock() < stop.resets_at:
        row = (job.tenant_id, stop.scope, stop.scope_id)
        if await record_missed_top_up(store, job.job_id, *row, stop.top_ups, stop.corrections):
            break
        left_s = (stop.resets_at - store.clock()) / 1_000_000 if stop.resets_at is not None else POLL_S
        await asyncio.sleep(max(0.001, min(POLL_S, left_s)))
    execution.scheduler.end_wait(position, Recorded("", 0, 0, Event("budget_topped_up")))


async def wait_for_decision(execution: Execution, scope: Scope, position: Position, stop: LoopStopped) -> None:
    """Return when a person has decided whether the job continues."""
    facts = {"for": "approval", "review_id": stop.review_id, "why": str(stop)}
    await execution.scheduler.wait_outside(scope, position, facts)
