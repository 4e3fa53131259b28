"""Errors of `/api/v1/effects`: problem details (RFC 9457) with a `code`, and whether the same request may succeed later."""

from __future__ import annotations

from typing import Any

import msgspec

from overnight.domain import (
    BadInput,
    BudgetStopped,
    Conflict,
    Fenced,
    Forbidden,
    NotFound,
    OvernightError,
    StoreUnavailable,
    Unauthenticated,
)
from overnight.gateway import (
    BodyTooLarge,
    EffectRefused,
    HttpResponse,
    Overloaded,
    RateLimited,
    UnsupportedMediaType,
)

from .problems import MethodNotAllowed, problem

_STATUS = {
    "key_missing": 400,
    "key_invalid": 400,
    "arguments_invalid": 400,
    "budget": 402,
    "denied": 403,
    "key_reused": 422,
}
"""The status of each code; others are 409."""
_TITLES = {400: "Bad request", 402: "Payment required", 403: "Forbidden", 409: "Conflict", 422: "Unprocessable content"}
_CODES: tuple[tuple[type[OvernightError], str], ...] = (
    (BodyTooLarge, "body_too_large"),
    (UnsupportedMediaType, "unsupported_media_type"),
    (BadInput, "invalid_request"),
    (MethodNotAllowed, "method_not_allowed"),
    (Unauthenticated, "invalid_api_key"),
    (Forbidden, "scope"),
    (NotFound, "not_found"),
    (Fenced, "fenced"),
    (Conflict, "conflict"),
    (RateLimited, "rate_limited"),
    (Overloaded, "overloaded"),
    (StoreUnavailable, "store_unavailable"),
)
_RETRYABLE = frozenset({"in_progress", "rate_limited", "overloaded", "store_unavailable"})
_NO_RETRY, _RETRY = (b"x-should-retry", b"false"), (b"x-should-retry", b"true")


def effect_problem(error: OvernightError) -> HttpResponse:
    """The response for an error of these paths."""
    if isinstance(error, BudgetStopped):
        error = EffectRefused("budget", str(error))
    if isinstance(error, EffectRefused):
        status = _STATUS.get(error.code, 409)
        facts = {"effect_id": error.effect_id, "review_id": error.review_id, "next": error.next_step}
        body: dict[str, Any] = {"type": "about:blank", "title": _TITLES[status], "status": status, "detail": str(error)}
        body |= {"code": error.code, **{name: value for name, value in facts.items() if value is not None}}
        answer = HttpResponse(status, [(b"content-type", b"application/problem+json")], msgspec.json.encode(body))
        if error.retry_after_s is not None:
            answer.headers.append((b"retry-after", b"%d" % error.retry_after_s))
        code = error.code
    else:
        answer = problem(error)
        code = next((code for kind, code in _CODES if isinstance(error, kind)), "internal_error")
        answer.body = msgspec.json.encode({**msgspec.json.decode(answer.body), "code": code})
        if code == "store_unavailable":
            answer.headers.append((b"retry-after", b"1"))
    answer.headers.append(_RETRY if code in _RETRYABLE else _NO_RETRY)
    return answer
