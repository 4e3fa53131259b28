"""Errors of the routes below `/api/v1`: RFC 9457, `application/problem+json`."""

from __future__ import annotations

import msgspec

from overnight.domain import (
    BadInput,
    Conflict,
    Fenced,
    Forbidden,
    NotFound,
    OvernightError,
    StoreUnavailable,
    Unauthenticated,
)
from overnight.gateway import (
    ACCEPT_ENCODING,
    BEARER_CHALLENGE,
    BodyTooLarge,
    HttpResponse,
    Overloaded,
    RateLimited,
    UnsupportedEncoding,
    UnsupportedMediaType,
)
from overnight.http_server import Headers

_STATUS: tuple[tuple[type[OvernightError], int, str], ...] = (
    (BodyTooLarge, 413, "Payload too large"),
    (UnsupportedMediaType, 415, "Unsupported media type"),
    (BadInput, 400, "Bad request"),
    (Unauthenticated, 401, "Unauthorized"),
    (Forbidden, 403, "Forbidden"),
    (NotFound, 404, "Not found"),
    (Fenced, 409, "Conflict"),
    (Conflict, 409, "Conflict"),
    (RateLimited, 429, "Too many requests"),
    (Overloaded, 503, "Service unavailable"),
    (StoreUnavailable, 503, "Service unavailable"),
)


class MethodNotAllowed(OvernightError):
    """The path does not support the method. `allowed` are the methods that it supports."""

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"method {method[:20]} is not allowed; use {allowed}")
        self.allowed = allowed


def problem(error: OvernightError) -> HttpResponse:
    """The response for an error of Overnight."""
    if isinstance(error, MethodNotAllowed):
        return problem_of(405, "Method not allowed", str(error), [(b"allow", error.allowed.encode())])
    found = ((status, title) for kind, status, title in _STATUS if isinstance(error, kind))
    status, title = next(found, (500, "Internal server error"))
    headers: Headers = [BEARER_CHALLENGE] if status == 401 else []
    if isinstance(error, RateLimited | Overloaded):
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if isinstance(error, UnsupportedEncoding):
        headers.append(ACCEPT_ENCODING)
    return problem_of(status, title, str(error), headers)


def problem_of(status: int, title: str, detail: str, more: Headers | None = None) -> HttpResponse:
    body = msgspec.json.encode({"type": "about:blank", "title": title, "status": status, "detail": detail})
    return HttpResponse(status, [(b"content-type", b"application/problem+json"), *(more or [])], body)
