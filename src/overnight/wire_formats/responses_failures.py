"""The end of a Responses stream that failed: `response.failed`, the only failure that clients such as Codex read. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import msgspec

from .contract import Json
from .responses_stream import encode

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_DATA = b"data: "
_UNNAMED: Json = {
    "id": "resp_failed", "object": "response", "created_at": 0, "model": "", "output": [], "tools": [], "error": None,
    "parallel_tool_calls": True, "tool_choice": "auto", "status": "in_progress",
}  # fmt: skip
"""A response that failed before it was announced."""


def failed_event(body: bytes, sent: Sequence[bytes] = (), reported: Json | None = None) -> bytes:
    """The last event of a failed stream, with the next sequence number. Before the first event, also `response.created`.

    Args:
        body: the error body.
        sent: the chunks that the client has received.
        reported: the provider's own `response.failed`, whose code, words and usage are passed on.
    """
    error: Json = _decode(body).get("error") or {}
    told = {"code": error.get("code") or "server_error", "message": error.get("message") or "the call failed"}
    last = next(
        (at for chunk in reversed(sent) for event in _events(chunk) if (at := _number(event)) is not None), None
    )
    created = next((found for chunk in sent for event in _events(chunk) if (found := _response(event))), None)
    events: list[Json] = []
    if created is None:
        created = dict(_UNNAMED)
        events.append({"type": "response.created", "sequence_number": 0, "response": created})
        last = 0
    failed: Json = {**created, "status": "failed", "error": told, **_passed_on(reported)}
    events.append({"type": "response.failed", "sequence_number": (last or 0) + 1, "response": failed})
    return b"".join(map(encode, events))


def error_event(body: bytes) -> bytes:
    return failed_event(body)


def _passed_on(reported: Json | None) -> Json:
    response: Any = (reported or {}).get("response")
    if not isinstance(response, dict):
        return {}
    found = cast("Json", response)
    return {name: found[name] for name in ("error", "usage") if found.get(name)}


def _events(chunk: bytes) -> Iterator[Json]:
    """The events in a chunk, the last one first."""
    for line in reversed(chunk.splitlines()):
        if line.startswith(_DATA):
            try:
                event: Any = _decode(line[len(_DATA) :])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if isinstance(event, dict):
                yield cast("Json", event)


def _number(event: Json) -> int | None:
    number: Any = event.get("sequence_number")
    return number if isinstance(number, int) else None


def _response(event: Json) -> Json | None:
    found: Any = event.get("response")
    return cast("Json", found) if isinstance(found, dict) else None
