"""Money: an integer count of micro-dollars internally, a decimal number of dollars in public JSON."""

from decimal import ROUND_CEILING, Decimal

MICRO = 1_000_000


def usd_to_micro(usd: Decimal | int | str) -> int:
    """Dollars to micro-dollars, rounded up. Exact for text and Decimal; floats are not accepted."""
    return int((Decimal(usd) * MICRO).to_integral_value(ROUND_CEILING))


def micro_to_usd(cost_microusd: int) -> float:
    """For public JSON only, never for calculations."""
    return cost_microusd / MICRO


def usd_text(cost_microusd: int) -> str:
    """Dollars as text: two decimal places, more for small sums."""
    if cost_microusd == 0:
        return "$0"
    return f"${cost_microusd / MICRO:.4f}" if abs(cost_microusd) < MICRO else f"${cost_microusd / MICRO:,.2f}"
