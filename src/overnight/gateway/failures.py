"""What went wrong with a model call, and whether to ask the same target again, the next one, or nobody.

Pure: an upstream's answer or an ``UpstreamError`` in, a ``Failure`` out. What each class means stands in ``CLASSES``; what
providers call it, in the tables below it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from math import isnan
from random import Random
from typing import Literal, NamedTuple, Protocol, cast

import msgspec

from overnight.domain import ErrorFacts

from .upstream import (
    AnswerLost,
    BodyCut,
    NeverSent,
    ResponseTooLarge,
    UpstreamError,
    UpstreamTimeout,
)

ErrorClass = Literal[
    "rate_limited", "quota", "overloaded", "server_error", "timeout", "connection", "lost", "cut", "malformed",
    "invalid_request", "auth", "not_found", "content_filter", "context_length",
]  # fmt: skip


class Rule(NamedTuple):
    """``retryable``: the same target may answer later. ``fallback``: another may. ``may_have_cost``: it may be billed."""

    retryable: bool
    fallback: bool
    may_have_cost: bool


CLASSES: Mapping[ErrorClass, Rule] = {
    "rate_limited": Rule(retryable=True, fallback=True, may_have_cost=False),
    # The account is empty: every repetition fails too, until a person pays.
    "quota": Rule(retryable=False, fallback=True, may_have_cost=False),
    "overloaded": Rule(retryable=True, fallback=True, may_have_cost=False),
    "server_error": Rule(retryable=True, fallback=True, may_have_cost=False),
    "timeout": Rule(retryable=True, fallback=True, may_have_cost=True),
    "connection": Rule(retryable=True, fallback=True, may_have_cost=False),
    "lost": Rule(retryable=True, fallback=True, may_have_cost=True),
    "cut": Rule(retryable=True, fallback=True, may_have_cost=True),
    "malformed": Rule(retryable=True, fallback=True, may_have_cost=True),
    "invalid_request": Rule(retryable=False, fallback=False, may_have_cost=False),
    "auth": Rule(retryable=False, fallback=True, may_have_cost=False),
    "not_found": Rule(retryable=False, fallback=True, may_have_cost=False),
    # Shopping a refused request around is a decision for people, not a default.
    "content_filter": Rule(retryable=False, fallback=False, may_have_cost=False),
    "context_length": Rule(retryable=False, fallback=True, may_have_cost=False),
}
# A server that says "retry" about these is not believed.
_FINAL = frozenset({"quota", "auth", "content_filter", "context_length"})

_BY_STATUS: Mapping[int, ErrorClass] = {
    401: "auth",
    402: "quota",
    403: "auth",
    404: "not_found",
    408: "timeout",
    413: "context_length",
    429: "rate_limited",
    451: "content_filter",
    503: "overloaded",
    504: "timeout",
    524: "timeout",
    529: "overloaded",
}
# Redirects are not followed, so an answer below 400 is malformed.
_BY_HUNDRED: Mapping[int, ErrorClass] = {4: "invalid_request", 5: "server_error"}
# The providers' own codes, types and statuses, in lower case. They say more than the HTTP status does.
_BY_CODE: Mapping[str, ErrorClass] = {
    "insufficient_quota": "quota",
    "insufficient_balance": "quota",
    "insufficient_credits": "quota",
    "billing_error": "quota",
    "billing_hard_limit_reached": "quota",
    "billing_not_active": "quota",
    "quota_exceeded": "quota",
    "rate_limit_exceeded": "rate_limited",
    "rate_limit_error": "rate_limited",
    "too_many_requests": "rate_limited",
    "overloaded_error": "overloaded",
    "server_overloaded": "overloaded",
    "engine_overloaded": "overloaded",
    "timeout_error": "timeout",
    "deadline_exceeded": "timeout",
    "invalid_api_key": "auth",
    "authentication_error": "auth",
    "permission_error": "auth",
    "account_deactivated": "auth",
    "api_key_invalid": "auth",
    "model_not_found": "not_found",
    "deploymentnotfound": "not_found",
    "not_found_error": "not_found",
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "moderation_blocked": "content_filter",
    "responsibleaipolicyviolation": "content_filter",
    "context_length_exceeded": "context_length",
    "request_too_large": "context_length",
}
# For refusals that say in their message only what they are about.
_VAGUE: frozenset[ErrorClass] = frozenset({"invalid_request", "auth"})
_BY_PHRASE: tuple[tuple[str, ErrorClass], ...] = (
    ("credit balance is too low", "quota"),
    ("used all available credits", "quota"),
    ("insufficient credits", "quota"),
    ("api key not valid", "auth"),
    ("incorrect api key", "auth"),
    ("prompt is too long", "context_length"),
    ("input is too long", "context_length"),
    ("maximum context length", "context_length"),
    ("maximum prompt length", "context_length"),
    ("exceeds the maximum number of tokens", "context_length"),
    ("exceed context limit", "context_length"),
    ("content filtering policy", "content_filter"),
)

_BY_EXCEPTION: Mapping[type[UpstreamError], tuple[ErrorClass, str]] = {
    NeverSent: ("connection", "connect_failed"),
    AnswerLost: ("lost", "answer_lost"),
    BodyCut: ("cut", "body_cut"),
    ResponseTooLarge: ("malformed", "response_too_large"),
}

_MAX_MESSAGE = 500
_MAX_READ = 1024 * 1024
_MAX_RETRY_AFTER_MS = 24 * 3600 * 1000
_SECRET = re.compile(
    r"""\b(?:api[\s_-]?key|authorization|password|secret|access[\s_-]?token)\b
      (?:\s+(?:provided|is))?["']?\s*[:=]\s*["']?(?:(?:bearer|basic)\s+)?[^\s"',;&}]{4,}
    | \b(?:bearer|basic)\s+[^\s"',;]{8,}
    | [?&](?:key|api[_-]?key|token|access_token|sig|signature)=[^\s"'&]+
    | \b(?:(?:sk|rk|pk|csk|xai|pplx|nvapi)-|(?:sk|rk|pk|gsk|ghp|gho|hf|r8|tgp|fw)_)[\w*.-]{6,}
    | \bAIza[\w*-]{10,} | \bAKIA\w{12,} | \beyJ[\w-]{8,}(?:\.[\w-]*){1,2}
    | \b[\w-]{40,}""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)


class Failure(msgspec.Struct, frozen=True):
    """Why a call has no usable answer. ``code`` is the provider's word, else ours; ``message`` is bounded and scrubbed.

    ``retryable``: ask the same target again, no sooner than ``retry_after_ms``. ``fallback``: the next target may answer.
    ``status`` is the HTTP status, None without an answer.
    """

    error_class: ErrorClass
    code: str
    message: str
    retryable: bool
    fallback: bool
    retry_after_ms: int | None = None
    status: int | None = None

    @property
    def error(self) -> ErrorFacts:
        """As the ledger keeps it."""
        return ErrorFacts(self.error_class, self.message, self.code, self.retryable)

    @property
    def may_have_cost(self) -> bool:
        """May the provider bill this? Then its reservation is settled as spent (estimated), never released."""
        answered = self.status is not None and 200 <= self.status < 300
        return answered or CLASSES[self.error_class].may_have_cost


def response_failure(status: int, headers: Mapping[bytes, bytes], body: bytes, now: float | None = None) -> Failure:
    """Of an answer that is no answer: not 2xx, or 2xx with a body that is no JSON, an error, or of an unknown shape.

    ``headers`` by lower-case name; ``now`` is Unix seconds, for a ``retry-after`` that is a date.
    """
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
    codes, message = _told(decoded)
    if not 200 <= status < 300:
        error_class = _class(status, codes, message)
    elif is_error(decoded):
        # A status inside the body, as some routers send; else a code that speaks for itself.
        meant = next((int(code) for code in codes if code.isdecimal() and 400 <= int(code) < 600), None)
        error_class = _class(meant, codes, message) if meant else _coded(codes) or "malformed"
    else:
        return _failure(
            "malformed", "unexpected_shape", "the upstream's answer has an unknown shape", status, headers or {}, now
        )
    code = next((code for code in codes if not code.isdecimal()), "")
    return _failure(error_class, code, message, status, headers or {}, now)


def is_error(decoded: object) -> bool:
    """Does a decoded 2xx body or stream event carry an error instead of an answer?"""
    if not isinstance(decoded, dict):
        return False
    body = cast("dict[str, object]", decoded)
    return bool(body.get("error")) or body.get("type") == "error"


def exception_failure(error: UpstreamError) -> Failure:
    """Of a call without a whole answer."""
    if isinstance(error, UpstreamTimeout):
        # While connecting nothing was sent, so nothing can be billed: not the same as a timeout.
        named: tuple[ErrorClass, str] = ("timeout" if error.sent else "connection", f"{error.phase}_timeout")
    else:
        named = _BY_EXCEPTION.get(type(error), ("malformed", "malformed_response"))
    rule = CLASSES[named[0]]
    # The same question would get an answer of the same size.
    retryable = rule.retryable and not isinstance(error, ResponseTooLarge)
    return Failure(*named, scrubbed(str(error)), retryable, rule.fallback)


class Backoff(Protocol):
    """How long to wait between attempts, in milliseconds. ``jitter``: ``full`` or ``none``."""

    @property
    def backoff_ms(self) -> int: ...
    @property
    def max_backoff_ms(self) -> int: ...
    @property
    def jitter(self) -> str: ...


def backoff_ms(attempt: int, policy: Backoff, retry_after_ms: int | None, rng: Random) -> int:
    """How long to wait after the failed ``attempt`` (from 1): exponential with full jitter, on top of what the server asked for.

    On top, so that callers refused at one moment do not come back at one moment. The result can pass the caller's deadline;
    then there is no further attempt at this target.
    """
    ceiling = min(policy.max_backoff_ms, policy.backoff_ms << min(attempt - 1, 30))
    wait = rng.randint(0, ceiling) if policy.jitter == "full" else ceiling
    return wait + (retry_after_ms or 0)


def scrubbed(text: str, limit: int = _MAX_MESSAGE) -> str:
    """One printable line of at most ``limit`` characters, without anything that looks like a key."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 8 * limit]).split())
    line = _SECRET.sub("[secret]", line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _failure(
    error_class: ErrorClass, code: str, message: str, status: int, headers: Mapping[bytes, bytes], now: float | None
) -> Failure:
    rule = CLASSES[error_class]
    retryable, said = rule.retryable, headers.get(b"x-should-retry", b"").lower()
    if said == b"false":
        retryable = False
    elif said == b"true" and error_class not in _FINAL:
        retryable = True
    code, message = scrubbed(code, 80) or f"http_{status}", scrubbed(message) or f"the upstream answered {status}"
    return Failure(error_class, code, message, retryable, rule.fallback, _retry_after_ms(headers, now), status)


def _class(status: int, codes: list[str], message: str) -> ErrorClass:
    if (coded := _coded(codes)) is not None:
        return coded
    by_status = _BY_STATUS.get(status) or _BY_HUNDRED.get(status // 100, "malformed")
    if by_status not in _VAGUE:
        return by_status
    said = message.lower()
    for phrase, meant in _BY_PHRASE:
        if phrase in said:
            return meant
    return by_status


def _coded(codes: list[str]) -> ErrorClass | None:
    return next((_BY_CODE[code] for code in map(str.lower, codes) if code in _BY_CODE), None)


def _told(decoded: object) -> tuple[list[str], str]:
    """The provider's codes, most telling first, and its message."""
    codes: list[str] = []
    message = ""
    for part in _error_objects(decoded):
        if isinstance(part, str):
            message = message or part
            continue
        for name in ("code", "type", "status", "reason"):
            value = part.get(name)
            if isinstance(value, (str, int)) and not isinstance(value, bool) and value not in ("", "error"):
                codes.append(str(value)[:200])
        text = part.get("message") or part.get("detail")
        if isinstance(text, str):
            message = message or text[: 8 * _MAX_MESSAGE]
    return codes, message


def _error_objects(decoded: object) -> Iterator[Mapping[str, object] | str]:
    """Where providers put their errors: ``error``, the first of ``errors``, Azure's inner error, the body itself."""
    if isinstance(decoded, list) and decoded:
        decoded = cast("list[object]", decoded)[0]
    if not isinstance(decoded, dict):
        return
    body = cast("dict[str, object]", decoded)
    error = body.get("error")
    if not error and isinstance(errors := body.get("errors"), list) and errors:
        error = cast("list[object]", errors)[0]
    if isinstance(error, dict):
        inner = cast("dict[str, object]", error)
        yield inner
        for name in ("innererror", "inner_error", "metadata"):
            if isinstance(deeper := inner.get(name), dict):
                yield cast("dict[str, object]", deeper)
        if isinstance(details := inner.get("details"), list):
            yield from (
                cast("dict[str, object]", one) for one in cast("list[object]", details)[:8] if isinstance(one, dict)
            )
    elif isinstance(error, str):
        yield error
    yield body


def _retry_after_ms(headers: Mapping[bytes, bytes], now: float | None) -> int | None:
    """What the server asks to wait, at most a day; None if it asks for nothing, or for what cannot be read."""
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
        if not isnan(wait):
            return int(min(max(wait, 0.0), _MAX_RETRY_AFTER_MS))
    return None
