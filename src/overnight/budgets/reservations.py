"""Reserve an upper bound before a call; `settlement` settles it afterwards. Parallel callers cannot overspend."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec

from overnight.domain import BudgetStopped, micro_to_usd, usd_text
from overnight.store import Unit

from .policy import Limit, Rate, stricter
from .rate_limits import Wait, consume, wait_for
from .rows import BUDGET, RATE, RESERVATION, BudgetRow, ReservationRow
from .settlement import LOST, OpenBound, open_bounds

FLOOR_TOKENS = 256
_encode = msgspec.json.Encoder().encode


class CostBound(Protocol):
    """The maximum usage of a call: input tokens, output tokens for each choice up to its cap, and the price."""

    wanted_tokens: int

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def choices(self) -> int: ...

    def bound_microusd(self, tokens: int) -> int: ...

    def affordable_tokens(self, available_microusd: int) -> int: ...


class Call(msgspec.Struct, frozen=True):
    """The owner of a reservation. `owner` is the process of the call; `fingerprint` and `attempt` identify the
    request of an HTTP client. Calls of job code have no fingerprint: their worker makes them, and ends with its lease.
    """

    call_id: str
    tenant_id: str
    job_id: str
    owner: str
    estimate: str
    lease_epoch: int | None = None
    fingerprint: str | None = None
    attempt: int = 0


class ReservationGrant(msgspec.Struct, frozen=True):
    """The reserved output limit and amount."""

    tokens: int
    amount_microusd: int
    lowered: bool


def locks(tenant_id: str, limits: Iterable[Limit], rates: Iterable[Rate] = ()) -> list[tuple[Any, Any]]:
    """The rows that a reservation locks, root job first."""
    found: list[tuple[Any, Any]] = [(BUDGET, (tenant_id, limit.scope, limit.scope_id)) for limit in limits]
    found += [(RATE, rate.key) for rate in rates]
    return found


def budget_of(unit: Unit, tenant_id: str, limit: Limit) -> BudgetRow:
    """The locked budget row of a scope, created on first use."""
    row = unit.get(BUDGET, (tenant_id, limit.scope, limit.scope_id))
    if row is None:
        row = BudgetRow(
            tenant_id=tenant_id,
            scope=limit.scope,
            scope_id=limit.scope_id,
            limit_microusd=None,
            limit_calls=None,
            reserved_microusd=0,
            spent_microusd=0,
            calls=0,
            resets_at=limit.resets_at,
        )
        unit.insert(BUDGET, row)
    return row


def allowed(limit: int | None, own: int | None, extra: int) -> int | None:
    """The stricter of the policy's limit and the row's own, plus top-ups. None: no limit."""
    most = stricter(limit, own)
    return None if most is None else most + extra


def _stop(
    limit: Limit,
    row: BudgetRow,
    measure: str,
    words: str,
    spent: int,
    most: int,
    bounds: Sequence[OpenBound] = (),
) -> BudgetStopped:
    of_job = limit.scope == "job" and limit.per == "total"
    names = {"max_cost_usd": "max_cost_per_job_usd", "max_llm_calls": "max_llm_calls_per_job"} if of_job else {}
    name = names.get(measure, measure)
    per = "" if limit.per == "total" else f" per {limit.per}"
    return BudgetStopped(
        f"{limit.scope} {limit.name} {words} ({name}{per}){_remedy(bounds)}",
        scope=limit.scope,
        limit=name,
        spent=spent,
        allowed=most,
        scope_id=limit.scope_id,
        name=limit.name,
        per=limit.per,
        resets_at=limit.resets_at,
        top_ups=row.top_ups,
        bound_microusd=row.bound_microusd,
        bounds=tuple((each.call_id, each.job_id, each.bound_microusd, each.why) for each in bounds),
        corrections=row.corrections,
    )


_BOOKED_FOR = {
    LOST: "lost",
    "failed": "failed",
    "no_usage": "answered without usage",
    "over_bound": "implausible usage",
}


def _remedy(bounds: Sequence[OpenBound]) -> str:
    """The calls of unknown cost that count against the budget, and the command that books their real cost."""
    if not bounds:
        return ""
    named = ", ".join(
        f"{each.call_id} (at most {usd_text(each.bound_microusd)}, {_BOOKED_FOR.get(each.why, each.why)})"
        for each in bounds
    )
    return (
        f". Counted at their bound: {named}; book a known cost with: overnight budget settle CALL --usd COST --why TEXT"
    )


def _check_counts(unit: Unit, limit: Limit, row: BudgetRow) -> None:
    """Check the limits on calls and time, which never become available again. Raises BudgetStopped."""
    most = allowed(limit.limit_calls, row.limit_calls, row.extra_calls)
    if most is not None and row.calls >= most:
        raise _stop(limit, row, "max_llm_calls", f"has made {row.calls} of {most} model calls", row.calls, most)
    _check_time(unit, limit, row)


def _check_time(unit: Unit, limit: Limit, row: BudgetRow) -> None:
    if limit.wall_clock_s is not None and limit.started_at is not None:
        most = limit.wall_clock_s + row.extra_wall_clock_s
        took = (unit.now - limit.started_at) // 1_000_000
        if took >= most:
            raise _stop(limit, row, "max_wall_clock_s", f"has taken {took} of {most} seconds", took, most)


def _affordable(unit: Unit, limit: Limit, row: BudgetRow, demand: CostBound, floor: int) -> tuple[int, bool]:
    """The output limit that the budget can cover, and whether only open reservations reduce it below the floor.

    Raises:
        BudgetStopped: the settled spend leaves less than the floor.
    """
    tokens = demand.wanted_tokens
    most = allowed(limit.limit_microusd, row.limit_microusd, row.extra_microusd)
    if most is not None:
        left = most - row.settled_microusd
        tokens = min(tokens, demand.affordable_tokens(left - row.reserved_microusd))
        if tokens < floor and demand.affordable_tokens(left) < floor:
            words = f"has spent {usd_text(row.spent_microusd)} of {usd_text(most)}"
            if row.bound_microusd:
                words += f", and calls of unknown cost are booked at {usd_text(row.bound_microusd)} at most"
            words += f"; this call could cost {usd_text(demand.bound_microusd(floor))}"
            raise _stop(limit, row, "max_cost_usd", words, row.spent_microusd, most, _bounds(unit, limit, row))
    most = allowed(limit.limit_tokens, None, row.extra_tokens)
    if most is not None:
        settled = most - row.spent_tokens - demand.prompt_tokens
        tokens = min(tokens, (settled - row.reserved_tokens) // demand.choices)
        if tokens < floor and settled // demand.choices < floor:
            bound = demand.prompt_tokens + floor * demand.choices
            words = f"has used {row.spent_tokens:,} of {most:,} tokens; this call could use {bound:,}"
            raise _stop(limit, row, "max_tokens", words, row.spent_tokens, most, _bounds(unit, limit, row))
    return tokens, tokens < floor


def _bounds(unit: Unit, limit: Limit, row: BudgetRow) -> Sequence[OpenBound]:
    return open_bounds(unit, row.tenant_id, limit) if row.bound_microusd else ()


def reserve(
    unit: Unit, call: Call, limits: Sequence[Limit], demand: CostBound, rates: Sequence[Rate] = ()
) -> ReservationGrant | Wait:
    """Reserve against all limits and rates at once, or none of them.

    Returns: the grant, or the condition to wait for.

    Raises:
        BudgetStopped: a limit on calls or time is used up, or settled spend leaves less than the floor of output
            tokens.
    """
    rows = [budget_of(unit, call.tenant_id, limit) for limit in limits]
    tokens = demand.wanted_tokens
    floor = min(FLOOR_TOKENS, tokens)
    wait: Wait | None = None
    for limit, row in zip(limits, rows, strict=True):
        _check_counts(unit, limit, row)
        affordable, busy = _affordable(unit, limit, row, demand, floor)
        if busy:
            wait = wait or Wait(limit.scope, limit.scope_id, call.tenant_id)
        tokens = min(tokens, affordable)
    if wait is not None:
        return wait
    bound = demand.prompt_tokens + tokens * demand.choices
    passed = "[]"
    if rates:
        wait = wait_for(unit, rates, bound)
        if wait is not None:
            return wait
        passed = consume(unit, rates, bound)
    amount = demand.bound_microusd(tokens)
    for row in rows:
        row.reserved_microusd += amount
        row.reserved_tokens += bound
        row.calls += 1
        unit.touch(BUDGET, row)
    scopes = _encode([(row.scope, row.scope_id) for row in rows]).decode()
    unit.insert(
        RESERVATION,
        ReservationRow(
            call_id=call.call_id,
            tenant_id=call.tenant_id,
            job_id=call.job_id,
            owner=call.owner,
            lease_epoch=call.lease_epoch,
            amount_microusd=amount,
            estimate=call.estimate,
            scopes=scopes,
            tokens=bound,
            rates=passed,
            fingerprint=call.fingerprint,
            attempt=call.attempt,
        ),
    )
    return ReservationGrant(tokens, amount, tokens < demand.wanted_tokens)


def remaining_microusd(unit: Unit, tenant_id: str, limits: Iterable[Limit]) -> int | None:
    """The lowest remaining amount of the money budgets, in micro-dollars; None without a money limit. Rows must be
    locked."""
    least: int | None = None
    for limit in limits:
        row = unit.get(BUDGET, (tenant_id, limit.scope, limit.scope_id)) if limit.limit_microusd is not None else None
        if row is not None:
            most = allowed(limit.limit_microusd, row.limit_microusd, row.extra_microusd) or 0
            least = stricter(least, max(0, most - row.settled_microusd - row.reserved_microusd))
    return least


def stop_facts(stop: BudgetStopped) -> dict[str, Any]:
    """The `decision` of a `budget_stopped` event."""
    money = stop.limit.endswith("_usd")
    measure = "usd" if money else _MEASURES.get(stop.limit, "calls")
    facts: dict[str, Any] = {
        "why": str(stop),
        "scope": stop.scope,
        "name": stop.name,
        "per": stop.per,
        "limit": stop.limit,
        f"spent_{measure}": micro_to_usd(stop.spent) if money else stop.spent,
        f"allowed_{measure}": micro_to_usd(stop.allowed) if money else stop.allowed,
    }
    if stop.bound_microusd:
        facts |= {"bound_usd": micro_to_usd(stop.bound_microusd), "bounds": bounds_of(stop)}
    return facts


def bounds_of(stop: BudgetStopped) -> list[dict[str, Any]]:
    """The calls of unknown cost that count against the budget, in public JSON names."""
    names = ("call_id", "job_id", "bound_usd", "why")
    return [
        dict(zip(names, (call_id, job_id, micro_to_usd(bound), why), strict=True))
        for call_id, job_id, bound, why in stop.bounds
    ]


_MEASURES = {"max_tokens": "tokens", "max_wall_clock_s": "seconds", "max_tool_calls": "tool_calls"}


def count_tool_call(unit: Unit, tenant_id: str, limits: Iterable[Limit]) -> None:
    """Count one tool call against each budget with a limit on them. Raises BudgetStopped and then counts nothing."""
    counted = [limit for limit in limits if limit.limit_tool_calls is not None or limit.wall_clock_s is not None]
    rows = [budget_of(unit, tenant_id, limit) for limit in counted]
    for limit, row in zip(counted, rows, strict=True):
        most = allowed(limit.limit_tool_calls, None, row.extra_tool_calls)
        if most is not None and row.tool_calls >= most:
            words = f"has made {row.tool_calls} of {most} tool calls"
            raise _stop(limit, row, "max_tool_calls", words, row.tool_calls, most)
        _check_time(unit, limit, row)
    for row in rows:
        row.tool_calls += 1
        unit.change(BUDGET, row)
