"""Whose request this is, from its headers."""

from __future__ import annotations

from typing import Any

from overnight.domain import Attribution, BadInput, check_identifier
from overnight.gateway import MOST_ATTEMPTS, named_job

from .http import Headers, text_of

_TEXTS = {
    b"x-agent-name": "agent_id",
    b"x-tenant-id": "tenant_id",
    b"x-session-id": "session_id",
    b"x-task": "task_id",
    b"x-step": "step",
    b"x-workflow": "workflow",
}
_HEX = frozenset("0123456789abcdef")


def attribution(headers: Headers) -> Attribution:
    """Raises BadInput, naming the header. A `traceparent` that is not one is passed over, as its standard asks."""
    found: dict[str, Any] = {}
    for name, value in headers:
        field = _TEXTS.get(name)
        if field is not None:
            place = name.decode()
            found[field] = check_identifier(text_of(value, place), place)
        elif name == b"x-job-id":
            found["job_id"], found["external_id"] = named_job(text_of(value, "x-job-id"), "x-job-id")
        elif name == b"x-job-attempt":
            found["attempt"] = _attempt(value)
        elif name == b"traceparent":
            found["trace_id"], found["span_id"] = _trace(value)
    return Attribution(**found)


def tenant_of(headers: Headers) -> str:
    """The tenant alone. Raises BadInput."""
    for name, value in headers:
        if name == b"x-tenant-id":
            return check_identifier(text_of(value, "x-tenant-id"), "x-tenant-id")
    return "default"


def _attempt(value: bytes) -> int:
    if value.isdigit() and len(value) <= 7 and 1 <= int(value) <= MOST_ATTEMPTS:
        return int(value)
    raise BadInput(f"x-job-attempt: must be a whole number from 1 to {MOST_ATTEMPTS}; 1 is the first attempt of a job")


def _trace(value: bytes) -> tuple[str | None, str | None]:
    parts = value.decode("latin-1").split("-")
    if len(parts) >= 4 and len(parts[1]) == 32 and len(parts[2]) == 16 and _HEX.issuperset(parts[1] + parts[2]):
        return parts[1], parts[2]
    return None, None
