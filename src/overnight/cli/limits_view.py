"""The limits of routing.yaml."""

from collections.abc import Iterator
from typing import Any

from overnight.brain import Brain
from overnight.domain import micro_to_usd, usd_text
from overnight.settings import Settings

from .output import print_rows, say

_BUDGETS = {
    "cost": "max_cost_microusd",
    "tokens": "max_tokens",
    "llm_calls": "max_llm_calls",
    "tool_calls": "max_tool_calls",
    "wall_clock_s": "max_wall_clock_s",
}
_RATES = {
    "requests": ("requests_per_minute", "minute"),
    "tokens": ("tokens_per_minute", "minute"),
    "calls at once": ("concurrency", ""),
}
_HEADS = ("limit of", "per", "measure", "limit")


def limits_in_force(brain: Brain, tenant_id: str) -> list[dict[str, Any]]:
    """Every limit of the brain as public JSON. Limits that name only other tenants are left out ("": all tenants)."""
    found: list[dict[str, Any]] = []
    for each in _all(brain):
        applies_to = each.pop("covers")
        if not tenant_id or each["scope"] != "tenant" or applies_to(tenant_id):
            if tenant_id and each["scope"] == "tenant":
                each["only"] = [tenant_id]  # the others of the rule are other tenants
            found.append(each)
    return found


def _all(brain: Brain) -> Iterator[dict[str, Any]]:
    budgets = brain.routing.budgets
    of_jobs = {"cost": budgets.max_cost_per_job_microusd, "llm_calls": budgets.max_llm_calls_per_job}
    for measure, limit in of_jobs.items():
        if limit is not None:
            yield _public("job", None, "total", measure, limit)
    for rule in budgets.limits:
        for measure, attribute in _BUDGETS.items():
            if (limit := getattr(rule, attribute)) is not None:
                yield _public(rule.scope, rule, rule.per, measure, limit)
    for rate in brain.routing.rate_limits:
        for measure, (attribute, per) in _RATES.items():
            if (limit := getattr(rate, attribute)) is not None:
                yield _public(rate.scope, rate, per, measure, limit)


def _public(scope: str, rule: Any, per: str, measure: str, limit: int) -> dict[str, Any]:

    name, value = ("cost_usd", micro_to_usd(limit)) if measure == "cost" else (measure, limit)
    only = list(rule.only.patterns) if rule is not None and rule.only is not None else []
    applies_to = rule.applies_to if rule is not None else bool
    return {"scope": scope, "only": only, "per": per, "measure": name, "limit": value, "covers": applies_to}


def show_limits(limits: list[dict[str, Any]], brain: Brain, settings: Settings) -> None:
    """One line per limit; without limits, the reason."""

    if not limits:
        say(no_limits(brain, settings))
        return
    rows: list[list[tuple[str, str]]] = []
    for each in limits:
        owner = f"{each['scope']} {', '.join(each['only'])}" if each["only"] else f"each {each['scope']}"
        money = each["measure"] == "cost_usd"
        limit = usd_text(round(each["limit"] * 1_000_000)) if money else f"{each['limit']:,}"
        measure = "cost" if money else each["measure"].replace("_", " ")
        rows.append([(text, "") for text in (owner, each["per"], measure, limit)])
    print_rows(_HEADS, rows, frozenset({"limit"}))


def no_limits(brain: Brain, settings: Settings) -> str:
    """The message for a brain without limits."""
    if not brain.has_routing:
        return f"no budgets and no limits: folder {settings.brain} does not exist; `overnight init` creates it"
    return f"no budgets and no limits: {settings.brain}/routing.yaml defines none"
