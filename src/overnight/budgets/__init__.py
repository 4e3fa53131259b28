"""What: hard stops on spend and calls, reserved before a call and settled after it.
Owns: budget, reservation.
Depends on: store, domain.
Never: estimates a price; the caller brings the bound.
"""

from .reserving import FLOOR_TOKENS, Call, Demand, Granted, Limit, Wait, budget_of, held, locks, reserve, settle
from .rows import BUDGET, RESERVATION, BudgetRow, ReservationRow
from .rows import SQL as BUDGET_SQL

__all__ = [
    "BUDGET",
    "BUDGET_SQL",
    "FLOOR_TOKENS",
    "RESERVATION",
    "BudgetRow",
    "Call",
    "Demand",
    "Granted",
    "Limit",
    "ReservationRow",
    "Wait",
    "budget_of",
    "held",
    "locks",
    "reserve",
    "settle",
]
