"""Settle a reservation: at a known cost, at a bound if the cost is unknown, or at both.

A bound is booked separately from the cost and counts against the limit. The call keeps a row, so that a correction
finds its budgets and the day of its booking.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from overnight.domain import Conflict, day_of
from overnight.store import Unit

from .policy import Limit
from .rate_limits import decode_passed, release
from .rows import BOUND, BUDGET, RATE, RESERVATION, SQL, BoundRow, ReservationRow

LOST, FAILED, NO_USAGE, OVER_BOUND = "lost", "failed", "no_usage", "over_bound"
"""Why a call was booked at a bound: its answer was lost, a failed attempt may be billed, the usage is missing, or the reported
usage exceeds the maximum of the request and is ignored."""
MAX_NAMED_CALLS = 5
Scopes = list[tuple[str, str]]
decode_scopes = msgspec.json.Decoder(Scopes).decode


class Booked(msgspec.Struct, frozen=True):
    """The booking of a call: its known cost, and the maximum of additional unknown cost. The two are never added."""

    cost_microusd: int = 0
    bound_microusd: int = 0


class OpenBound(msgspec.Struct, frozen=True):
    """A call that was booked at a bound and is not corrected yet."""

    call_id: str
    job_id: str
    bound_microusd: int
    why: str


class _ScopeRow(msgspec.Struct, frozen=True):
    tenant_id: str
    scope: str
    scope_id: str
    call_id: str


def budget_locks(tenant_id: str, scopes: str) -> list[tuple[Any, Any]]:
    """The budget rows of a call, from the JSON of its scopes."""
    return [(BUDGET, (tenant_id, *scope)) for scope in decode_scopes(scopes)]


def locked_reservation(unit: Unit, call_id: str) -> ReservationRow:
    """The locked reservation of a call, with its budgets and rates locked too. Raises Conflict if it is already
    settled."""
    row = unit.get(RESERVATION, call_id)
    if row is None:
        raise Conflict(f"{call_id} is already settled")
    rows = budget_locks(row.tenant_id, row.scopes)
    if row.rates != "[]":
        rows += [(RATE, (each.tenant_id, each.scope, each.scope_id)) for each in decode_passed(row.rates)]
    unit.lock(rows)
    return row


def settle(
    unit: Unit,
    call_id: str,
    cost_microusd: int | None,
    tokens: int = 0,
    *,
    bound_microusd: int = 0,
    why: str = FAILED,
) -> Booked:
    """Convert a reservation to a booking.

    Args:
        unit: the unit of work.
        call_id: the call.
        cost_microusd: the known cost; None: unknown, so that the whole reservation is booked as a bound.
        tokens: input and output tokens together.
        bound_microusd: the maximum of additional unknown cost, limited by the reservation.
        why: the reason of a bound.

    Returns: the booking.

    Raises:
        Conflict: the call is already settled.
    """
    row = locked_reservation(unit, call_id)
    if cost_microusd is None:
        booked, used = Booked(0, row.amount_microusd), row.tokens
    else:
        most = max(0, row.amount_microusd - cost_microusd)
        booked = Booked(cost_microusd, min(bound_microusd, most))
        used = max(tokens, row.tokens) if booked.bound_microusd else tokens  # a lost answer used tokens too
    for scope, scope_id in decode_scopes(row.scopes):
        budget = unit.get(BUDGET, (row.tenant_id, scope, scope_id))
        if budget is not None:
            budget.reserved_microusd -= row.amount_microusd
            budget.spent_microusd += booked.cost_microusd
            budget.bound_microusd += booked.bound_microusd
            budget.reserved_tokens -= row.tokens
            budget.spent_tokens += used
            unit.touch(BUDGET, budget)
    if row.rates != "[]":
        release(unit, decode_passed(row.rates), None if cost_microusd is None else used)
    unit.delete(RESERVATION, row)
    if booked.bound_microusd or why in (LOST, OVER_BOUND):
        _keep(unit, row, booked, used, why)
    return booked


def _keep(unit: Unit, row: ReservationRow, booked: Booked, tokens: int, why: str) -> None:
    kept = BoundRow(
        call_id=row.call_id,
        tenant_id=row.tenant_id,
        job_id=row.job_id,
        scopes=row.scopes,
        call=row.estimate,
        why=why,
        day=day_of(unit.now),
        cost_microusd=booked.cost_microusd,
        bound_microusd=booked.bound_microusd,
        tokens=tokens,
        booked_microusd=booked.cost_microusd + booked.bound_microusd,
        booked_at=unit.now,
    )
    unit.insert(BOUND, kept)
    if booked.bound_microusd:
        for scope, scope_id in decode_scopes(row.scopes):
            unit.append(SQL["insert_bound_scope"], _ScopeRow(row.tenant_id, scope, scope_id, row.call_id))


def rebook(unit: Unit, row: BoundRow, now: Booked, tokens: int, source: str) -> Booked:
    """Replace the booking of a call in each of its budgets, including past days and months. Returns the difference.

    A correction never raises a bound. The row and its budgets must be among the command's locks, or are locked here.
    """
    bound = min(now.bound_microusd, row.bound_microusd)
    change = Booked(now.cost_microusd - row.cost_microusd, bound - row.bound_microusd)
    unit.lock(budget_locks(row.tenant_id, row.scopes))
    for scope, scope_id in decode_scopes(row.scopes):
        budget = unit.get(BUDGET, (row.tenant_id, scope, scope_id))
        if budget is not None:
            budget.spent_microusd += change.cost_microusd
            budget.bound_microusd += change.bound_microusd
            budget.spent_tokens += tokens - row.tokens
            budget.corrections += 1
            unit.change(BUDGET, budget)
        if not bound:
            unit.append(SQL["delete_bound_scope"], _ScopeRow(row.tenant_id, scope, scope_id, row.call_id))
    row.cost_microusd, row.bound_microusd, row.tokens = now.cost_microusd, bound, tokens
    row.source, row.corrected_at = source, unit.now
    unit.change(BOUND, row)
    return change


def open_bounds(unit: Unit, tenant_id: str, limit: Limit) -> Sequence[OpenBound]:
    """The largest bounds that a budget counts, limited in number."""
    values = {"tenant_id": tenant_id, "scope": limit.scope, "scope_id": limit.scope_id, "most": MAX_NAMED_CALLS}
    return [OpenBound(*row) for row in unit.query(SQL["list_bounds_of_budget"], values)]
