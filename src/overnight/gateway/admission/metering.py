"""The result of an attempt: the usage, cost and bound of what its provider answered or failed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from overnight.circuit_breakers import BreakerUpdate
from overnight.domain import ErrorFacts
from overnight.pricing.provider_tools import bound_microusd, fees_of
from overnight.pricing.usage import Usage, estimated_usage
from overnight.providers.error_classes import ErrorClass, is_error, usage_in
from overnight.wire_formats import Json
from overnight.wire_formats.request import Request

from ..attempt import Attempt, AttemptFailure, Reply
from ..call_context import CallContext, call_event
from ..stored_responses import stored_response_of
from .attempt_result import AttemptResult

OK = 200
USUAL_WINDOW = 1_000_000
"""Tokens of a model whose window is not stated."""

_REFUSED: frozenset[ErrorClass] = frozenset({
    "rate_limited", "quota", "overloaded", "auth", "not_found", "invalid_request", "context_length",
})  # fmt: skip
"""Reported before an answer began, these say that the provider did not take the request."""
_ESTIMATED = "the provider ended the answer with an error; what it did not tell of the usage is estimated from the text"
_NO_USAGE = "the provider told no usage; all that was reserved counts"
_BROKEN_OFF = (
    "the answer broke off: the provider may have billed more than came; the rest of what was reserved is a bound"
)
_MAYBE_BILLED = "the provider may have billed this try; all that was reserved counts"
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode

Fees = Mapping[str, int]
"""Microdollars for one use of a tool that a provider runs."""


class _Share(NamedTuple):
    """What a failed attempt is settled at (see `AttemptResult`), what was used, and why that is an estimate."""

    cost_microusd: int | None = 0
    bound_microusd: int = 0
    usage: Usage | None = None
    why: str = ""


class _Bounded(NamedTuple):
    """Usage and cost as far as the request could use them; `reported` is what the provider said where that is more."""

    usage: Usage
    cost_microusd: int | None
    reported: dict[str, int] | None = None


def result_of_failure(
    context: CallContext, attempt: Attempt, failed: AttemptFailure, fees: Fees, breaker_update: BreakerUpdate | None
) -> AttemptResult:
    """The result of a failed attempt.

    What the provider cannot have served costs nothing; what it reported costs that. After an error of the provider's own, what
    it sent by then is estimated. Where it may bill what was never seen, all that was reserved counts, as a bound.
    """
    failure = failed.failure
    event = call_event(context, attempt.target, "model_failed", attempt.call_id)
    event.call_id, event.latency_ms = attempt.call_id, attempt.latency_ms()
    event.error = ErrorFacts(failure.error_class, failure.message, failure.code, failure.retryable)
    share = _share(context.request, attempt, failed, fees) if failure.may_have_cost else _Share()
    tokens = (0, 0, 0)
    detail: dict[str, Any] = {}
    if share.why:
        detail["estimated"], detail["why"] = True, share.why
    if share.usage is not None:
        usage, cost, reported = _within_bound(context.request, attempt, share.usage, share.cost_microusd, fees)
        share = share._replace(cost_microusd=cost)
        tokens = (usage.input_tokens, usage.cached_tokens, usage.output_tokens)
        event.input_tokens, event.output_tokens = usage.input_tokens, usage.output_tokens
        if reported is not None:
            detail["told"] = reported
    event.detail = detail or None
    return AttemptResult(
        call_id=attempt.call_id,
        event=event,
        model=attempt.target.model,
        tokens=tokens,
        cost_microusd=share.cost_microusd,
        breaker_update=breaker_update,
        bound_microusd=share.bound_microusd,
    )


def result_of_reply(
    context: CallContext, attempt: Attempt, reply: Reply, fees: Fees, breaker_update: BreakerUpdate | None
) -> AttemptResult:
    """The result of an answered attempt, at what its provider reports. Without a report, all that was reserved counts."""
    request, usage = context.request, reply.usage
    cost = None if usage.estimated else attempt.target.price.cost_of(usage)
    event = call_event(context, attempt.target, "model_succeeded", attempt.call_id)
    event.call_id, event.latency_ms = attempt.call_id, attempt.latency_ms()
    detail: dict[str, Any] = {}
    if request.hosted:
        used, tool_fees = fees_of(request.hosted, fees, reply.body)
        if used:
            detail["hosted_tools"], detail["hosted_tools_microusd"] = used, tool_fees
        cost = None if cost is None else cost + tool_fees
    usage, cost, reported = _within_bound(request, attempt, usage, cost, fees)
    event.input_tokens, event.output_tokens = usage.input_tokens, usage.output_tokens
    event.cached_tokens = usage.cached_tokens
    if reported is not None:
        detail["told"] = reported
    if usage.estimated:
        detail["estimated"], detail["why"] = True, _NO_USAGE
    elif usage.adjusted:
        detail["adjusted"] = True
    if attempt.losses:
        detail["dropped"] = attempt.losses
    if attempt.markers:
        detail["prompt_markers"] = attempt.markers
    event.detail = detail or None
    return AttemptResult(
        call_id=attempt.call_id,
        event=event,
        model=attempt.target.model,
        tokens=(usage.input_tokens, usage.cached_tokens, usage.output_tokens),
        cost_microusd=cost,
        content=reply.body,
        also=stored_response_of(request, context.answer_id(attempt.call_id), attempt.called_seq),
        breaker_update=breaker_update,
    )


def _share(request: Request, attempt: Attempt, failed: AttemptFailure, fees: Fees) -> _Share:
    failure, received, price = failed.failure, failed.received, attempt.target.price
    estimate = estimated_usage(request.prompt_bytes, received.characters)
    reported = _reported_usage(attempt, failed, estimate)
    # A failed attempt does not tell how often the provider ran its tools.
    tools_microusd = bound_microusd(request.hosted, fees) if request.hosted else 0
    if reported is not None and (failure.reported or received.usage is None):
        why = _ESTIMATED if reported.estimated else ""
        return _Share(price.cost_of(reported), tools_microusd, reported, why)
    if failure.reported:
        if not received.begun and failure.error_class in _REFUSED:
            return _Share()
        return _Share(price.cost_of(estimate), tools_microusd, estimate, _ESTIMATED)
    usage, reserved = reported or estimate, attempt.grant.amount_microusd
    cost = min(price.cost_of(usage), reserved) if reported or received.begun else 0
    if 0 < cost < reserved:
        return _Share(cost, reserved - cost, usage, _BROKEN_OFF)
    return _Share(None, 0, usage, _MAYBE_BILLED)


def _within_bound(request: Request, attempt: Attempt, usage: Usage, cost: int | None, fees: Fees) -> _Bounded:
    """Usage and cost as far as the request could use them.

    A hard stop holds by the bound of each call, so no report of a provider may go beyond it; nor may the report be lost.
    """
    price, reserved = attempt.target.price, attempt.grant.amount_microusd
    max_input, max_output, max_cost = request.prompt_bytes, attempt.grant.tokens * request.choices, reserved
    if request.open_ended and (window := price.context_window or USUAL_WINDOW) > max_input:
        # The bytes do not tell the length of a picture, a file or the results of a search: the model's window does.
        tools_microusd = bound_microusd(request.hosted, fees) if request.hosted else 0
        max_input = window
        max_cost = max(max_cost, tools_microusd + price.upper_bound_microusd(window, max_output))
    if (cost or 0) <= max_cost and usage.input_tokens + usage.output_tokens <= max_input + max_output:
        return _Bounded(usage, cost)
    within = usage.at_most(max_input, max_output)
    if cost is None and usage.estimated:
        return _Bounded(within, None)  # estimated from the text, not reported
    reported = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_microusd": max(cost or 0, price.cost_of(usage)),
    }
    return _Bounded(within, None if cost is None else min(cost, max_cost), reported)


def reported_beyond_bound(result: AttemptResult) -> dict[str, int] | None:
    """What the provider reported, where that is more than the request could use."""
    return (result.event.detail or {}).get("told")


def _reported_usage(attempt: Attempt, failed: AttemptFailure, estimate: Usage) -> Usage | None:
    """The usage in an answer that cannot be used, an error or the events of a broken stream; None where they tell none."""
    failure, received, spoken = failed.failure, failed.received, attempt.wire.spoken
    try:
        if received.usage:
            reported = spoken.usage_of({"usage": received.usage})
            if reported is not None or spoken.name != "messages":
                return reported
            # A stream of messages reports its input at the beginning, and its output at the end.
            reported = spoken.usage_of({"usage": {**received.usage, "output_tokens": estimate.output_tokens}})
            return reported and msgspec.structs.replace(reported, estimated=True)
        if failure.status != OK or not failed.body:
            return None
        answer: Json = _decode_object(failed.body)
        return spoken.usage_of({"usage": usage_in(answer)} if is_error(answer) else answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, ValueError, KeyError, AttributeError):
        return None
