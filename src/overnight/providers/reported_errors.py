"""Errors inside answers: a 2xx body, or an event of a stream, that is an error, and the usage that it reports. Pure."""

from __future__ import annotations

from typing import Any, cast

Json = dict[str, Any]
_ANSWER_FIELDS = frozenset({"choices", "type", "object", "usage", "candidates", "data"})


def is_error(decoded: object) -> bool:
    """Does a decoded 2xx body or stream event carry an error instead of an answer?"""
    if not isinstance(decoded, dict):
        return False
    body = cast("dict[str, object]", decoded)
    if body.get("error") or body.get("type") in ("error", "response.failed") or body.get("object") == "error":
        return True
    # Some servers send an error without a frame. Answers have one of these fields.
    if not _ANSWER_FIELDS.isdisjoint(body):
        return False
    return isinstance(body.get("detail"), str | list) or ("message" in body and "code" in body)


def usage_in(error: object) -> Json | None:
    """The usage that an error's body or event tells, as it stands there."""
    body = cast("Json", error) if isinstance(error, dict) else {}
    response = body.get("response")
    for place in (body, cast("Json", response) if isinstance(response, dict) else {}):
        if isinstance(usage := place.get("usage"), dict):
            return cast("Json", usage)
    return None
