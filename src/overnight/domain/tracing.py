"""W3C trace context: a call continues the caller's trace as a span of its own."""

from typing import NamedTuple

_HEX = frozenset("0123456789abcdef")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_LENGTH = 55


class TraceParent(NamedTuple):
    """The caller's trace id, span id and flags, in lower-case hex."""

    trace_id: str
    span_id: str
    flags: str


def read_traceparent(value: str) -> TraceParent | None:
    """Parse a `traceparent` header. Returns None for an invalid one, as the standard requires."""
    parts = value[:_LENGTH].split("-")
    if len(value) < _LENGTH or len(parts) != 4 or [len(part) for part in parts] != [2, 32, 16, 2]:
        return None
    version, trace_id, span_id, flags = parts
    if not all(map(_HEX.issuperset, parts)) or version == "ff" or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    if len(value) > _LENGTH and (version == "00" or value[_LENGTH] != "-"):
        return None
    return TraceParent(trace_id, span_id, flags)


def span_of(call_id: str) -> str:
    """The span id of a call: the last 64 random bits of its id."""
    return call_id[-16:]


def traceparent_of(trace_id: str, call_id: str, flags: str | None = None) -> bytes:
    """The header for the provider: the caller's trace, with the call as the parent span."""
    return f"00-{trace_id}-{span_of(call_id)}-{flags or '01'}".encode()
