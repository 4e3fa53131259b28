"""Identifiers: ours are time-ordered; those from outside are bounded and checked."""

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
    """The value as given, or BadInput that names `place` (a header, an option) and the rule."""
    if not value or len(value) > MAX_IDENTIFIER_LENGTH:
        raise BadInput(f"{place}: an identifier has 1 to {MAX_IDENTIFIER_LENGTH} characters, this one has {len(value)}")
    if not _ALLOWED.issuperset(value):
        bad = next(character for character in value if character not in _ALLOWED)
        raise BadInput(f"{place}: the character {bad!r} is not allowed; use letters, digits and - _ . : / @ + = | # ~")
    return value


def parse_whole(value: object, most: int) -> int | None:
    """The whole number from 0 to `most` that a value from outside is, or None.

    Text has ASCII digits alone: `int` takes digits of every script, signs, spaces and underscores too. It has no more digits than
    `most`, since thousands of them take long, and `int` refuses them with an error of its own.
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
    # Asked several times for every event, and nearly always about today.
    moment = time.gmtime(days * 86_400)
    return (moment.tm_year * 100 + moment.tm_mon) * 100 + moment.tm_mday
