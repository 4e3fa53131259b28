"""The budget limits that count the tool calls of a job. Without such limits the store is not accessed."""

from collections.abc import Sequence

from overnight.budgets import BudgetJob, Caller, Limit, Policy
from overnight.ledger import JobRow, Ledger

MAX_CACHED_JOBS = 10_000


class ToolCallLimits:
    """The limits of tool calls, and of time, by the policy. None is no policy."""

    def __init__(self, policy: Policy | None, ledger: Ledger) -> None:
        self._policy, self._ledger = policy, ledger
        self._ancestors: dict[str, tuple[BudgetJob, ...]] = {}

    async def of(self, job: JobRow, step: str | None) -> Sequence[Limit]:
        """The limits that apply to a tool call of this job now."""
        policy = self._policy
        if policy is None or not policy.counts_tools:
            return ()
        jobs = (*await self._find_ancestors(job), _budget_job(job))
        caller = Caller(
            tenant_id=job.tenant_id,
            jobs=jobs,
            agent=job.agent_id,
            session=job.session_id,
            workflow=job.workflow,
            step=step,
        )
        limits = policy.limits(caller, self._ledger.store.clock())
        return [limit for limit in limits if limit.limit_tool_calls is not None or limit.wall_clock_s is not None]

    async def _find_ancestors(self, job: JobRow) -> tuple[BudgetJob, ...]:
        """The ancestors of a job, root first."""
        parent_id = job.parent_job_id
        if parent_id is None:
            return ()
        found = self._ancestors.get(parent_id)
        if found is None:
            parent = await self._ledger.job(parent_id, job.tenant_id)
            found = (*await self._find_ancestors(parent), _budget_job(parent))
            if len(self._ancestors) < MAX_CACHED_JOBS:
                self._ancestors[parent_id] = found
        return found


def _budget_job(job: JobRow) -> BudgetJob:
    return BudgetJob(job.job_id, job.workflow or job.name, job.started_at)
