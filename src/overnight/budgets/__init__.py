"""What: hard stops on spend, calls and time, reserved before a call and settled after it; speeds; what people add.
Owns: budget, reservation, rate, top_up.
Depends on: ledger, store, domain. The rules are handed in.
Never: estimates a price; the caller brings the bound.
"""

from .listing import SCOPES, BudgetLine, addressed, line_of, list_budgets
from .policy import BudgetRule, BudgetRules, Caller, Key, Kin, Limit, Policy, Rate, RateRule
from .rating import Wait
from .reserving import (
    FLOOR_TOKENS,
    Call,
    Demand,
    Granted,
    budget_of,
    count_tool_call,
    held,
    left_microusd,
    locks,
    reserve,
    settle,
    stop_facts,
)
from .rows import BUDGET, RATE, RESERVATION, BudgetRow, RateRow, ReservationRow
from .rows import SQL as BUDGET_SQL
from .topping import TopUp, hear_top_up, top_up_budget, wake_topped_up
from .windows import PERIODS, Window, window_of

__all__ = [
    "BUDGET",
    "BUDGET_SQL",
    "FLOOR_TOKENS",
    "PERIODS",
    "RATE",
    "RESERVATION",
    "SCOPES",
    "BudgetLine",
    "BudgetRow",
    "BudgetRule",
    "BudgetRules",
    "Call",
    "Caller",
    "Demand",
    "Granted",
    "Key",
    "Kin",
    "Limit",
    "Policy",
    "Rate",
    "RateRow",
    "RateRule",
    "ReservationRow",
    "TopUp",
    "Wait",
    "Window",
    "addressed",
    "budget_of",
    "count_tool_call",
    "hear_top_up",
    "held",
    "left_microusd",
    "line_of",
    "list_budgets",
    "locks",
    "reserve",
    "settle",
    "stop_facts",
    "top_up_budget",
    "wake_topped_up",
    "window_of",
]
