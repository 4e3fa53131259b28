"""Durations on the command line."""

from .usage import WrongUsage

_UNITS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def milliseconds(text: str, option: str, max_days: int, *, zero_error: str = "") -> int:
    """A duration such as 90d, 12h, 30m or 45s in milliseconds; 0 unless `zero_error` is given. Raises WrongUsage."""
    number, unit = (text[:-1], text[-1:]) if text != "0" else ("0", "s")
    if not (number.isascii() and number.isdigit() and len(number) < 10) or unit not in _UNITS:
        raise WrongUsage(f"{option} {text[:40]}: expected a whole number and d, h, m or s, such as 90d")
    found = int(number) * _UNITS[unit]
    if found > max_days * _UNITS["d"]:
        raise WrongUsage(f"{option} {text}: the maximum is {max_days}d")
    if not found and zero_error:
        raise WrongUsage(f"{option} {text}: {zero_error}")
    return found
