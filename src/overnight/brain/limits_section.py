"""Sections of routing.yaml with limits: budgets, rate limits, retries, breakers, guards, alarms."""

from collections.abc import Callable
from typing import Any, TypeVar

from overnight.brain.fields import Fields, Reader, as_node, choice, integer, money, names, number, text
from overnight.brain.nodes import Entries, Node
from overnight.brain.problems import clipped
from overnight.domain.policies import (
    BUDGET_SCOPES,
    FAILURE_CLASSES,
    PERIODS,
    RATE_SCOPES,
    WHEN_ALL_OPEN,
    Alarms,
    Breakers,
    BudgetLimit,
    Budgets,
    ClassRetries,
    Guards,
    Limits,
    RateLimit,
    Retries,
)

from .lint import lint_limits

_DAY_MS = 86_400_000
_count = integer(0, 1_000_000_000)
_T = TypeVar("_T")


def time_zone(reader: Reader, node: Node, name: str) -> str | None:
    """An IANA time zone."""
    import zoneinfo  # loaded only for a brain that names a zone

    found = text(r"[A-Za-z0-9_+/-]{1,64}", "a time zone such as Europe/Berlin")(reader, node, name)
    if found is None:
        return None
    try:
        zoneinfo.ZoneInfo(found)
    except (LookupError, ValueError, OSError):
        reader.unknown(
            node, f"{name} is not a known time zone: {clipped(found)}", found, zoneinfo.available_timezones()
        )
        return None
    return found


_BUDGETS: Fields = {
    "max_cost_per_job_usd": ("max_cost_per_job_microusd", money),
    "max_llm_calls_per_job": ("max_llm_calls_per_job", _count),
    "time_zone": ("time_zone", time_zone),
    "tenants": ("tenants", as_node),
    "limits": ("limits", as_node),
}
_TENANT: Fields = {"time_zone": ("time_zone", time_zone)}
_BUDGET_MEASURES: Fields = {
    "max_cost_usd": ("max_cost_microusd", money),
    "max_tokens": ("max_tokens", integer(0, 1_000_000_000_000)),
    "max_llm_calls": ("max_llm_calls", _count),
    "max_tool_calls": ("max_tool_calls", _count),
    "max_wall_clock_s": ("max_wall_clock_s", integer(1, 315_360_000)),
}
_BUDGET_LIMIT: Fields = {
    "scope": ("scope", choice(*BUDGET_SCOPES)),
    "per": ("per", choice(*PERIODS)),
    "only": ("only", names()),
    **_BUDGET_MEASURES,
}
_RATE_MEASURES: Fields = {
    "requests_per_minute": ("requests_per_minute", integer(1, 1_000_000_000)),
    "tokens_per_minute": ("tokens_per_minute", integer(1, 1_000_000_000_000)),
    "concurrency": ("concurrency", integer(1, 1_000_000)),
}
_RATE_LIMIT: Fields = {"scope": ("scope", choice(*RATE_SCOPES)), "only": ("only", names()), **_RATE_MEASURES}
_TRIES: Fields = {
    "max_attempts": ("max_attempts", integer(1, 100)),
    "backoff_ms": ("backoff_ms", integer(0, _DAY_MS)),
    "max_backoff_ms": ("max_backoff_ms", integer(0, _DAY_MS)),
    "jitter": ("jitter", choice("full", "none")),
}
_RETRIES: Fields = {**_TRIES, "by_class": ("by_class", as_node)}
_LIMITS: Fields = {
    "max_body_bytes": ("max_body_bytes", integer(1, 1 << 30)),
    "default_max_output_tokens": ("default_max_output_tokens", integer(1, 10_000_000)),
    "external_abandoned_hours": ("external_abandoned_hours", integer(1, 87_600)),
}
_BREAKERS: Fields = {
    "failures": ("failures", integer(0, 10_000)),
    "window_ms": ("window_ms", integer(1, _DAY_MS)),
    "cool_down_ms": ("cool_down_ms", integer(1, _DAY_MS)),
    "max_cool_down_ms": ("max_cool_down_ms", integer(1, _DAY_MS)),
    "when_all_open": ("when_all_open", choice(*WHEN_ALL_OPEN)),
}
_GUARDS: Fields = {
    "same_call": ("same_call", integer(0, 1_000_000)),
    "no_progress_turns": ("no_progress_turns", integer(0, 1_000_000)),
}
_ALARMS: Fields = {
    "cost_factor": ("cost_factor", number(0, 1_000_000)),
    "least_jobs": ("least_jobs", integer(1, 1_000_000)),
}


def read_budgets(reader: Reader, node: Node | None) -> Budgets:
    found = reader.section(node, "budgets", _BUDGETS)
    zones: dict[str, str] = {}
    for tenant, (_, value) in reader.entries(found.pop("tenants", None), "budgets.tenants").items():
        own = reader.section(value, f"budgets.tenants.{tenant}", _TENANT)
        if "time_zone" in own:
            zones[tenant] = own["time_zone"]
    limits = _listed(reader, found.pop("limits", None), "budgets.limits", _BUDGET_LIMIT, _BUDGET_MEASURES, BudgetLimit)
    budgets = Budgets(**found, time_zones=zones, limits=tuple(limit for limit, _ in limits))
    lint_limits(reader, limits, _attributes(_BUDGET_MEASURES), budgets)
    return budgets


def read_rate_limits(reader: Reader, node: Node | None) -> tuple[RateLimit, ...]:
    limits = _listed(reader, node, "rate_limits", _RATE_LIMIT, _RATE_MEASURES, RateLimit)
    lint_limits(reader, limits, _attributes(_RATE_MEASURES))
    return tuple(limit for limit, _ in limits)


def _attributes(fields: Fields) -> dict[str, str]:
    return {key: attribute for key, (attribute, _) in fields.items()}


def _listed(
    reader: Reader, node: Node | None, name: str, fields: Fields, measures: Fields, kind: Callable[..., _T]
) -> list[tuple[_T, Node]]:
    """A list of limits, each with a scope and at least one measure, and their places in the file."""
    limits: list[tuple[_T, Node]] = []
    for index, item in enumerate(reader.items(node, name)):
        where = f"{name}[{index}]"
        found = reader.section(item, where, fields, ("scope",))
        if isinstance(item, Entries) and not measures.keys() & item.entries.keys():
            reader.problem(item, f"{where} has no limit", f"set one or more of {', '.join(measures)}")
        elif "scope" in found:
            limits.append((kind(**found, place=where), item))
    return limits


def read_retries(reader: Reader, node: Node | None) -> Retries:
    found = reader.section(node, "retries", _RETRIES)
    by_class = found.pop("by_class", None)
    retries = Retries(**found)
    usual = {field: getattr(retries, attribute) for field, (attribute, _) in _TRIES.items()}
    if node is not None:
        _rising(reader, node, "retries", usual)
    classes: dict[str, ClassRetries] = {}
    for name, (at, value) in reader.entries(by_class, "retries.by_class").items():
        if name not in FAILURE_CLASSES:
            reader.unknown(at, f"unknown failure class {clipped(name)} in retries.by_class", name, FAILURE_CLASSES)
            continue
        own = reader.section(value, f"retries.by_class.{name}", _TRIES)
        if "backoff_ms" in own and "max_backoff_ms" not in own:
            own["max_backoff_ms"] = max(own["backoff_ms"], retries.max_backoff_ms)
        classes[name] = ClassRetries(**usual | own)
        _rising(reader, value, f"retries.by_class.{name}", usual | own)
    return Retries(**found, by_class=classes)


def _rising(reader: Reader, node: Node, name: str, values: dict[str, Any]) -> None:
    if values["backoff_ms"] > values["max_backoff_ms"]:
        message = f"{name}.backoff_ms ({values['backoff_ms']}) is above max_backoff_ms ({values['max_backoff_ms']})"
        reader.problem(node, message)


def read_breakers(reader: Reader, node: Node | None) -> Breakers:
    breakers = Breakers(**reader.section(node, "breakers", _BREAKERS))
    if node is not None and breakers.cool_down_ms > breakers.max_cool_down_ms:
        message = f"({breakers.cool_down_ms}) is above max_cool_down_ms ({breakers.max_cool_down_ms})"
        reader.problem(node, f"breakers.cool_down_ms {message}")
    return breakers


def read_limits(reader: Reader, node: Node | None) -> Limits:
    return Limits(**reader.section(node, "limits", _LIMITS))


def read_guards(reader: Reader, node: Node | None) -> Guards:
    return Guards(**reader.section(node, "guards", _GUARDS))


def read_alarms(reader: Reader, node: Node | None) -> Alarms:
    return Alarms(**reader.section(node, "alarms", _ALARMS))
