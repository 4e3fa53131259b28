"""Attribution of requests from headers: Overnight's, W3C baggage and trace context, and those of other products."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from overnight.domain import (
    ALL_JOBS,
    Attribution,
    BadInput,
    Forbidden,
    KeyScope,
    check_identifier,
    parse_whole,
    read_traceparent,
)
from overnight.gateway import MAX_ATTEMPTS, parse_job_name, parse_tags
from overnight.http_server import Headers
from overnight.keys import VirtualKey

from .requests import text_of

MAX_BAGGAGE = 64
MAX_VALUE = 200
OWN, BAGGAGE, OTHERS, SPECIAL = 0, 1, 2, 9


class _Place(NamedTuple):
    """The field that a header sets; the lower rank wins. SPECIAL ones have their own parser."""

    field: str
    rank: int


_PLACES: dict[bytes, _Place] = {
    b"x-job-id": _Place("job", OWN),
    b"x-parent-job-id": _Place("parent", OWN),
    b"x-agent-name": _Place("agent_id", OWN),
    b"x-tenant-id": _Place("tenant_id", OWN),
    b"x-session-id": _Place("session_id", OWN),
    b"x-task": _Place("task_id", OWN),
    b"x-step": _Place("step", OWN),
    b"x-workflow": _Place("workflow", OWN),
    b"x-record": _Place("about", OWN),
    b"x-litellm-trace-id": _Place("job", OTHERS),
    b"x-portkey-trace-id": _Place("job", OTHERS + 1),
    b"x-litellm-session-id": _Place("session_id", OTHERS),
    b"helicone-session-id": _Place("session_id", OTHERS + 1),
    b"x-claude-code-session-id": _Place("session_id", OTHERS + 2),
    # Codex; its earlier versions wrote underscores. The session holds the threads of its agents.
    b"session-id": _Place("session_id", OTHERS + 3),
    b"session_id": _Place("session_id", OTHERS + 3),
    b"thread-id": _Place("session_id", OTHERS + 4),
    b"conversation_id": _Place("session_id", OTHERS + 4),
    b"x-job-attempt": _Place("attempt", SPECIAL),
    b"x-tags": _Place("tags", SPECIAL),
    b"traceparent": _Place("trace", SPECIAL),
    b"baggage": _Place("baggage", SPECIAL),
}
_BAGGAGE_FIELDS = {
    "job": "job",
    "job_id": "job",
    "agent": "agent_id",
    "session": "session_id",
    "session.id": "session_id",
    "gen_ai.agent.name": "agent_id",
    "gen_ai.conversation.id": "session_id",
}


def attribution(headers: Headers, key: VirtualKey | None = None) -> Attribution:
    """The attribution of a request, within the bindings of its key.

    Raises BadInput, naming the header, and Forbidden if a header contradicts the key. Invalid values of shared headers
    (`traceparent`, `baggage`, headers of other products) are ignored.
    """
    found: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    for name, value in headers:
        place = _PLACES.get(name)
        if place is None:
            continue
        field, rank = place
        if rank == OWN:
            label = name.decode()
            found[field], ranks[field] = check_identifier(text_of(value, label), label), OWN
        elif rank == SPECIAL:
            _read_special(field, value, found, ranks)
        else:
            _take(field, rank, value.decode("latin-1"), found, ranks)
    if "job" in found:
        found["job_id"], found["external_id"] = parse_job_name(found.pop("job"), "x-job-id")
    if key is not None:
        _bind(key, found, ranks)
    return Attribution(**found)


def with_headers(who: Attribution, headers: Headers, names: Set[str]) -> Attribution:
    """Add the headers that routing rules use, truncated to the maximum length of a rule's value. Where rules match headers of
    identity, the identity of the key holds, also for a call that omits the header."""
    texts = ((name.decode("latin-1"), value.decode("latin-1")[:MAX_VALUE]) for name, value in headers)
    found = {name: text for name, text in texts if name in names}
    identity = {"x-agent-name": who.agent_id, "x-workflow": who.workflow, "x-tenant-id": who.tenant_id}
    found |= {name: text for name, text in identity.items() if text is not None and name in names}
    return msgspec.structs.replace(who, headers=found)


def tenant_of(headers: Headers, key: VirtualKey | None = None) -> str:
    """The tenant of a request. Raises BadInput, Forbidden."""
    return attribution([each for each in headers if each[0] == b"x-tenant-id"], key).tenant_id


def key_scope_of(key: VirtualKey | None) -> KeyScope:
    """The jobs within the tenant that a key can access."""
    return key.key_scope if key is not None else ALL_JOBS


def _take(field: str, rank: int, value: str, found: dict[str, Any], ranks: dict[str, int]) -> None:
    """Set a field from a header of lower rank, unless a better one is set or the value is no valid identifier."""
    if ranks.get(field, SPECIAL) > rank:
        try:
            found[field] = check_identifier(value, field)
        except BadInput:
            return
        ranks[field] = rank


def _read_special(field: str, value: bytes, found: dict[str, Any], ranks: dict[str, int]) -> None:
    if field == "attempt":
        found["attempt"] = _attempt(value)
    elif field == "tags":
        found["tags"] = parse_tags(text_of(value, "x-tags"), "x-tags")
    elif field == "trace":
        trace = read_traceparent(value.decode("latin-1").strip())
        if trace is not None:
            found["trace_id"], found["span_id"], found["trace_flags"] = trace
    else:
        for member in value.decode("latin-1").split(",", MAX_BAGGAGE)[:MAX_BAGGAGE]:
            name, _, rest = member.partition("=")
            known = _BAGGAGE_FIELDS.get(name.strip())
            if known is not None:
                _take(known, BAGGAGE, unquote(rest.partition(";")[0].strip()), found, ranks)


def _attempt(value: bytes) -> int:
    number = parse_whole(value, MAX_ATTEMPTS)
    if number:
        return number
    raise BadInput(f"x-job-attempt: expected a whole number from 1 to {MAX_ATTEMPTS}; 1 is the first attempt of a job")


def _bind(key: VirtualKey, found: dict[str, Any], ranks: dict[str, int]) -> None:
    """Apply the bindings of the key; an x- header may only repeat them. Raises Forbidden."""
    bound = (
        ("tenant_id", "x-tenant-id", key.tenant_id),
        ("agent_id", "x-agent-name", key.agent_id),
        ("workflow", "x-workflow", key.workflow),
    )
    for field, header, mine in bound:
        if mine is None:
            continue
        if ranks.get(field) == OWN and found[field] != mine:
            raise Forbidden(f"{header}: the key {key.name} is bound to {mine}; send that value or omit the header")
        found[field] = mine
    found["actor"], found["key_id"] = key.name, key.key_id
    found["models"], found["routes"], found["key_scope"] = key.models, key.routes, key.key_scope
    found["operates"] = "jobs.operate" in key.scopes
