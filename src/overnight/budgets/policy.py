"""Select the budgets and rate limits that apply to a caller, by the rules of the brain. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from overnight.domain.policies import BudgetLimit, Budgets, RateLimit

from .windows import ALWAYS, PERIODS, Window, window_of

Key = tuple[str, str, str]
"""The key of a row: tenant, scope and scope id."""


class Limit(msgspec.Struct, frozen=True):
    """A budget that applies to a call: its row, and the limits in force (None: no limit).

    `resets_at` is the end of its day or month (microseconds). `wall_clock_s` limits the duration of a job started at
    `started_at`.
    """

    scope: str
    scope_id: str
    limit_microusd: int | None = None
    limit_calls: int | None = None
    limit_tokens: int | None = None
    limit_tool_calls: int | None = None
    per: str = "total"
    resets_at: int | None = None
    wall_clock_s: int | None = None
    started_at: int | None = None
    task: str | None = None
    """The name of the job."""

    @property
    def name(self) -> str:
        """The scope id without its day or month."""
        return name_in(self.scope_id)


class Rate(msgspec.Struct, frozen=True):
    """A rate limit that applies to a call. An empty `tenant_id` means one limit for all tenants."""

    tenant_id: str
    scope: str
    scope_id: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None

    @property
    def key(self) -> Key:
        return (self.tenant_id, self.scope, self.scope_id)


class BudgetJob(msgspec.Struct, frozen=True):
    """A job whose budget a call is charged to. `name` is its workflow or its own name; `started_at` is microseconds UTC."""

    job_id: str
    name: str | None = None
    started_at: int | None = None


class Caller(msgspec.Struct, frozen=True):
    """The caller of a model or tool call. `jobs` are the job's ancestors and itself, root first; `target` is the model name.

    `job_agent` and `job_workflow`: those of the job, if the call names others, but may not leave their limits.
    """

    tenant_id: str
    jobs: tuple[BudgetJob, ...] = ()
    agent: str | None = None
    session: str | None = None
    workflow: str | None = None
    step: str | None = None
    key: str | None = None
    target: str | None = None
    job_agent: str | None = None
    job_workflow: str | None = None


def scope_id(name: str, window: Window) -> str:
    """The id of a row. External names contain no brackets, so no name can collide with the day of another one."""
    return f"{name}[{window.label}]" if window.label else name


def name_in(row_id: str) -> str:
    """The name in the id of a row."""
    return row_id.partition("[")[0]


class Policy:
    """The rules in a form for fast evaluation. `plain`: only the default limits of jobs exist."""

    def __init__(self, budgets: Budgets, rates: Iterable[RateLimit] = ()) -> None:
        self.update(budgets, rates)

    def update(self, budgets: Budgets, rates: Iterable[RateLimit] = ()) -> None:
        """Replace the rules, for all that hold this policy."""
        self.budgets = budgets
        self._cost, self._calls = budgets.max_cost_per_job_microusd, budgets.max_llm_calls_per_job
        self._by_scope: dict[str, list[BudgetLimit]] = {}
        for rule in budgets.limits:
            self._by_scope.setdefault(rule.scope, []).append(rule)
        self.rate_rules = tuple(rates)
        self.plain = not self._by_scope and not self.rate_rules
        self.about_jobs = any(rule.scope in {"job", "step"} for rule in budgets.limits)
        """Whether a limit depends on the name or start time of a job."""
        self.counts_tools = any(
            rule.max_tool_calls is not None or rule.max_wall_clock_s is not None for rule in budgets.limits
        )

    def limits(self, caller: Caller, now_us: int) -> list[Limit]:
        """The limits for a call at `now_us`, root job first. Every job has a row, even without a limit."""
        if not self._by_scope:
            return [Limit("job", job.job_id, self._cost, self._calls, task=job.name) for job in caller.jobs]
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for job in caller.jobs:
            merged = found["job", job.job_id] = {"limit_microusd": self._cost, "limit_calls": self._calls}
            merged["started_at"], merged["task"] = job.started_at, job.name
        for name, subject, rules in self._matching_rules(caller):
            for rule in rules:
                if rule.applies_to(name):
                    self._add(found, rule, subject, caller, now_us)
        return [Limit(scope, row_id, **fields) for (scope, row_id), fields in found.items()]

    def _matching_rules(self, caller: Caller) -> Iterable[tuple[str | None, str | None, list[BudgetLimit]]]:
        """(name that rules are matched with, row owner, rules of the scope) for each scope of a caller."""
        rules = self._by_scope
        for job in caller.jobs:
            yield job.name, job.job_id, rules.get("job", [])
        if caller.step is not None and caller.jobs:
            yield caller.step, f"{caller.jobs[-1].job_id}/{caller.step}", rules.get("step", [])
        for scope, name in (
            ("session", caller.session),
            ("agent", caller.agent),
            ("agent", caller.job_agent),
            ("workflow", caller.workflow),
            ("workflow", caller.job_workflow),
            ("key", caller.key),
            ("tenant", caller.tenant_id),
        ):
            if name is not None:
                yield name, name, rules.get(scope, [])

    def _add(
        self,
        found: dict[tuple[str, str], dict[str, Any]],
        rule: BudgetLimit,
        subject: str | None,
        caller: Caller,
        now: int,
    ) -> None:
        window = ALWAYS if rule.per == "total" else window_of(rule.per, self.zone(caller.tenant_id), now)
        merged = found.setdefault(
            (rule.scope, scope_id(subject or "", window)), {"per": rule.per, "resets_at": window.ends_at}
        )
        _tighten_all(merged, rule)
        # The duration limit belongs to the job, regardless of the scope of the rule.
        job_id = subject if rule.scope == "job" else caller.jobs[-1].job_id if caller.jobs else None
        if rule.max_wall_clock_s is not None and job_id is not None:
            _tighten(found["job", job_id], "wall_clock_s", rule.max_wall_clock_s)

    def in_force(self, scope: str, per: str, name: str | None) -> Limit:
        """The limits of one row. `name` None selects rules without `only`."""
        merged: dict[str, Any] = {}
        if (scope, per) == ("job", "total"):
            merged = {"limit_microusd": self._cost, "limit_calls": self._calls}
        for rule in self._by_scope.get(scope, []):
            if rule.per == per and rule.applies_to(name):
                _tighten_all(merged, rule)
        # The duration of a job is checked at its own row, regardless of the scope of the rule.
        if scope == "job" and per == "total":
            for rule in self.budgets.limits:
                if rule.scope == "job" and rule.applies_to(name):
                    _tighten(merged, "wall_clock_s", rule.max_wall_clock_s)
        return Limit(scope, name or "", per=per, **merged)

    def periods(self, scope: str, name: str) -> list[str]:
        """The periods (total, day, month) for which a name has a limit."""
        found = {rule.per for rule in self._by_scope.get(scope, []) if rule.applies_to(name)}
        if scope == "job":
            found.add("total")
        return [per for per in PERIODS if per in found]

    def zone(self, tenant_id: str) -> str:
        return self.budgets.time_zone_of(tenant_id)

    def rates(self, caller: Caller) -> list[Rate]:
        """The rate limits for a call."""
        if not self.rate_rules:
            return []
        names: Mapping[str, tuple[str | None, ...]] = {
            "key": (caller.key,),
            "agent": (caller.agent, caller.job_agent),
            "tenant": (caller.tenant_id,),
            "target": (caller.target,),
        }
        found: dict[Key, dict[str, Any]] = {}
        for rule in self.rate_rules:
            tenant_id = "" if rule.scope == "target" else caller.tenant_id
            for name in names[rule.scope]:
                if name is not None and rule.applies_to(name):
                    merged = found.setdefault((tenant_id, rule.scope, name), {})
                    _tighten(merged, "requests_per_minute", rule.requests_per_minute)
                    _tighten(merged, "tokens_per_minute", rule.tokens_per_minute)
                    _tighten(merged, "concurrency", rule.concurrency)
        return [
            Rate(tenant_id=tenant_id, scope=scope, scope_id=name, **fields)
            for (tenant_id, scope, name), fields in found.items()
        ]


def _tighten_all(merged: dict[str, Any], rule: BudgetLimit) -> None:
    _tighten(merged, "limit_microusd", rule.max_cost_microusd)
    _tighten(merged, "limit_calls", rule.max_llm_calls)
    _tighten(merged, "limit_tokens", rule.max_tokens)
    _tighten(merged, "limit_tool_calls", rule.max_tool_calls)


def _tighten(merged: dict[str, Any], name: str, limit: int | None) -> None:
    """Apply the stricter of two limits; None is no limit."""
    if limit is not None:
        previous = merged.get(name)
        merged[name] = limit if previous is None else min(previous, limit)


def stricter(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
