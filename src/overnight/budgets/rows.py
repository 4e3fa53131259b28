"""Budgets and rates are single rows; a reservation exists only while its call is in flight; a call that was booked at a bound
keeps a row, so that its cost can be corrected."""

import msgspec

from overnight.store import Table, statements

SQL = statements("overnight.budgets")


class BudgetRow(msgspec.Struct):
    """What a scope has reserved and spent: micro-dollars, model calls, tokens, tool calls. A limit here was set for this scope
    alone; `extra_…` is what people added to whatever limit holds, in `top_ups` steps.

    `spent_microusd` is known cost. `bound_microusd` is booked for calls whose cost is not known; the hard stop counts both.
    `corrections` rises with each correction of such a call.

    `scope_id` of a day or a month ends with it in brackets, and `resets_at` is when it is over (microseconds).
    """

    tenant_id: str
    scope: str
    scope_id: str
    limit_microusd: int | None
    limit_calls: int | None
    reserved_microusd: int
    spent_microusd: int
    calls: int
    reserved_tokens: int = 0
    spent_tokens: int = 0
    tool_calls: int = 0
    extra_microusd: int = 0
    extra_tokens: int = 0
    extra_calls: int = 0
    extra_tool_calls: int = 0
    extra_wall_clock_s: int = 0
    top_ups: int = 0
    resets_at: int | None = None
    alarmed_at: int | None = None
    bound_microusd: int = 0
    corrections: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.tenant_id, self.scope, self.scope_id)

    @property
    def settled_microusd(self) -> int:
        """All that is no longer available, whatever the calls in flight come to. For comparison with the limit only."""
        return self.spent_microusd + self.bound_microusd


class ReservationRow(msgspec.Struct):
    """One call in flight. `estimate` is JSON of what to write should it be lost; `scopes` JSON of the budgets it draws on,
    `rates` JSON of the rates it was let through by. `owner` is a
    process in `worker`. `fingerprint` and `attempt` identify the request of a foreign job."""

    call_id: str
    tenant_id: str
    job_id: str
    owner: str
    lease_epoch: int | None
    amount_microusd: int
    estimate: str
    scopes: str
    tokens: int = 0
    rates: str = "[]"
    fingerprint: str | None = None
    attempt: int = 0


class BoundRow(msgspec.Struct):
    """A call that was settled at a bound. `booked_microusd` is the most it was thought to cost; `cost_microusd`, `bound_microusd`
    and `tokens` are what is booked now. `scopes` is JSON of its budgets, `call` JSON of its attribution, `day` its rollup's.

    `why` is one of the reasons in `settlement`. `source` and `corrected_at` (microseconds) are those of the last correction.
    """

    call_id: str
    tenant_id: str
    job_id: str
    scopes: str
    call: str
    why: str
    day: int
    cost_microusd: int
    bound_microusd: int
    tokens: int
    booked_microusd: int
    booked_at: int
    source: str | None = None
    corrected_at: int | None = None


class RateRow(msgspec.Struct):
    """A speed. The buckets of requests and of tokens are full again at `requests_at` and `tokens_at` (microseconds);
    `in_flight` calls are on their way. A target's row belongs to all tenants: its tenant is empty."""

    tenant_id: str
    scope: str
    scope_id: str
    requests_at: int
    tokens_at: int
    in_flight: int

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.tenant_id, self.scope, self.scope_id)


def _budget_key(row: BudgetRow) -> tuple[str, str, str]:
    return (row.tenant_id, row.scope, row.scope_id)


def _rate_key(row: RateRow) -> tuple[str, str, str]:
    return (row.tenant_id, row.scope, row.scope_id)


def _reservation_key(row: ReservationRow) -> str:
    return row.call_id


def _bound_key(row: BoundRow) -> str:
    return row.call_id


BUDGET: Table[BudgetRow] = Table(
    20,
    BudgetRow,
    _budget_key,
    lock=SQL["lock_budget"],
    insert=SQL["insert_budget"],
    update=SQL["update_budget"],
    touch=SQL["touch_budget"],
)
RATE: Table[RateRow] = Table(
    25,
    RateRow,
    _rate_key,
    lock=SQL["lock_rate"],
    insert=SQL["insert_rate"],
    update=SQL["update_rate"],
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
BOUND: Table[BoundRow] = Table(
    35,
    BoundRow,
    _bound_key,
    lock=SQL["lock_bound"],
    insert=SQL["insert_bound"],
    update=SQL["update_bound"],
)
