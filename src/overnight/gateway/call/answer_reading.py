"""Read the body of a whole answer, in whichever framing it comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from overnight.pricing.usage import estimated_usage
from overnight.providers.error_classes import Failure, error_failure, response_failure
from overnight.providers.reported_errors import is_error
from overnight.wire_formats import NoAnswer
from overnight.wire_formats.framing import joined_answer, without_end_mark

from ..attempt import Attempt, AttemptFailure, PartialAnswer, Reply
from ..call_context import CallContext
from .answer_context import asked_by
from .gateway_failures import cut

UNKNOWN_SHAPE = (TypeError, ValueError, KeyError, AttributeError, IndexError)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, *UNKNOWN_SHAPE)


def read_answer(
    context: CallContext,
    attempt: Attempt,
    status: int,
    headers: Mapping[bytes, bytes],
    body: bytes,
) -> Reply | AttemptFailure:
    """The answer in the body of a 2xx response, in the client's format, with its usage; or why it is none."""
    try:
        reply = _reply(context, attempt, attempt.target.cleaned(body))
        if reply is not None:
            return reply
    except NoAnswer as error:
        return broken_off(error.error)
    except _UNREADABLE:
        joined = upstream_body(attempt, body)
        if isinstance(joined, AttemptFailure):
            return joined
        if joined is not None:
            return read_answer(context, attempt, status, headers, joined)
    error_body = attempt.target.without_key(body)
    return AttemptFailure(response_failure(status, headers, error_body), error_body)


def _reply(context: CallContext, attempt: Attempt, body: bytes) -> Reply | None:
    received = attempt.wire.received(body, asked_by(context, attempt))
    if received is None:
        return None
    usage = received.usage or estimated_usage(context.request.prompt_bytes, received.characters)
    return Reply(received.body, usage)


def upstream_body(attempt: Attempt, body: bytes) -> bytes | AttemptFailure | None:
    """The whole answer in the target's format, of a body that is a stream or carries an end mark; None if it is neither."""
    whole = without_end_mark(body)
    if whole is not body:
        return whole
    form = attempt.wire.upstream_format
    try:
        joined = joined_answer(body, form, _check)
    except NoAnswer as error:
        return broken_off(error.error)
    except _UNREADABLE:
        return None
    if joined is None and body.lstrip()[:1] in (b"d", b"e", b":"):
        return AttemptFailure(cut("the stream ended without a finish reason"))
    return joined


def _check(event: dict[str, Any]) -> None:
    if is_error(event):
        raise NoAnswer(event)


def broken_off(error: dict[str, Any]) -> AttemptFailure:
    """The failure of an answer that the provider broke off."""
    failure: Failure = error_failure(error)
    return AttemptFailure(failure, received=PartialAnswer(begun=True, usage=error.get("usage")))
