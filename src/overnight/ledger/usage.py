"""Rollups of cost, written with the event they come from, so that no report scans the log."""

from overnight.domain import day_of
from overnight.store import Unit

from .rows import SQL, JobRow

_DAY, _JOB = SQL["add_usage_day"], SQL["add_usage_job"]


def count_usage(
    unit: Unit,
    job: JobRow,
    agent_id: str | None,
    model: str,
    tokens: tuple[int, int, int],
    cost_microusd: int,
    bound_microusd: int = 0,
    *,
    calls: int = 1,
    day: int | None = None,
) -> None:
    """One model call: `tokens` are (input, cached, output). Counted by tenant, agent, job, model and day.

    `bound_microusd`: what it may have cost beyond `cost_microusd`. A correction adds differences, with `calls` 0, to the
    `day` in which the call was booked.
    """
    amounts = (calls, *tokens, cost_microusd, bound_microusd)
    day = day_of(unit.now) if day is None else day
    unit.add(_DAY, (job.tenant_id, day, agent_id or "", model, unit.stripe), amounts)
    unit.add(_JOB, (job.job_id, model), amounts)
