"""The option --since of commands that list past records."""

from datetime import UTC, datetime

from .usage import WrongUsage

_UNITS_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}


def since_us_of(text: str, now_us: int) -> int:
    """A time in microseconds, from a duration before now or a date or time in UTC; 0 for "". Raises WrongUsage."""
    if not text:
        return 0
    number, unit = text[:-1], text[-1:]
    if number.isascii() and number.isdigit() and len(number) < 8 and unit in _UNITS_US:
        return max(0, now_us - int(number) * _UNITS_US[unit])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise WrongUsage(
            f"--since {text[:40]}: expected 7d, 12h, 30m, or a date or time such as 2026-01-31T02:00"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1_000_000)
