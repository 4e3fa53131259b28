"""Rollups of usage and cost, written in the transaction of their event, so that no report scans the log."""

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
    """Count one model call by tenant, agent, job, model and day.

    - `tokens`: (input, cached, output). `cost_microusd`: its known cost in micro-dollars.
    - `bound_microusd`: the most that it may have cost beyond that.
    - `calls`, `day`: a correction adds differences, with `calls` 0, to the day (YYYYMMDD) in which the call was booked.
    """
    amounts = (calls, *tokens, cost_microusd, bound_microusd)
    day = day_of(unit.now) if day is None else day
    unit.add(_DAY, (job.tenant_id, day, agent_id or "", model, unit.stripe), amounts)
    unit.add(_JOB, (job.job_id, model), amounts)
