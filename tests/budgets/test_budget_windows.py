"""Days and months in every time zone follow each other without a gap, also at clock changes."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine_parts import examples
from overnight.budgets import window_of

ZONES = sorted(available_timezones() - {"localtime", "posixrules", "Factory"})
moments = st.datetimes(datetime(1995, 1, 1), datetime(2037, 12, 31)).map(lambda at: at.replace(tzinfo=UTC))


def micro(at: datetime) -> int:
    return int(at.timestamp()) * 1_000_000


@examples(300, 5000)
@given(st.sampled_from(ZONES), moments, st.sampled_from(["day", "month"]))
def test_windows_are_contiguous(zone: str, at: datetime, per: str) -> None:
    now = micro(at)
    window = window_of(per, zone, now)
    assert window.ends_at is not None
    assert window.ends_at > now
    after = window_of(per, zone, window.ends_at)
    assert after.label > window.label
    assert (after.ends_at or 0) > window.ends_at
    # Asked at any moment in between it is the same window, whichever was asked for before.
    assert window_of(per, zone, window.ends_at - 1) == window
    assert window_of(per, zone, now) == window


@examples(300, 5000)
@given(st.sampled_from(ZONES), moments)
def test_day_is_the_local_date(zone: str, at: datetime) -> None:
    label = window_of("day", zone, micro(at)).label
    local = at.astimezone(ZoneInfo(zone)).date()
    # Clocks put back over midnight show the old date for an hour more; the new day goes on.
    assert label in {local.isoformat(), (local + timedelta(days=1)).isoformat()}
    if label != local.isoformat():
        assert (at - timedelta(hours=3)).astimezone(ZoneInfo(zone)).date() <= local


@pytest.mark.parametrize(
    ("zone", "at", "label", "hours"),
    [
        ("Europe/Berlin", "2026-03-29T12:00:00+02:00", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25T12:00:00+01:00", "2026-10-25", 25),
        ("Australia/Lord_Howe", "2026-04-05T12:00:00+10:30", "2026-04-05", 24.5),
        ("America/Sao_Paulo", "2018-11-04T12:00:00-02:00", "2018-11-04", 23),  # begins at 1:00
        (
            "America/St_Johns",
            "2010-11-06T23:01:30-03:30",
            "2010-11-07",
            25,
        ),  # one minute past midnight it was 23:01 again
        ("Pacific/Apia", "2011-12-31T12:00:00+14:00", "2011-12-31", 24),
    ],
)
def test_days_at_clock_changes_have_other_lengths(zone: str, at: str, label: str, hours: float) -> None:
    window = window_of("day", zone, micro(datetime.fromisoformat(at)))
    assert window.label == label
    before = micro(datetime.fromisoformat(at))
    while window_of("day", zone, before - 60_000_000).label == label:
        before -= 60_000_000
    assert round(((window.ends_at or 0) - before) / 3_600_000_000, 1) == hours


def test_skipped_calendar_day_is_skipped() -> None:
    zone = ZoneInfo("Pacific/Apia")
    window = window_of("day", "Pacific/Apia", micro(datetime(2011, 12, 29, 12, tzinfo=zone)))
    assert window.label == "2011-12-29"
    assert window_of("day", "Pacific/Apia", window.ends_at or 0).label == "2011-12-31"


def test_total_period_has_no_end() -> None:
    assert window_of("total", "Europe/Berlin", 0) == window_of("total", "Asia/Tokyo", 1 << 60)
    assert window_of("total", "UTC", 0).ends_at is None
