"""Identifiers: generated ones are time-ordered; external ones are bounded and checked."""

import os
import time
from functools import lru_cache

from .errors import BadInput

_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/@+=|#~ ")
MAX_IDENTIFIER_LENGTH = 200
_DAY_US = 86_400_000_000


def new_id(prefix: str) -> str:
    """`prefix` + `_` + 32 hex digits: 48 bits of milliseconds, then 80 random bits (the order of RFC 9562 version 7)."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"


def check_identifier(value: str, place: str) -> str:
    """Return the value if it is a valid identifier. Raises BadInput with `place` (a header, an option) and the rule."""
    if not value or len(value) > MAX_IDENTIFIER_LENGTH:
        raise BadInput(
            f"{place}: an identifier must have 1 to {MAX_IDENTIFIER_LENGTH} characters, this one has {len(value)}"
        )
    if not _ALLOWED.issuperset(value):
        bad = next(character for character in value if character not in _ALLOWED)
        raise BadInput(f"{place}: the character {bad!r} is not allowed; use letters, digits and - _ . : / @ + = | # ~")
    return value


def parse_whole(value: object, most: int) -> int | None:
    """Parse a whole number from 0 to `most`. Returns None for other values.

    Text must consist of ASCII digits, since `int` also accepts other scripts, signs, spaces and underscores. The
    number of digits is limited to those of `most`, since `int` is slow on long text and rejects very long text with
    its own error.
    """
    if isinstance(value, int):
        return value if not isinstance(value, bool) and 0 <= value <= most else None
    if isinstance(value, str):
        value = value.encode() if value.isascii() else b""
    if not isinstance(value, bytes) or not value.isdigit() or len(value) > len(str(most)):
        return None
    number = int(value)
    return number if number <= most else None


def month_of(at_us: int) -> int:
    """The UTC month of a time in microseconds, as the number YYYYMM."""
    return day_of(at_us) // 100


def day_of(at_us: int) -> int:
    """The UTC day of a time in microseconds, as the number YYYYMMDD."""
    return _date_of(at_us // _DAY_US)


@lru_cache(maxsize=64)
def _date_of(days: int) -> int:
    # Called several times for every event, nearly always with the current day.
    moment = time.gmtime(days * 86_400)
    return (moment.tm_year * 100 + moment.tm_mon) * 100 + moment.tm_mday
