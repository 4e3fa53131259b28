"""The rows of budgets, reservations, booked bounds and rates.

A reservation exists only while its call is in flight. A call that was booked at a bound keeps a row for corrections.
"""

from operator import attrgetter

import msgspec

from overnight.store import Table, statements

SQL = statements("overnight.budgets")


class BudgetRow(msgspec.Struct):
    """The reserved and spent amounts of a scope: micro-dollars, model calls, tokens, tool calls.

    - A limit in the row applies to this scope only. `extra_…` is the sum of `top_ups` top-ups to the effective limit.
    - `spent_microusd` is known cost. `bound_microusd` is booked for unknown cost; the hard limit counts both.
    - `corrections` counts corrections of such calls.
    - `scope_id` of a day or month ends with it in brackets; `resets_at` is its end in microseconds.
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
        """The amount that is used regardless of calls in flight. For comparison with the limit only."""
        return self.spent_microusd + self.bound_microusd


class ReservationRow(msgspec.Struct):
    """One call in flight.

    - `estimate`: JSON of the event to write if the call is lost.
    - `scopes`, `rates`: JSON of its budgets and rates.
    - `owner`: its process in `worker`.
    - `fingerprint`, `attempt`: identify the request of an HTTP client. Calls of job code have no fingerprint.
    """

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
    """A call that was settled at a bound.

    - `booked_microusd`: the original bound; `cost_microusd`, `bound_microusd`, `tokens`: the current booking.
    - `scopes`: JSON of its budgets; `call`: JSON of its attribution; `day`: the day of its rollup.
    - `why`: a reason of `settlement`; `source`, `corrected_at` (microseconds): of the last correction.
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
    """A rate limit. The buckets of requests and tokens are full again at `requests_at` and `tokens_at`
    (microseconds). `in_flight` counts running calls. The row of a target belongs to all tenants and has an empty
    tenant.
    """

    tenant_id: str
    scope: str
    scope_id: str
    requests_at: int
    tokens_at: int
    in_flight: int

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.tenant_id, self.scope, self.scope_id)


BUDGET: Table[BudgetRow] = Table(
    20,
    BudgetRow,
    attrgetter("tenant_id", "scope", "scope_id"),
    lock=SQL["lock_budget"],
    insert=SQL["insert_budget"],
    update=SQL["update_budget"],
    touch=SQL["touch_budget"],
)
RATE: Table[RateRow] = Table(
    25,
    RateRow,
    attrgetter("tenant_id", "scope", "scope_id"),
    lock=SQL["lock_rate"],
    insert=SQL["insert_rate"],
    update=SQL["update_rate"],
)
RESERVATION: Table[ReservationRow] = Table(
    30,
    ReservationRow,
    attrgetter("call_id"),
    lock=SQL["lock_reservation"],
    insert=SQL["insert_reservation"],
    update=SQL["insert_reservation"],
    delete=SQL["delete_reservation"],
)
BOUND: Table[BoundRow] = Table(
    35,
    BoundRow,
    attrgetter("call_id"),
    lock=SQL["lock_bound"],
    insert=SQL["insert_bound"],
    update=SQL["update_bound"],
)
