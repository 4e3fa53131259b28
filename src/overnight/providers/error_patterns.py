"""The lookup of failure classes: by status, by code, by phrase. The words themselves are rows of `error_words.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from .error_words import WORDS, ErrorClass

BY_STATUS: Mapping[int, ErrorClass] = {
    401: "auth",
    402: "quota",
    403: "auth",
    404: "not_found",
    408: "timeout",
    410: "not_found",
    413: "context_length",
    424: "server_error",
    429: "rate_limited",
    451: "content_filter",
    498: "overloaded",
    503: "overloaded",
    504: "timeout",
    524: "timeout",
    529: "overloaded",
}
# Redirects are not followed, so an answer below 400 is malformed.
BY_HUNDRED: Mapping[int, ErrorClass] = {4: "invalid_request", 5: "server_error"}
# The providers' own codes say more than the HTTP status does, without those that say nothing (`api_error`).
BY_CODE: Mapping[str, ErrorClass] = {code: row.error_class for row in WORDS for code in row.codes.split()}
# They say nothing beside a status; where an error comes with a 200, or inside a stream, they are all there is.
INSIDE: Mapping[str, ErrorClass] = {
    "server_error": "server_error",
    "api_error": "server_error",
    "internal_error": "server_error",
    "internal_server_error": "server_error",
    "invalid_request_error": "invalid_request",
}
# For refusals that say in their message only what they are about.
VAGUE: frozenset[ErrorClass] = frozenset({"invalid_request", "auth"})
# Some servers report the length of a prompt as a failure of their own.
VAGUE_ABOUT_LENGTH: frozenset[ErrorClass] = frozenset({*VAGUE, "server_error"})
# An empty account, or a used up day, whatever status or code it comes with.
VAGUE_ABOUT_QUOTA: frozenset[ErrorClass] = frozenset({*VAGUE, "rate_limited"})
_PHRASES: tuple[tuple[tuple[str, ...], ErrorClass], ...] = tuple(
    (tuple(phrase.split("…")), row.error_class) for row in WORDS for phrase in row.phrases
)


def phrase_class(message: str) -> ErrorClass | None:
    """The class that a message in lower case names, or None."""
    for parts, error_class in _PHRASES:
        at = 0
        for part in parts:
            at = message.find(part, at)
            if at < 0:
                break
        else:
            return error_class
    return None


def names_of_quotas(violations: object) -> list[str]:
    """The quotas that a Google error names: they tell a minute from a day."""
    found = cast("list[object]", violations)[:8] if isinstance(violations, list) else []
    return [str(cast("dict[str, object]", each).get("quotaId") or "")[:200] for each in found if isinstance(each, dict)]


# Whatever else it says: this request is larger than what may be asked in a minute, so it never fits.
TOO_LARGE_AT_ONCE = "request too large for"
# A busy model is not a caller that asks too fast.
NO_ROOM = ("capacity exceeded", "no capacity available", "at capacity")
