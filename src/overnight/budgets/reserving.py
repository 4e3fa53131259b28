"""Reserve before the call at an upper bound, settle after at the real cost. With N parallel callers, overspend is 0."""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from overnight.domain import BudgetStopped, Conflict, usd_text
from overnight.store import Unit

from .rows import BUDGET, RESERVATION, BudgetRow, ReservationRow

FLOOR_TOKENS = 256


class Limit(msgspec.Struct, frozen=True):
    """A budget that applies to a call: its scope, and the limits in force now (None: no limit)."""

    scope: str
    scope_id: str
    limit_microusd: int | None = None
    limit_calls: int | None = None


class Demand(Protocol):
    """What a call may cost at most, by its output cap in tokens."""

    wanted_tokens: int

    def bound_microusd(self, tokens: int) -> int: ...

    def affordable_tokens(self, available_microusd: int) -> int: ...


class Call(msgspec.Struct, frozen=True):
    """Whose reservation it is. `expires_at` in microseconds: after it the call counts as lost."""

    call_id: str
    tenant_id: str
    job_id: str
    owner: str
    expires_at: int
    estimate: str
    lease_epoch: int | None = None


class Granted(msgspec.Struct, frozen=True):
    """The output cap that was reserved for, and the money."""

    tokens: int
    amount_microusd: int
    lowered: bool


class Wait(msgspec.Struct, frozen=True):
    """Only outstanding reservations are in the way; ask again after a settlement."""

    scope: str
    scope_id: str


def locks(tenant_id: str, limits: Sequence[Limit]) -> list[tuple[Any, Any]]:
    """The budget rows a reservation needs, root first."""
    return [(BUDGET, (tenant_id, limit.scope, limit.scope_id)) for limit in limits]


def budget_of(unit: Unit, tenant_id: str, limit: Limit) -> BudgetRow:
    """The locked row of a scope; made on first use."""
    row = unit.get(BUDGET, (tenant_id, limit.scope, limit.scope_id))
    if row is None:
        row = BudgetRow(tenant_id, limit.scope, limit.scope_id, None, None, 0, 0, 0)
        unit.insert(BUDGET, row)
    return row


def _stricter(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def reserve(unit: Unit, call: Call, limits: Sequence[Limit], demand: Demand) -> Granted | Wait:
    """Reserve against every limit at once, or against none.

    Raises BudgetStopped when a hard count is used up, or when settled spend leaves less than the floor of output tokens.
    """
    rows = [budget_of(unit, call.tenant_id, limit) for limit in limits]
    tokens = demand.wanted_tokens
    floor = min(FLOOR_TOKENS, tokens)
    blocked: Wait | None = None
    for limit, row in zip(limits, rows, strict=True):
        most_calls = _stricter(limit.limit_calls, row.limit_calls)
        if most_calls is not None and row.calls >= most_calls:
            raise BudgetStopped(
                f"{limit.scope} {limit.scope_id} has made {row.calls} of {most_calls} model calls"
                f" (max_llm_calls_per_{limit.scope})",
                scope=limit.scope,
                limit=f"max_llm_calls_per_{limit.scope}",
                spent=row.calls,
                allowed=most_calls,
            )
        most = _stricter(limit.limit_microusd, row.limit_microusd)
        if most is None:
            continue
        affordable = demand.affordable_tokens(most - row.spent_microusd - row.reserved_microusd)
        if affordable < floor:
            if demand.affordable_tokens(most - row.spent_microusd) < floor:
                raise BudgetStopped(
                    f"{limit.scope} {limit.scope_id} has spent {usd_text(row.spent_microusd)} of {usd_text(most)}"
                    f" (max_cost_per_{limit.scope}_usd); this call could cost {usd_text(demand.bound_microusd(floor))}",
                    scope=limit.scope,
                    limit=f"max_cost_per_{limit.scope}_usd",
                    spent=row.spent_microusd,
                    allowed=most,
                )
            blocked = blocked or Wait(limit.scope, limit.scope_id)
        tokens = min(tokens, affordable)
    if blocked is not None:
        return blocked
    amount = demand.bound_microusd(tokens)
    for row in rows:
        row.reserved_microusd += amount
        row.calls += 1
        unit.change(BUDGET, row)
    scopes = msgspec.json.encode([(row.scope, row.scope_id) for row in rows]).decode()
    unit.insert(
        RESERVATION,
        ReservationRow(
            call.call_id,
            call.tenant_id,
            call.job_id,
            call.owner,
            call.lease_epoch,
            amount,
            call.estimate,
            scopes,
            call.expires_at,
        ),
    )
    return Granted(tokens, amount, tokens < demand.wanted_tokens)


def held(unit: Unit, call_id: str) -> ReservationRow:
    """The locked reservation; its budgets are locked with it. Conflict when it was settled already."""
    row = unit.get(RESERVATION, call_id)
    if row is None:
        raise Conflict(f"{call_id} was settled already")
    scopes: list[tuple[str, str]] = msgspec.json.decode(row.scopes, type=list[tuple[str, str]])
    unit.lock((BUDGET, (row.tenant_id, *scope)) for scope in scopes)
    return row


def settle(unit: Unit, call_id: str, cost_microusd: int | None) -> int:
    """Turn a reservation into spend; the amount spent. None spends all of it: nobody knows the cost, so nothing is released."""
    row = held(unit, call_id)
    spent = row.amount_microusd if cost_microusd is None else cost_microusd
    scopes: list[tuple[str, str]] = msgspec.json.decode(row.scopes, type=list[tuple[str, str]])
    for scope, scope_id in scopes:
        budget = unit.get(BUDGET, (row.tenant_id, scope, scope_id))
        if budget is not None:
            budget.reserved_microusd -= row.amount_microusd
            budget.spent_microusd += spent
            unit.change(BUDGET, budget)
    unit.delete(RESERVATION, row)
    return spent
