"""Which budgets count the tool calls of a job. Where none does, nothing is looked up and nothing is written."""

from collections.abc import Sequence

from overnight.budgets import Caller, Kin, Limit, Policy
from overnight.ledger import JobRow, Ledger

MOST_KNOWN = 10_000


class ToolLimits:
    """The limits of tool calls, and of time, by the policy; None is no policy."""

    def __init__(self, policy: Policy | None, ledger: Ledger) -> None:
        self._policy, self._ledger = policy, ledger
        self._above: dict[str, tuple[Kin, ...]] = {}

    async def of(self, job: JobRow, step: str | None) -> Sequence[Limit]:
        """Those that hold for a tool call of this job now."""
        policy = self._policy
        if policy is None or not policy.counts_tools:
            return ()
        kin = (*await self._kin_above(job), _kin(job))
        caller = Caller(job.tenant_id, kin, job.agent_id, job.session_id, job.workflow, step)
        limits = policy.limits(caller, self._ledger.store.clock())
        return [limit for limit in limits if limit.limit_tool_calls is not None or limit.wall_clock_s is not None]

    async def _kin_above(self, job: JobRow) -> tuple[Kin, ...]:
        """Its ancestors, root first."""
        parent_id = job.parent_job_id
        if parent_id is None:
            return ()
        found = self._above.get(parent_id)
        if found is None:
            parent = await self._ledger.job(parent_id, job.tenant_id)
            found = (*await self._kin_above(parent), _kin(parent))
            if len(self._above) < MOST_KNOWN:
                self._above[parent_id] = found
        return found


def _kin(job: JobRow) -> Kin:
    return Kin(job.job_id, job.workflow or job.name, job.started_at)
