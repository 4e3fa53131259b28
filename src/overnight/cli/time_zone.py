"""The time zone in which a terminal shows times. JSON is always UTC."""

from datetime import tzinfo
from typing import Annotated

import typer

from overnight.story import show_times_in

from .lookup import WrongUsage

Tz = Annotated[
    str | None,
    typer.Option(
        "--tz", metavar="ZONE", help="Show times in this zone, such as Europe/Berlin (default: the local zone)."
    ),
]


def use_zone(name: str | None, *, json: bool = False) -> None:
    """Show all times of this command in the zone of that name, else in the local one; JSON in UTC. Raises WrongUsage."""
    from datetime import UTC

    zone = _zone(name) if name is not None else None
    show_times_in(UTC if json else zone)


def _zone(name: str) -> tzinfo:
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise WrongUsage(f"--tz {name[:60]}: no such time zone{_nearest(name)}") from None


def _nearest(name: str) -> str:
    import difflib
    import zoneinfo

    known = zoneinfo.available_timezones()
    by_end = {zone.rpartition("/")[2].lower(): zone for zone in sorted(known)}
    wanted = name[:60].lower()
    found = difflib.get_close_matches(name[:60], known, 1)
    city = difflib.get_close_matches(wanted.rpartition("/")[2], by_end, 1, 0.8)
    near = found[0] if found else by_end[city[0]] if city else ""
    return f"; did you mean {near}?" if near else "; give a name such as Europe/Berlin or UTC"
