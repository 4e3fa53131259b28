"""Amounts of money on the command line."""

from decimal import Decimal, InvalidOperation

from overnight.domain import usd_to_micro

from .usage import WrongUsage

MAX_USD = 1_000_000


def dollars(usd: str | None) -> int:
    """An amount such as 2.50 or $2.50 in micro-dollars; 0 for None. Raises WrongUsage."""
    if usd is None:
        return 0
    try:
        found = Decimal(usd.removeprefix("$"))
    except InvalidOperation:
        found = Decimal(-1)
    if not found.is_finite() or not 0 <= found <= MAX_USD:
        raise WrongUsage(f"--usd {usd[:40]}: expected an amount in dollars from 0 to 1,000,000, such as 2.50")
    return usd_to_micro(found)
