"""Budgets are single rows; a reservation exists only while its call is in flight."""

import msgspec

from overnight.store import Table, statements

SQL = statements("overnight.budgets")


class BudgetRow(msgspec.Struct):
    """What a scope has reserved and spent, in micro-dollars and calls. A limit here was set for this scope alone."""

    tenant_id: str
    scope: str
    scope_id: str
    limit_microusd: int | None
    limit_calls: int | None
    reserved_microusd: int
    spent_microusd: int
    calls: int


class ReservationRow(msgspec.Struct):
    """One call in flight. `estimate` is JSON of what to write should it be lost; `scopes` JSON of the budgets it draws on."""

    call_id: str
    tenant_id: str
    job_id: str
    owner: str
    lease_epoch: int | None
    amount_microusd: int
    estimate: str
    scopes: str
    expires_at: int


def _budget_key(row: BudgetRow) -> tuple[str, str, str]:
    return (row.tenant_id, row.scope, row.scope_id)


def _reservation_key(row: ReservationRow) -> str:
    return row.call_id


BUDGET: Table[BudgetRow] = Table(
    20,
    BudgetRow,
    _budget_key,
    lock=SQL["lock_budget"],
    insert=SQL["insert_budget"],
    update=SQL["update_budget"],
)
RESERVATION: Table[ReservationRow] = Table(
    30,
    ReservationRow,
    _reservation_key,
    lock=SQL["lock_reservation"],
    insert=SQL["insert_reservation"],
    update=SQL["insert_reservation"],
    delete=SQL["delete_reservation"],
)
