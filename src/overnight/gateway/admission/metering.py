"""The usage, cost and bound of an attempt, from the answer or the failure of its provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from overnight.circuit_breakers import BreakerUpdate
from overnight.domain import ErrorFacts
from overnight.domain.json_text import decode_json
from overnight.pricing.provider_tools import bound_microusd, fees_of
from overnight.pricing.usage import Usage, estimated_usage
from overnight.providers.error_classes import ErrorClass
from overnight.providers.reported_errors import is_error, usage_in
from overnight.wire_formats import Json
from overnight.wire_formats.request import Request

from ..attempt import Attempt, AttemptFailure, Reply
from ..call_context import CallContext, call_event
from ..stored_responses import stored_response_of
from .attempt_result import AttemptResult

OK = 200
DEFAULT_CONTEXT_WINDOW = 1_000_000
"""The context window, in tokens, of a model without a stated one."""

_REFUSED: frozenset[ErrorClass] = frozenset({
    "rate_limited", "quota", "overloaded", "auth", "not_found", "invalid_request", "context_length",
})  # fmt: skip
"""With these errors before the start of an answer, the provider has not accepted the request."""
_ESTIMATED = "the provider ended the answer with an error; unreported usage is estimated from the text"
_NO_USAGE = "the provider reported no usage; the whole reservation counts"
_BROKEN_OFF = "the answer was cut off: the provider may have billed more; the rest of the reservation is a bound"
_MAYBE_BILLED = "the provider may have billed this attempt; the whole reservation counts"
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode

Fees = Mapping[str, int]
"""Microdollars for one use of a provider-run tool."""


class _Share(NamedTuple):
    """The cost and bound of a failed attempt (see `AttemptResult`), its usage, and the reason for an estimate."""

    cost_microusd: int | None = 0
    bound_microusd: int = 0
    usage: Usage | None = None
    why: str = ""


class _Bounded(NamedTuple):
    """Usage and cost, limited to the maximum of the request; `reported` is the provider's report if it exceeds that."""

    usage: Usage
    cost_microusd: int | None
    reported: dict[str, int] | None = None


def result_of_failure(
    context: CallContext, attempt: Attempt, failed: AttemptFailure, fees: Fees, breaker_update: BreakerUpdate | None
) -> AttemptResult:
    """The result of a failed attempt.

    A request that was not served costs nothing, and a reported usage costs its price. After an error reported by the provider,
    the cost of the partial answer is estimated. If the provider may bill an unknown amount, the reservation counts as a bound.
    """
    failure = failed.failure
    event = call_event(context, attempt.target, "model_failed", attempt.call_id)
    event.call_id, event.latency_ms = attempt.call_id, attempt.latency_ms()
    event.queued_ms, event.first_byte_ms = attempt.queued_ms, attempt.first_byte_ms
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
    """The result of an answered attempt, with the reported usage. Without a report, the whole reservation counts."""
    request, usage = context.request, reply.usage
    cost = None if usage.estimated else attempt.target.price.cost_of(usage)
    event = call_event(context, attempt.target, "model_succeeded", attempt.call_id)
    event.call_id, event.latency_ms = attempt.call_id, attempt.latency_ms()
    event.queued_ms, event.first_byte_ms = attempt.queued_ms, attempt.first_byte_ms
    detail: dict[str, Any] = {}
    if request.hosted:
        used, tool_fees = fees_of(request.hosted, fees, context.client.tool_uses(decode_json(reply.body)))
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
    # A failed attempt does not report the uses of provider-run tools.
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
    """Limit usage and cost to the maximum of the request.

    A hard stop relies on the bound of each call, so the booking must not exceed it. The report itself is kept in the event.
    """
    price, reserved = attempt.target.price, attempt.grant.amount_microusd
    max_input, max_output, max_cost = request.prompt_bytes, attempt.grant.tokens * request.choices, reserved
    if request.open_ended and (window := price.context_window or DEFAULT_CONTEXT_WINDOW) > max_input:
        # Images, files and search results have more tokens than their bytes suggest; the model's window limits them.
        tools_microusd = bound_microusd(request.hosted, fees) if request.hosted else 0
        max_input = window
        max_cost = max(max_cost, tools_microusd + price.upper_bound_microusd(window, max_output))
    if (cost or 0) <= max_cost and usage.input_tokens + usage.output_tokens <= max_input + max_output:
        return _Bounded(usage, cost)
    within = usage.clamped(max_input, max_output)
    if cost is None and usage.estimated:
        return _Bounded(within, None)  # estimated from the text, not reported
    reported = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_microusd": max(cost or 0, price.cost_of(usage)),
    }
    return _Bounded(within, None if cost is None else min(cost, max_cost), reported)


def reported_beyond_bound(result: AttemptResult) -> dict[str, int] | None:
    """The provider's report, if it exceeds the maximum of the request."""
    return (result.event.detail or {}).get("told")


def _reported_usage(attempt: Attempt, failed: AttemptFailure, estimate: Usage) -> Usage | None:
    """The usage in an unusable answer, an error or the events of a broken stream; None without a report."""
    failure, received, upstream_format = failed.failure, failed.received, attempt.wire.upstream_format
    try:
        if received.usage:
            reported = upstream_format.usage_of({"usage": received.usage})
            if reported is not None or upstream_format.name != "messages":
                return reported
            # A stream of messages reports its input at the beginning, and its output at the end.
            reported = upstream_format.usage_of({"usage": {**received.usage, "output_tokens": estimate.output_tokens}})
            return reported and msgspec.structs.replace(reported, estimated=True)
        if failure.status != OK or not failed.body:
            return None
        answer: Json = _decode_object(failed.body)
        return upstream_format.usage_of({"usage": usage_in(answer)} if is_error(answer) else answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, ValueError, KeyError, AttributeError):
        return None
