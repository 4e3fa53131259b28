"""What went wrong with a model call, and whether to ask the same target again, the next one, or nobody.

Pure: an upstream's answer or an ``UpstreamError`` in, a ``Failure`` out. What each class means stands in ``CLASSES``; what
providers call it, in ``error_words``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from math import isnan
from random import Random
from typing import Any, NamedTuple, cast

import msgspec

from overnight.domain import ErrorFacts, parse_whole
from overnight.domain.policies import ClassRetries, Retries
from overnight.outgoing import (
    BodyCut,
    MalformedResponse,
    NeverSent,
    NotHttp,
    PoolBusy,
    ResponseLost,
    ResponseTooLarge,
    Unreachable,
    UpstreamError,
    UpstreamTimeout,
)

from .error_patterns import (
    BY_CODE,
    BY_HUNDRED,
    BY_STATUS,
    INSIDE,
    NO_ROOM,
    TOO_LARGE_AT_ONCE,
    VAGUE,
    VAGUE_ABOUT_LENGTH,
    VAGUE_ABOUT_QUOTA,
    names_of_quotas,
    phrase_class,
)
from .error_words import ErrorClass
from .redaction import MAX_MESSAGE, scrubbed
from .reported_errors import is_error

Json = dict[str, Any]


class ErrorClassRule(NamedTuple):
    """``retryable``: the same target may answer later. ``fallback``: another may. ``may_have_cost``: it may be billed.
    ``of_target``: it says that the target does not work, whatever was asked, so it counts for its circuit."""

    retryable: bool
    fallback: bool
    may_have_cost: bool
    of_target: bool = True


CLASSES: Mapping[ErrorClass, ErrorClassRule] = {
    "rate_limited": ErrorClassRule(retryable=True, fallback=True, may_have_cost=False, of_target=False),
    # The account is empty: every repetition fails too, until a person pays.
    "quota": ErrorClassRule(retryable=False, fallback=True, may_have_cost=False),
    "overloaded": ErrorClassRule(retryable=True, fallback=True, may_have_cost=False),
    "server_error": ErrorClassRule(retryable=True, fallback=True, may_have_cost=False),
    "timeout": ErrorClassRule(retryable=True, fallback=True, may_have_cost=True),
    "connection": ErrorClassRule(retryable=True, fallback=True, may_have_cost=False),
    "lost": ErrorClassRule(retryable=True, fallback=True, may_have_cost=True),
    "cut": ErrorClassRule(retryable=True, fallback=True, may_have_cost=True),
    "malformed": ErrorClassRule(retryable=True, fallback=True, may_have_cost=True),
    "invalid_request": ErrorClassRule(retryable=False, fallback=False, may_have_cost=False, of_target=False),
    "auth": ErrorClassRule(retryable=False, fallback=True, may_have_cost=False),
    "not_found": ErrorClassRule(retryable=False, fallback=True, may_have_cost=False, of_target=False),
    # Shopping a refused request around is a decision for people, not a default.
    "content_filter": ErrorClassRule(retryable=False, fallback=False, may_have_cost=False, of_target=False),
    "context_length": ErrorClassRule(retryable=False, fallback=True, may_have_cost=False, of_target=False),
    # Ours: no target was asked, because the circuits of all are open.
    "circuit_open": ErrorClassRule(retryable=False, fallback=False, may_have_cost=False, of_target=False),
    # Ours: no connection was free, or no time was left, so the target was not asked.
    "gateway_busy": ErrorClassRule(retryable=False, fallback=True, may_have_cost=False, of_target=False),
}
# A server that says "retry" about these is not believed.
_FINAL = frozenset({"quota", "auth", "content_filter", "context_length"})

_BY_EXCEPTION: Mapping[type[UpstreamError], tuple[ErrorClass, str]] = {
    NeverSent: ("connection", "connect_failed"),
    PoolBusy: ("gateway_busy", "pool_busy"),
    ResponseLost: ("lost", "answer_lost"),
    BodyCut: ("cut", "body_cut"),
    ResponseTooLarge: ("malformed", "response_too_large"),
    NotHttp: ("malformed", "not_http"),
}
# Of these the same request would get the same again.
_DETERMINISTIC = (Unreachable, MalformedResponse, ResponseTooLarge)
EMPTY = frozenset({204, 205})
"""Statuses of answers without a body."""
OURS = frozenset({"pool_busy", "queue_timeout"})
"""Codes of tries that this process cut short: they say nothing about the target."""
_WANTS_TLS = (
    b"HTTP request was sent to HTTPS port",
    b"HTTP request to an HTTPS server",
    b"HTTP to an SSL-enabled server",
)

_CODE_NAMES = ("code", "type", "status", "reason", "error_code", "error_type", "__type")
_SHAPE, _MAX_READ = "the upstream's answer has an unknown shape", 1024 * 1024
_MAX_WAIT_MS = 400 * 24 * 3600 * 1000  # no limit lasts longer


class Failure(msgspec.Struct, frozen=True):
    """Why a call has no usable answer. ``code`` is the provider's word, else ours; ``message`` is bounded and scrubbed.

    ``retryable``: ask the same target again, no sooner than ``retry_after_ms``. ``fallback``: the next target may answer.
    ``status`` is the HTTP status, None without an answer. ``unbilled``: whatever its class says, the provider cannot have
    served the request. ``reported``: the provider's own error, inside a 2xx answer or a stream; nothing comes after it.
    """

    error_class: ErrorClass
    code: str
    message: str
    retryable: bool
    fallback: bool
    retry_after_ms: int | None = None
    status: int | None = None
    unbilled: bool = False
    reported: bool = False

    @property
    def error(self) -> ErrorFacts:
        """As the ledger keeps it."""
        return ErrorFacts(self.error_class, self.message, self.code, self.retryable)

    @property
    def may_have_cost(self) -> bool:
        """May the provider bill this? Then its reservation is not released."""
        answered = self.status is not None and 200 <= self.status < 300
        return not self.unbilled and (answered or CLASSES[self.error_class].may_have_cost)


def response_failure(status: int, headers: Mapping[bytes, bytes], body: bytes, now: float | None = None) -> Failure:
    """Of an answer that is no answer: not 2xx, or 2xx with a body that is no JSON, an error, or of an unknown shape.

    ``headers`` by lower-case name; ``now`` is Unix seconds, for a ``retry-after`` that is a date.
    """
    if (contentless := _contentless(status, headers, body)) is not None:
        return contentless
    try:
        decoded: object = msgspec.json.decode(body) if len(body) <= _MAX_READ else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if 200 <= status < 300:
            return _failure("malformed", "invalid_json", "the upstream's answer is not JSON", status, headers, now)
        decoded = None
    return error_failure(decoded, status, headers, now)


def error_failure(
    decoded: object, status: int = 200, headers: Mapping[bytes, bytes] | None = None, now: float | None = None
) -> Failure:
    """Of a decoded error: a body, or an event inside a stream (whose status is 200)."""
    headers = headers or {}
    told, reported = _told(decoded), False
    codes = told.codes
    if (named := headers.get(b"x-amzn-errortype")) is not None:
        codes.insert(0, named.decode("latin-1").partition(":")[0])
    if not 200 <= status < 300:
        error_class = _class(status, codes, told.message)
    elif is_error(decoded):
        # A status inside the body, as some routers send; else a code that speaks for itself.
        told_status = (parse_whole(code, 599) or 0 for code in codes)
        meant = next((number for number in told_status if number >= 400), None)
        error_class = _class(meant, codes, told.message) if meant else _coded(codes) or _inside(codes, told.message)
        reported = True
    else:
        return _failure("malformed", "unexpected_shape", _SHAPE, status, headers, now)
    code = next((code for code in codes if not code.isdecimal() or code in BY_CODE), "")
    failure = _failure(error_class, code, told.message, status, headers, now, told.wait_ms)
    # A refusal is not billed, unless it is of what the model wrote: that one was served.
    unbilled = 400 <= status < 500 and error_class != "malformed"
    return msgspec.structs.replace(failure, unbilled=unbilled, reported=reported) if unbilled or reported else failure


def _contentless(status: int, headers: Mapping[bytes, bytes], body: bytes) -> Failure | None:
    """Of an answer that holds none of a model, as its status or the first bytes of its body show. A retry would get the same."""
    error_class: ErrorClass = "malformed"
    if 300 <= status < 400:
        place = headers.get(b"location", b"").decode("latin-1").partition("?")[0]
        code, where = f"http_{status}", f" to {place}" if place else ""
        problem = f"the upstream redirects{where}; redirects are not followed: correct base_url"
    elif status in EMPTY:
        code, problem = f"http_{status}", f"the upstream answered {status}, without content"
    elif status == 400 and any(phrase in body[:4096] for phrase in _WANTS_TLS):
        error_class, code, problem = "connection", "wrong_scheme", "the upstream wants TLS: use https in base_url"
    elif 200 <= status < 300 and not body.strip():
        code, problem = "empty_body", "the upstream's answer is empty"
    elif 200 <= status < 300 and body[:64].lstrip()[:1] == b"<":
        code, problem = "invalid_json", "the upstream's answer is a page, not JSON; correct base_url"
    else:
        return None
    unbilled = code not in ("empty_body", "invalid_json")
    return Failure(
        error_class=error_class,
        code=code,
        message=scrubbed(problem),
        retryable=False,
        fallback=True,
        retry_after_ms=None,
        status=status,
        unbilled=unbilled,
    )


def exception_failure(error: UpstreamError) -> Failure:
    """The failure of a call whose response did not arrive completely."""
    error_class: ErrorClass
    if isinstance(error, UpstreamTimeout):
        # An incomplete request cannot be billed, so it is not classified as a timeout.
        classes: dict[str, ErrorClass] = {"queue": "gateway_busy", "connect": "connection"}
        error_class = classes.get(error.phase, "timeout" if error.sent else "connection")
        code = f"{error.phase}_timeout"
    elif isinstance(error, Unreachable):
        error_class, code = "connection", error.code
    else:
        error_class, code = _BY_EXCEPTION.get(type(error), ("malformed", "malformed_response"))
    rule = CLASSES[error_class]
    retryable = rule.retryable and not isinstance(error, _DETERMINISTIC)
    return Failure(error_class, code, scrubbed(str(error)), retryable, rule.fallback, unbilled=not error.sent)


def backoff_ms(attempt: int, policy: Retries | ClassRetries, retry_after_ms: int | None, rng: Random) -> int:
    """How long to wait after the failed ``attempt`` (from 1): exponential with full jitter, on top of what the server asked for.

    On top, so that callers refused at one moment do not come back at one moment. The result can pass the caller's deadline;
    then there is no further attempt at this target.
    """
    ceiling = min(policy.max_backoff_ms, policy.backoff_ms << min(attempt - 1, 30))
    wait = rng.randint(0, ceiling) if policy.jitter == "full" else ceiling
    return wait + (retry_after_ms or 0)


def _failure(
    error_class: ErrorClass,
    code: str,
    message: str,
    status: int,
    headers: Mapping[bytes, bytes],
    now: float | None,
    wait_ms: int | None = None,
) -> Failure:
    rule = CLASSES[error_class]
    retryable, said = rule.retryable, headers.get(b"x-should-retry", b"").lower()
    if said == b"false":
        retryable = False
    elif said == b"true" and error_class not in _FINAL:
        retryable = True
    code, message = scrubbed(code, 80) or f"http_{status}", scrubbed(message) or f"the upstream answered {status}"
    asked_ms = _retry_after_ms(headers, now)
    after_ms = wait_ms if asked_ms is None else asked_ms
    return Failure(error_class, code, message, retryable, rule.fallback, retry_after_ms=after_ms, status=status)


class _Told(NamedTuple):
    """The provider's codes, most telling first, its message, and the wait that its body asks for."""

    codes: list[str]
    message: str
    wait_ms: int | None


def _class(status: int, codes: list[str], message: str) -> ErrorClass:
    said = " ".join((message, *codes)).lower()
    if TOO_LARGE_AT_ONCE in said:
        return "context_length"
    coded, spoken = _coded(codes), phrase_class(said)
    by_status: ErrorClass = BY_STATUS.get(status) or BY_HUNDRED.get(status // 100, "malformed")
    if spoken == "quota" and (coded or by_status) in VAGUE_ABOUT_QUOTA:
        return "quota"
    if coded is not None:
        return coded
    if by_status == "rate_limited" and any(phrase in said for phrase in NO_ROOM):
        return "overloaded"
    if spoken is None or by_status not in (VAGUE_ABOUT_LENGTH if spoken == "context_length" else VAGUE):
        return by_status
    return spoken


def _inside(codes: list[str], message: str) -> ErrorClass:
    known = [code.lower() for code in codes if code.lower() in INSIDE]
    meant: ErrorClass = INSIDE[known[0]] if known else "malformed"
    return _class(400, codes, message) if meant == "invalid_request" else phrase_class(message.lower()) or meant


def _coded(codes: list[str]) -> ErrorClass | None:
    found: list[ErrorClass] = [BY_CODE[code] for code in map(str.lower, codes) if code in BY_CODE]
    # "rate_limit_error" with "enforced_spend_limit_reached" beside it is about money.
    return "quota" if "quota" in found else found[0] if found else None


def _told(decoded: object) -> _Told:
    codes: list[str] = []
    message, raw, wait_ms = "", "", None
    for part in _error_objects(decoded):
        if isinstance(part, str):
            message = message or part
            continue
        for name in _CODE_NAMES:
            value = part.get(name)
            if isinstance(value, (str, int)) and not isinstance(value, bool) and value not in ("", "error"):
                codes.append(str(value)[:200])
        if part.get("flagged_input"):
            codes.append("moderation_blocked")
        codes += names_of_quotas(part.get("violations"))
        wait_ms = wait_ms or _seconds_ms(part.get("retryDelay"))
        text = part.get("message") or part.get("detail")
        if isinstance(text, str):
            message = message or text[: 8 * MAX_MESSAGE]
        raw = told[: 8 * MAX_MESSAGE] if isinstance(told := part.get("raw"), str) else raw
    # A router's own sentence ("Provider returned error") says less than what it was told.
    return _Told(codes, f"{message}: {raw}" if message and raw else message or raw, wait_ms)


def _seconds_ms(text: object) -> int | None:
    """Of a duration such as "17s", in Google's errors."""
    if not isinstance(text, str) or not text.endswith("s") or len(text) > 20:
        return None
    try:
        return _bounded_ms(float(text[:-1]) * 1000)
    except ValueError:
        return None


def _error_objects(decoded: object) -> Iterator[Mapping[str, object] | str]:
    """Where providers put their errors: `error`, the first of `errors`, what stands inside of it, the body itself."""
    if isinstance(decoded, list) and decoded:
        decoded = cast("list[object]", decoded)[0]
    if not isinstance(decoded, dict):
        return
    body = cast("dict[str, object]", decoded)
    error = body.get("error")
    if not error and isinstance(errors := body.get("errors"), list) and errors:
        error = cast("list[object]", errors)[0]
    if not error and isinstance(response := body.get("response"), dict):
        error = cast("dict[str, object]", response).get("error")  # a stream event of a failed response
    if isinstance(error, dict):
        inner = cast("dict[str, object]", error)
        yield inner
        for name in ("innererror", "inner_error", "metadata", "details"):
            deeper = inner.get(name)
            parts = cast("list[object]", deeper)[:8] if isinstance(deeper, list) else [deeper]
            yield from (cast("dict[str, object]", part) for part in parts if isinstance(part, dict))
    elif isinstance(error, str):
        yield error
    yield body


def _retry_after_ms(headers: Mapping[bytes, bytes], now: float | None) -> int | None:
    """What the server asks to wait; None if it asks for nothing, or for what cannot be read."""
    for name, unit in ((b"retry-after-ms", 1), (b"retry-after", 1000)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            wait = float(text) * unit
        except ValueError:
            try:
                wait = (parsedate_to_datetime(text.decode("latin-1")).timestamp() - (now or time.time())) * 1000
            except (ValueError, OverflowError):
                continue
        if (bounded := _bounded_ms(wait)) is not None:
            return bounded
    return None


def _bounded_ms(wait: float) -> int | None:
    return None if isnan(wait) else int(min(max(wait, 0.0), _MAX_WAIT_MS))
