"""Errors of Overnight's own routes: RFC 9457, `application/problem+json`."""

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
from overnight.gateway import WANTS_KEY, Answer, BodyTooLarge, Overloaded, RateLimited, UnsupportedMediaType
from overnight.http_server import Headers

_STATUS: tuple[tuple[type[OvernightError], int, str], ...] = (
    (BodyTooLarge, 413, "the body is too large"),
    (UnsupportedMediaType, 415, "the body is not JSON"),
    (BadInput, 400, "the request cannot be taken as it is"),
    (Unauthenticated, 401, "nobody knows who asks"),
    (Forbidden, 403, "the key does not reach as far as this"),
    (NotFound, 404, "there is no such thing"),
    (Fenced, 409, "a newer attempt has begun"),
    (Conflict, 409, "the present state forbids it"),
    (RateLimited, 429, "too much at once"),
    (Overloaded, 503, "the gateway holds as much as it may"),
    (StoreUnavailable, 503, "the store cannot be reached"),
)


class MethodNotAllowed(OvernightError):
    """The path exists, the method does not. `allowed` are those that do."""

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"{method[:20]} is not possible here; use {allowed}")
        self.allowed = allowed


def problem(error: OvernightError) -> Answer:
    """The answer for an error raised on purpose."""
    if isinstance(error, MethodNotAllowed):
        return problem_of(405, "the method is not possible here", str(error), [(b"allow", error.allowed.encode())])
    found = ((status, title) for kind, status, title in _STATUS if isinstance(error, kind))
    status, title = next(found, (500, "an internal fault"))
    headers: Headers = [WANTS_KEY] if status == 401 else []
    if isinstance(error, RateLimited | Overloaded):
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    return problem_of(status, title, str(error), headers)


def problem_of(status: int, title: str, detail: str, more: Headers | None = None) -> Answer:
    body = msgspec.json.encode({"type": "about:blank", "title": title, "status": status, "detail": detail})
    return Answer(status, [(b"content-type", b"application/problem+json"), *(more or [])], body)
