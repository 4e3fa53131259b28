"""Error responses in the client's wire format."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping

import msgspec

from overnight.domain import (
    BadInput,
    BudgetStopped,
    Conflict,
    Fenced,
    Forbidden,
    LoopStopped,
    NotFound,
    OvernightError,
    StoreUnavailable,
    Unauthenticated,
)
from overnight.outgoing import ACCEPTED
from overnight.providers.error_classes import ErrorClass, Failure
from overnight.providers.targets import NoCompaction, Unavailable, UnknownModelName
from overnight.wire_formats import CHAT, Codec
from overnight.wire_formats.request import InvalidBody

Headers = list[tuple[bytes, bytes]]
NO_RETRY = (b"x-should-retry", b"false")
JSON = (b"content-type", b"application/json")
ACCEPT_ENCODING = (b"accept-encoding", ACCEPTED.encode())
BEARER_CHALLENGE = (b"www-authenticate", b'Bearer realm="overnight"')


class HttpResponse(msgspec.Struct):
    """An HTTP response: its `body`, or the `pieces` of a stream. Header names are lower case."""

    status: int
    headers: Headers
    body: bytes = b""
    pieces: AsyncIterable[bytes] | None = None


class ClientDisconnected(OvernightError):
    """The client closed its connection while its call was queued. Nothing was sent to a provider."""


class UnknownRequestedModel(BadInput):
    """The requested model is not in routing.yaml."""


class BodyTooLarge(BadInput):
    """The body is over `limits.max_body_bytes`."""


class UnsupportedMediaType(BadInput):
    """The content type is not JSON."""


class UnsupportedEncoding(UnsupportedMediaType):
    """The content encoding of a body is unknown."""


class UnknownPath(NotFound):
    """The path does not exist."""


class UnknownResponse(NotFound):
    """No response of that id is stored for this tenant; `param` names the parameter that held the id."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class UnknownPreviousResponse(UnknownResponse):
    """The response named by `previous_response_id` is not stored for this tenant."""


class QueueTimeout(OvernightError):
    """The queue time ended while outstanding calls held the budget. Retry after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(OvernightError):
    """The call exceeds a rate limit, and its queue time is too short to wait. Retry after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(OvernightError):
    """The gateway is at its memory limit for request bodies. Retry after `retry_after_s` seconds."""

    retry_after_s = 1


def error_body(form: Codec, status: int, message: str, kind: str, code: str | None, param: str | None = None) -> bytes:
    """The body of an error in the client's format. `kind` is OpenAI's error type; other formats derive theirs from the status."""
    return form.error_body(message, kind, code, param, status)


_SHAPES: tuple[tuple[type[OvernightError], int, str, str | None], ...] = (
    (UnknownRequestedModel, 404, "invalid_request_error", "model_not_found"),
    (NoCompaction, 400, "invalid_request_error", "compaction_not_supported"),
    (UnknownModelName, 404, "invalid_request_error", "model_not_found"),
    (BodyTooLarge, 413, "invalid_request_error", "body_too_large"),
    (UnsupportedMediaType, 415, "invalid_request_error", "unsupported_media_type"),
    (BadInput, 400, "invalid_request_error", None),
    (Unauthenticated, 401, "authentication_error", "invalid_api_key"),
    (Forbidden, 403, "permission_error", "not_allowed"),
    (UnknownPreviousResponse, 404, "invalid_request_error", "previous_response_not_found"),
    (UnknownResponse, 404, "invalid_request_error", "response_not_found"),
    (UnknownPath, 404, "invalid_request_error", "not_found"),
    (NotFound, 404, "invalid_request_error", "job_not_found"),
    (Fenced, 409, "invalid_request_error", "attempt_is_over"),
    (Conflict, 409, "invalid_request_error", "conflict"),
    (BudgetStopped, 402, "budget_exceeded", "budget_exceeded"),
    (LoopStopped, 409, "invalid_request_error", "loop_stopped"),
    (RateLimited, 429, "rate_limit_error", "rate_limit_exceeded"),
    (Overloaded, 503, "server_error", "overloaded"),
    (QueueTimeout, 503, "server_error", "budget_busy"),
    (Unavailable, 503, "server_error", "no_target"),
    (StoreUnavailable, 503, "server_error", "store_unavailable"),
    (ClientDisconnected, 408, "invalid_request_error", "client_left"),
)
_RETRYABLE = frozenset({"budget_busy", "overloaded", "rate_limit_exceeded", "store_unavailable"})


def message_with_title(error: OvernightError) -> str:
    """The message with its title, such as "Not found: …"."""
    return f"{error.title}: {error}" if error.title else str(error)


def error_response(error: OvernightError, form: Codec = CHAT) -> HttpResponse:
    """The response for an expected error. A header tells SDKs not to retry a request that would fail again."""
    shapes = (shape[1:] for shape in _SHAPES if isinstance(error, shape[0]))
    status, name, code = next(shapes, (500, "server_error", "internal_error"))
    named = isinstance(error, InvalidBody | UnknownResponse)
    param = error.param if named else "model" if isinstance(error, UnknownRequestedModel | UnknownModelName) else None
    headers: Headers = [JSON] if code in _RETRYABLE else [JSON, NO_RETRY]
    if isinstance(error, RateLimited | QueueTimeout | Overloaded):
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    elif code == "store_unavailable":
        headers.append((b"retry-after", b"1"))
    if status == 401:
        headers.append(BEARER_CHALLENGE)
    if isinstance(error, UnsupportedEncoding):
        headers.append(ACCEPT_ENCODING)
    return HttpResponse(status, headers, error_body(form, status, message_with_title(error), name, code, param))


def internal_error_response(form: Codec = CHAT) -> HttpResponse:
    """The response for an internal error. It has no details, since they may contain data of other tenants."""
    message = "Internal server error. See the log of the gateway"
    return HttpResponse(500, [JSON], error_body(form, 500, message, "server_error", "internal_error"))


_STATUS: Mapping[ErrorClass, int] = {
    "rate_limited": 429,
    "quota": 429,
    "overloaded": 503,
    "server_error": 502,
    "timeout": 504,
    "connection": 502,
    "lost": 502,
    "cut": 502,
    "malformed": 502,
    "invalid_request": 400,
    "auth": 502,
    "not_found": 404,
    "content_filter": 400,
    "context_length": 400,
    "circuit_open": 503,
    "gateway_busy": 503,
}
_NOT_SENT = frozenset({"circuit_open", "gateway_busy"})
"""Failures that clients may retry: no request was sent to a provider."""
_KINDS: Mapping[ErrorClass, str] = {"rate_limited": "rate_limit_error", "quota": "insufficient_quota"}
"""OpenAI's types of errors; others follow from the status."""
_TOO_LONG = "prompt is too long"
"""The words by which Anthropic's clients recognise a prompt that does not fit."""
_PROVIDER_MESSAGES = frozenset({"invalid_request", "content_filter", "context_length"})


def call_failure_response(
    failure: Failure, where: str, tries: int, body: bytes, form: Codec = CHAT, *, same_format: bool = True
) -> HttpResponse:
    """The response for the last failure of a call.

    A provider's error about the request itself is passed on.

    Args:
        where: the provider and the model.
        tries: how many attempts were made.
        body: the body of the provider's error.
        form: the client's format.
        same_format: whether the provider uses the client's format; its `body` is then passed on unchanged.
    """
    status = _STATUS[failure.error_class]
    is_about_request = failure.error_class in _PROVIDER_MESSAGES and failure.status and 400 <= failure.status < 500
    if is_about_request and failure.status and (not same_format or body[:1] == b"{"):
        message = failure.message
        if failure.error_class == "context_length" and form.name == "messages" and _TOO_LONG not in message.lower():
            message = f"{_TOO_LONG}: {message}"
        translated = error_body(form, failure.status, message, "invalid_request_error", _client_code(failure))
        return HttpResponse(failure.status, [JSON, NO_RETRY], body if same_format else translated)
    again = f" (tried {tries} times)" if tries > 1 else ""
    kind = _KINDS.get(failure.error_class) or ("invalid_request_error" if status < 429 else "server_error")
    headers: Headers = [JSON] if failure.error_class in _NOT_SENT else [JSON, NO_RETRY]
    if failure.retry_after_ms is not None:
        headers.append((b"retry-after", b"%d" % -(-failure.retry_after_ms // 1000)))
    message = f"{where}: {failure.error_class}: {failure.message}{again}" if tries else failure.message
    return HttpResponse(status, headers, error_body(form, status, message, kind, _client_code(failure)))


def _client_code(failure: Failure) -> str:
    """The code for a client of another format than the provider's. Clients compact their conversation after this one."""
    return "context_length_exceeded" if failure.error_class == "context_length" else failure.code
