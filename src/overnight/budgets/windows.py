"""Days and months of a time zone: the one that contains a moment, and the start of the next one. Pure."""

from datetime import date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import msgspec

PERIODS = ("total", "day", "month")


class Window(msgspec.Struct, frozen=True):
    """The period of a budget. `label` is empty for the total, else `2026-11-21` or `2026-11`. `ends_at` is the start
    of the next one, in microseconds UTC.
    """

    label: str
    ends_at: int | None


class _Day(msgspec.Struct, frozen=True):
    begins_at: int
    day: Window
    month: Window


_ONE_DAY = timedelta(days=1)
ALWAYS = Window("", None)
_days: dict[str, _Day] = {}


def window_of(per: str, zone: str, now_us: int) -> Window:
    """The day or month (`per`) of the IANA zone that contains `now_us`. `total` is one window without an end."""
    if per == "total":
        return ALWAYS
    cached = _days.get(zone)
    if cached is None or not cached.begins_at <= now_us < (cached.day.ends_at or 0):
        cached = _days[zone] = _day_of(_zone(zone), now_us)
    return cached.day if per == "day" else cached.month


def _day_of(zone: ZoneInfo, now_us: int) -> _Day:
    today = datetime.fromtimestamp(now_us // 1_000_000, zone).date()
    # When clocks are set back across midnight, the previous day appears again; the new day continues.
    if _midnight(today + _ONE_DAY, zone) <= now_us:
        today += _ONE_DAY
    next_month = (today.replace(day=1) + timedelta(days=31)).replace(day=1)
    return _Day(
        _midnight(today, zone),
        Window(today.isoformat(), _midnight(today + _ONE_DAY, zone)),
        Window(today.isoformat()[:7], _midnight(next_month, zone)),
    )


def _midnight(day: date, zone: ZoneInfo) -> int:
    """Midnight of a day: the first one if there are two; if there is none, the moment when the clocks are set forward."""
    return round(datetime.combine(day, time(), zone).timestamp()) * 1_000_000


@lru_cache(maxsize=600)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)
