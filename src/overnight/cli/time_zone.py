"""The time zone of displayed times. JSON is always UTC."""

import difflib
import zoneinfo
from datetime import UTC, tzinfo

from overnight.story import show_times_in

from .usage import WrongUsage


def use_zone(name: str | None, *, json: bool = False) -> None:
    """Display times in the named zone, else in the local zone; JSON in UTC. Raises WrongUsage."""

    zone = _zone(name) if name is not None else None
    show_times_in(UTC if json else zone)


def _zone(name: str) -> tzinfo:

    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise WrongUsage(f"--tz {name[:60]}: unknown time zone{_nearest(name)}") from None


def _nearest(name: str) -> str:

    known = zoneinfo.available_timezones()
    by_end = {zone.rpartition("/")[2].lower(): zone for zone in sorted(known)}
    wanted = name[:60].lower()
    found = difflib.get_close_matches(name[:60], known, 1)
    city = difflib.get_close_matches(wanted.rpartition("/")[2], by_end, 1, 0.8)
    near = found[0] if found else by_end[city[0]] if city else ""
    return f"; did you mean {near}?" if near else "; expected a name such as Europe/Berlin or UTC"
