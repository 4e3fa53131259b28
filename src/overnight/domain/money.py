"""Money is an integer count of micro-dollars inside and a decimal number of dollars at the border."""

from decimal import ROUND_CEILING, Decimal

MICRO = 1_000_000


def usd_to_micro(usd: Decimal | int | str) -> int:
    """Dollars to micro-dollars, rounded up; exact for text and Decimal, so floats are not taken."""
    return int((Decimal(usd) * MICRO).to_integral_value(ROUND_CEILING))


def micro_to_usd(cost_microusd: int) -> float:
    """For JSON at the border only; never calculated with."""
    return cost_microusd / MICRO


def usd_text(cost_microusd: int) -> str:
    """For people: cents where they matter, more digits where the sum is small."""
    if cost_microusd == 0:
        return "$0"
    return f"${cost_microusd / MICRO:.4f}" if abs(cost_microusd) < MICRO else f"${cost_microusd / MICRO:,.2f}"
