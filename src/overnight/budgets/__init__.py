"""What: hard limits on cost, calls and time, reserved before a call and settled after it; rate limits; top-ups.
Owns: budget, reservation, rate, top_up, booked_bound, booked_bound_scope.
Depends on: reviews, ledger, store, domain. The caller passes the rules.
Never: estimates a price; the caller passes the bound.
"""

from .corrections import (
    LATE_ANSWER,
    SOURCES,
    Correction,
    CostEstimate,
    correct_cost,
    corrected,
    decode_estimate,
    estimate_of,
    list_bounds,
    public_bound,
)
from .policy import BudgetJob, Caller, Key, Limit, Policy, Rate
from .queries import (
    SCOPES,
    BudgetLine,
    line_of,
    list_budgets,
    operator_limit,
    resolve_top_up,
)
from .rate_limits import Wait
from .reservations import (
    FLOOR_TOKENS,
    Call,
    CostBound,
    ReservationGrant,
    bounds_of,
    budget_of,
    count_tool_call,
    locks,
    remaining_microusd,
    reserve,
    stop_facts,
)
from .rows import BOUND, BUDGET, RATE, RESERVATION, BoundRow, BudgetRow, RateRow, ReservationRow
from .rows import SQL as BUDGET_SQL
from .settlement import FAILED, LOST, NO_USAGE, OVER_BOUND, Booked, locked_reservation, settle
from .top_ups import (
    TopUp,
    record_missed_top_up,
    top_up_budget,
    wake_topped_up,
    wake_waiting_jobs,
)
from .windows import PERIODS, Window, window_of

__all__ = [
    "BOUND",
    "BUDGET",
    "BUDGET_SQL",
    "FAILED",
    "FLOOR_TOKENS",
    "LATE_ANSWER",
    "LOST",
    "NO_USAGE",
    "OVER_BOUND",
    "PERIODS",
    "RATE",
    "RESERVATION",
    "SCOPES",
    "SOURCES",
    "Booked",
    "BoundRow",
    "BudgetJob",
    "BudgetLine",
    "BudgetRow",
    "Call",
    "Caller",
    "Correction",
    "CostBound",
    "CostEstimate",
    "Key",
    "Limit",
    "Policy",
    "Rate",
    "RateRow",
    "ReservationGrant",
    "ReservationRow",
    "TopUp",
    "Wait",
    "Window",
    "bounds_of",
    "budget_of",
    "correct_cost",
    "corrected",
    "count_tool_call",
    "decode_estimate",
    "estimate_of",
    "line_of",
    "list_bounds",
    "list_budgets",
    "locked_reservation",
    "locks",
    "operator_limit",
    "public_bound",
    "record_missed_top_up",
    "remaining_microusd",
    "reserve",
    "resolve_top_up",
    "settle",
    "stop_facts",
    "top_up_budget",
    "wake_topped_up",
    "wake_waiting_jobs",
    "window_of",
]
