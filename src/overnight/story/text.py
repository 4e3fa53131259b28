"""Texts for durations, times, names and content."""

from contextvars import ContextVar
from datetime import UTC, datetime, tzinfo
from typing import Any

import msgspec

from overnight.domain import usd_text
from overnight.domain.json_text import decode_for_display

MAX_CHARACTERS = 300
SECOND = 1_000_000


def clean(text: object, most: int = MAX_CHARACTERS) -> str:
    """Untrusted text for a terminal: one line, bounded, without control characters."""
    shown = " ".join(str(text)[: most * 2].split())
    shown = shown if shown.isprintable() else "".join(each if each.isprintable() else "�" for each in shown)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def span_text(span_us: float) -> str:
    """A duration in microseconds as text: `812 ms`, `3.2 s`, `4 min 12 s`, `3 h 5 min`, `2 d 4 h`."""
    seconds = span_us / SECOND
    if 0 < seconds < 0.0005:
        return "<1 ms"
    if seconds < 0.9995:
        return f"{span_us / 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {unit} {rest} {small_unit}" if rest else f"{whole // size} {unit}"
    raise AssertionError("unreachable: a minute is the smallest size")


_zone: ContextVar[tzinfo | None] = ContextVar("zone", default=UTC)


def show_times_in(zone: tzinfo | None) -> None:
    """Display times in `zone` in this context; None is the local zone. The default is UTC."""
    _zone.set(zone)


def local_time(at_us: int) -> datetime:
    """The time in the display zone."""
    moment, zone = datetime.fromtimestamp(at_us / SECOND, UTC), _zone.get()
    return moment if zone is UTC else moment.astimezone(zone)


def clock_text(at_us: int) -> str:
    """The time of day without its zone."""
    return local_time(at_us).strftime("%H:%M:%S")


def moment_text(at_us: int) -> str:
    """The date, time and zone."""
    return local_time(at_us).strftime("%Y-%m-%d %H:%M:%S %Z")


def until_text(due_us: int, from_us: int) -> str:
    """A time and its zone, with the date if it differs from that of `from_us`."""
    due = local_time(due_us)
    same_day = due.date() == local_time(from_us).date()
    return due.strftime("%H:%M:%S %Z") if same_day else moment_text(due_us)


def actor_text(actor: str | None) -> str:
    """A worker by the end of its id; any other actor by name."""
    if not actor:
        return "unknown"
    if actor.startswith("worker_") and len(actor) > 20:
        return f"worker …{actor[-6:]}"
    return clean(actor, 60)


def content_text(content: bytes | list[bytes] | None, most: int = MAX_CHARACTERS) -> str:
    """Recorded JSON, shortened; a string is shown without quotes."""
    if content is None:
        return ""
    if isinstance(content, list):
        return clean(" ⏎ ".join(content_text(each, most) for each in content), most)
    try:
        value: Any = decode_for_display(content)
    except (msgspec.DecodeError, RecursionError):
        return clean(content.decode("utf-8", "replace"), most)
    return clean(value if isinstance(value, str) else content.decode("utf-8", "replace"), most)


def trace_text(content: bytes | None, most: int = 6) -> str:
    """A recorded traceback on one line: the innermost frame first, then its callers."""
    try:
        errors: Any = msgspec.json.decode(content or b"[]")
        places = [
            f"{frame['file']}:{frame['line']} in {frame['function']}"
            for error in reversed(errors)
            for frame in reversed(error["frames"])
        ]
    except (msgspec.DecodeError, TypeError, KeyError):
        return ""  # earlier versions wrote other content, or none
    shown = list(dict.fromkeys(places))
    return clean(" ← ".join(shown[:most]) + (" ← …" if len(shown) > most else ""), 2000)


def cost_text(cost_microusd: int) -> str:
    """A cost as text; a cost that is too small to display is shown as less than $0.0001."""
    return "<$0.0001" if 0 < cost_microusd < 50 else usd_text(cost_microusd)


def count_text(count: int, what: str, many: str = "") -> str:
    """`1 step`, `2 steps`."""
    return f"{count} {what if count == 1 else many or what + 's'}"
