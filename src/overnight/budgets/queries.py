"""Queries of the budgets in force, and the selection of a budget row by name."""

from typing import Any

import msgspec

from overnight.domain import ALL_JOBS, BadInput, KeyScope, allows, check_identifier, iso_utc, micro_to_usd
from overnight.ledger import JobRow
from overnight.store import Store, records_of

from .policy import Limit, Policy, name_in, scope_id
from .reservations import allowed
from .rows import SQL, BudgetRow
from .top_ups import TopUp
from .windows import PERIODS, window_of

SCOPES = ("job", "step", "session", "agent", "workflow", "key", "tenant")
_PER = {0: "total", 7: "month", 10: "day"}
MEASURES = ("cost", "tokens", "llm_calls", "tool_calls", "wall_clock_s")


class Measure(msgspec.Struct, frozen=True):
    """One measure of a budget.

    - `allowed`: the limit including top-ups; None without a limit.
    - `added`: the sum of top-ups.
    - `bound`: the maximum of unknown cost, in addition to `spent`. It counts against the limit.
    """

    allowed: int | None
    added: int
    spent: int
    reserved: int = 0
    bound: int | None = None

    @property
    def left(self) -> int | None:
        return None if self.allowed is None else max(0, self.allowed - self.spent - (self.bound or 0) - self.reserved)


class BudgetLine(msgspec.Struct, frozen=True):
    """One budget. `window` is its day or month, `resets_at` the end of it in microseconds. Costs are in micro-dollars."""

    tenant_id: str
    scope: str
    name: str
    per: str
    window: str
    resets_at: int | None
    top_ups: int
    measures: dict[str, Measure]

    def public(self) -> dict[str, Any]:
        """In public JSON names: measures with a limit or usage; costs in dollars."""
        fields: dict[str, Any] = {"tenant_id": self.tenant_id, "scope": self.scope, "id": self.name, "per": self.per}
        if self.resets_at is not None:
            fields |= {"window": self.window, "resets_at": iso_utc(self.resets_at)}
        for name, each in self.measures.items():
            facts = {"limit": each.allowed, "added": each.added, "spent": each.spent, "reserved": each.reserved}
            if each.bound is not None:
                facts["bound"] = each.bound
            facts["left"] = each.left
            if name == "cost":
                name = "cost_usd"  # noqa: PLW2901
                facts = {key: None if value is None else micro_to_usd(value) for key, value in facts.items()}
            fields[name] = facts
        return fields | {"top_ups": self.top_ups}


async def list_budgets(
    store: Store,
    policy: Policy,
    *,
    tenant_id: str = "",
    job_id: str = "",
    key_scope: KeyScope = ALL_JOBS,
    key_id: str = "",
    everything: bool = False,
    limit: int = 50,
) -> list[BudgetLine]:
    """List the budgets of tenants, keys, agents, … and of the newest unfinished jobs.

    Args:
        everything: include budgets without a limit in force.
        job_id: list the budgets of this job only.
        limit: the number of unfinished jobs whose budgets are listed.
        key_scope: list only budgets of the tenant, of the scope's agent, workflow and jobs, and of the key `key_id`.
    """
    now = store.clock()
    found: list[BudgetLine] = []
    if not job_id:
        rows = await store.read(SQL["list_budgets"], {"tenant_id": tenant_id, "now": now})
        found += [_line(policy, row, None, None, now) for row in records_of(BudgetRow, rows)]
    if key_scope != ALL_JOBS:
        mine = {("tenant", tenant_id), ("agent", key_scope.agent_id), ("workflow", key_scope.workflow), ("key", key_id)}
        found = [line for line in found if (line.scope, line.name) in mine]
    values = {"tenant_id": tenant_id, "job_id": job_id, "now": now, "most": limit}
    values |= {"agent_id": key_scope.agent_id or "", "workflow": key_scope.workflow or ""}
    for *columns, name, started_at, scope_name in await store.read(SQL["list_job_budgets"], values):
        if not allows(key_scope.jobs, scope_name):
            continue
        (row,) = records_of(BudgetRow, [columns])
        found.append(_line(policy, row, name, started_at, now))
    limited = [line for line in found if any(each.allowed is not None for each in line.measures.values())]
    return found if everything else limited


def _line(policy: Policy, row: BudgetRow, job_name: str | None, started_at: int | None, now: int) -> BudgetLine:
    name = name_in(row.scope_id)
    window = row.scope_id[len(name) + 1 : -1]
    per = _PER[len(window)]
    asked = job_name if row.scope == "job" else name.partition("/")[2] if row.scope == "step" else name
    limit = policy.in_force(row.scope, per, asked)
    return BudgetLine(
        tenant_id=row.tenant_id,
        scope=row.scope,
        name=name,
        per=per,
        window=window,
        resets_at=row.resets_at,
        top_ups=row.top_ups,
        measures=_measures(limit, row, started_at, now),
    )


def line_of(policy: Policy, row: BudgetRow, job: JobRow | None, now: int) -> BudgetLine:
    """Convert a row to a line. `job` is the job of a job's budget."""
    return _line(policy, row, (job.workflow or job.name) if job else None, job.started_at if job else None, now)


def operator_limit(policy: Policy, top_up: TopUp, job: JobRow | None) -> Limit:
    """The limits of the brain for the row of a resolved top-up."""
    name = name_in(top_up.scope_id)
    per = _PER[len(top_up.scope_id[len(name) + 1 : -1])]
    asked = (job.workflow or job.name) if job else name.partition("/")[2] if top_up.scope == "step" else name
    return policy.in_force(top_up.scope, per, asked)


def _measures(limit: Limit, row: BudgetRow, started_at: int | None, now: int) -> dict[str, Measure]:
    took = (now - started_at) // 1_000_000 if started_at is not None else 0
    found = {
        "cost": Measure(
            allowed(limit.limit_microusd, row.limit_microusd, row.extra_microusd),
            row.extra_microusd,
            row.spent_microusd,
            row.reserved_microusd,
            row.bound_microusd,
        ),
        "tokens": Measure(
            allowed(limit.limit_tokens, None, row.extra_tokens), row.extra_tokens, row.spent_tokens, row.reserved_tokens
        ),
        "llm_calls": Measure(allowed(limit.limit_calls, row.limit_calls, row.extra_calls), row.extra_calls, row.calls),
        "tool_calls": Measure(
            allowed(limit.limit_tool_calls, None, row.extra_tool_calls), row.extra_tool_calls, row.tool_calls
        ),
    }
    if limit.wall_clock_s is not None:
        most = limit.wall_clock_s + row.extra_wall_clock_s
        found["wall_clock_s"] = Measure(most, row.extra_wall_clock_s, took)
    return found


def resolve_top_up(policy: Policy, top_up: TopUp, per: str | None, now: int) -> TopUp:
    """Resolve the row of a top-up. Its `scope_id` is a name; of a daily or monthly budget, the current window is
    selected.

    Without `per`, there must be exactly one period with a limit.

    Raises:
        BadInput: the budget does not exist or is ambiguous; the error lists the choices.
    """
    if top_up.scope not in SCOPES:
        raise BadInput(f"scope: {top_up.scope[:40]!r} is not one of {', '.join(SCOPES)}")
    name = check_identifier(top_up.scope_id, "the id of the budget")
    if top_up.wall_clock_s and top_up.scope != "job":
        raise BadInput("seconds: only allowed for the scope job")
    if per is not None and per not in PERIODS:
        raise BadInput(f"per: {per[:40]!r} is not one of {', '.join(PERIODS)}")
    if per is None:
        choices = policy.periods(top_up.scope, name) if top_up.scope not in {"job", "step"} else ["total"]
        if len(choices) != 1:
            problem = f"is limited per {' and per '.join(choices)}" if choices else "has no limit in routing.yaml"
            raise BadInput(f"{top_up.scope} {name} {problem}: select one with --per total, day or month")
        per = choices[0]
    window = window_of(per, policy.zone(top_up.tenant_id), now)
    return msgspec.structs.replace(top_up, scope_id=scope_id(name, window), resets_at=window.ends_at)
