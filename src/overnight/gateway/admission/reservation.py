"""What a call writes: its events, its reservation, and how a try came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from overnight.domain import (
    ErrorFacts,
    Event,
    new_id,
    span_of,
)
from overnight.pricing.output_limits import output_cap
from overnight.pricing.price_book import ModelPrice
from overnight.pricing.provider_tools import bound_microusd, fees_of
from overnight.pricing.usage import Usage, estimated_usage
from overnight.providers.error_classes import (
    OURS,
    ErrorClass,
    Failure,
    is_error,
    usage_in,
)
from overnight.wire_formats import Json

from ..routing_facts import told, told_facts
from ..stored_responses import kept_by
from .commands import Reservation, Spent

if TYPE_CHECKING:
    from ..call.pipeline import Flight

OK = 200
USUAL_WINDOW = 1_000_000
"""Tokens of a model whose window nobody states."""
NO_OUTPUT = 1
"""Tokens reserved for formats whose answers are not text."""
NOT_CARRIED, UNREAD = "not_carried", "internal_fault"
_NO_SIGN = OURS | {NOT_CARRIED, UNREAD}
"""Codes of failures that say nothing about the target."""
_REFUSED: frozenset[ErrorClass] = frozenset({
    "rate_limited", "quota", "overloaded", "auth", "not_found", "invalid_request", "context_length",
})  # fmt: skip
"""Reported before an answer began, these say that the provider did not take the request."""
_ESTIMATED = "the provider ended the answer with an error; what it did not tell of the usage is estimated from the text"
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


class Demand:
    """What a try may use and cost at most, by its output cap; `choices` are as many outputs, `fees_microusd` what comes to the
    tokens. No token is less than a byte."""

    __slots__ = ("_fees", "_price", "choices", "prompt_tokens", "wanted_tokens")

    def __init__(
        self, price: ModelPrice | None, prompt_bytes: int, choices: int, wanted_tokens: int, fees_microusd: int = 0
    ) -> None:
        self._price, self.prompt_tokens, self.choices = price, prompt_bytes, choices
        self._fees = fees_microusd
        self.wanted_tokens = wanted_tokens

    def bound_microusd(self, tokens: int) -> int:
        if self._price is None:
            return 0
        return self._fees + self._price.upper_bound_microusd(self.prompt_tokens, tokens * self.choices)

    def affordable_tokens(self, available_microusd: int) -> int:
        if self._price is None:
            return self.wanted_tokens
        return self._price.affordable_output_tokens(self.prompt_tokens, available_microusd - self._fees) // self.choices


class Reply(msgspec.Struct):
    """A provider's answer as it came, and what it used."""

    body: bytes
    usage: Usage
    request_id: bytes | None = None


def event_of(flight: Flight, name: str) -> Event:
    """An event of this call with everything that all of them say."""
    who, target = flight.subject.who, flight.target
    return Event(
        name,
        step=who.step,
        task_id=who.task_id,
        session_id=who.session_id,
        agent_id=who.agent_id,
        workflow=who.workflow,
        actor=who.actor,
        route=flight.decision.route,
        model=target.model,
        provider=target.provider,
        kind="model",
        name=flight.subject.label,
        trace_id=who.trace_id,
        span_id=span_of(flight.call_id) if who.trace_id and flight.call_id else None,
    )


def _cap(flight: Flight) -> int:
    request, target = flight.request, flight.target
    if not request.cap_field:
        return NO_OUTPUT
    usual, route = flight.decision.max_output_tokens, flight.decision.output_cap
    return output_cap(request.cap, usual, route, target.model, target.price, request.prompt_bytes)


def reservation_of(flight: Flight) -> Reservation:
    decision, who, tokens = flight.decision, flight.subject.who, _cap(flight)
    called = event_of(flight, "model_called")
    called.call_id = new_id("call")
    called.decision = told(decision)
    called.detail = {"requested_model": decision.requested_model, "try": flight.tries + 1}
    called.detail |= told_facts(who, flight.request.format)
    if tokens < (flight.request.cap or 0):
        called.detail["asked_max_output_tokens"] = flight.request.cap
        called.detail["capped_by"] = "route" if tokens == decision.output_cap else "model"
    if who.trace_id:
        called.span_id = span_of(called.call_id)
        called.detail["parent_span_id"] = who.span_id
    asked = flight.request
    fees = bound_microusd(asked.hosted, flight.gateway.fees) if asked.hosted else 0
    demand = Demand(flight.target.price, asked.prompt_bytes, asked.choices, tokens, fees)
    return Reservation(called.call_id, flight.gateway.owner, demand, called)


class Received(NamedTuple):
    """What of a streamed answer came before its try failed: whether it had begun, its characters of output, and the usage as the
    provider told it, if it did."""

    begun: bool = False
    characters: int = 0
    usage: Json | None = None


class _Share(NamedTuple):
    """What a failed try is settled at (see `Spent`), what was used, and why that is an estimate."""

    cost_microusd: int | None = 0
    bound_microusd: int = 0
    usage: Usage | None = None
    why: str = ""


def spent_on_failure(flight: Flight, failure: Failure) -> Spent:
    """A failed try. What the provider cannot have served costs nothing; what it told costs that. After an error of the provider's
    own, what it sent by then is estimated. Where it may bill what nobody saw, all that was reserved counts, as a bound."""
    event = event_of(flight, "model_failed")
    event.call_id, event.latency_ms = flight.call_id, flight.latency_ms()
    event.error = ErrorFacts(failure.error_class, failure.message, failure.code, failure.retryable)
    share = _share(flight, failure) if failure.may_have_cost else _Share()
    tokens = (0, 0, 0)
    over: dict[str, int] | None = None
    if share.usage is not None:
        usage, cost, over = within_bound(flight, share.usage, share.cost_microusd)
        share = share._replace(usage=usage, cost_microusd=cost)
    if (usage := share.usage) is not None:
        tokens = (usage.input_tokens, usage.cached_tokens, usage.output_tokens)
        event.input_tokens, event.output_tokens = usage.input_tokens, usage.output_tokens
    detail: dict[str, Any] = {}
    if share.why:
        detail["estimated"], detail["why"] = True, share.why
    if over is not None:
        detail["told"] = over
    event.detail = detail or None
    mark = None if failure.code in _NO_SIGN else flight.mark(failure)
    cost, bound = share.cost_microusd, share.bound_microusd
    return Spent(flight.call_id, event, flight.target.model, tokens, cost, mark=mark, bound_microusd=bound)


def _share(flight: Flight, failure: Failure) -> _Share:
    received = flight.received()
    estimate = estimated_usage(flight.request.prompt_bytes, received.characters)
    told = _told_usage(flight, failure, received, estimate)
    if told is not None and (failure.reported or received.usage is None):
        return _with_fees(flight, _Share(_cost(flight, told), usage=told, why=_ESTIMATED if told.estimated else ""))
    if failure.reported:
        if not received.begun and failure.error_class in _REFUSED:
            return _Share()
        return _with_fees(flight, _Share(_cost(flight, estimate), usage=estimate, why=_ESTIMATED))
    usage = told or estimate
    cost = min(_cost(flight, usage), flight.reserved_microusd) if told or received.begun else 0
    if 0 < cost < flight.reserved_microusd:
        why = "the answer broke off: the provider may have billed more than came; the rest of what was reserved is a bound"
        return _Share(cost, flight.reserved_microusd - cost, usage, why)
    return _Share(None, 0, usage, "the provider may have billed this try; all that was reserved counts")


def _with_fees(flight: Flight, share: _Share) -> _Share:
    """With the tools that the provider may have run: a failed try does not tell how often."""
    asked = flight.request.hosted
    return share._replace(bound_microusd=bound_microusd(asked, flight.gateway.fees)) if asked else share


def _cost(flight: Flight, usage: Usage) -> int:
    return flight.target.price.cost_of(usage) if flight.target.price else 0


def within_bound(flight: Flight, usage: Usage, cost: int | None) -> tuple[Usage, int | None, dict[str, int] | None]:
    """(usage, cost) as far as the request could use them, and what its provider told where that is more.

    A hard stop holds by the bound of each call, so no provider's word may go beyond it; nor may what was told get lost.
    """
    request, price = flight.request, flight.target.price
    most_input, most_output, most_cost = request.prompt_bytes, flight.tokens * request.choices, flight.reserved_microusd
    if request.open_ended and (window := price.context_window or USUAL_WINDOW) > most_input:
        # The bytes do not tell the length of a picture, a file or the results of a search: the model's window does.
        fees = bound_microusd(request.hosted, flight.gateway.fees) if request.hosted else 0
        most_input, most_cost = window, max(most_cost, fees + price.upper_bound_microusd(window, most_output))
    if (cost or 0) <= most_cost and usage.input_tokens + usage.output_tokens <= most_input + most_output:
        return usage, cost, None
    within = usage.at_most(most_input, most_output)
    if cost is None and usage.estimated:
        return within, None, None  # from the text; nobody told it
    worth = max(cost or 0, _cost(flight, usage))
    told = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "cost_microusd": worth}
    booked = None if cost is None else min(cost, most_cost)
    target = f"{flight.target.provider}/{flight.target.model}"
    flight.gateway.untenable.warn(
        target, flight.subject.job_id, told, flight.reserved_microusd if booked is None else booked
    )
    return within, booked, told


def _told_usage(flight: Flight, failure: Failure, received: Received, estimate: Usage) -> Usage | None:
    """What an answer that cannot be used, an error or the events of a broken stream say was used; None where they say nothing."""
    spoken = flight.wire.spoken
    try:
        if received.usage:
            told = spoken.usage_of({"usage": received.usage})
            if told is not None or spoken.name != "messages":
                return told
            # A stream of messages tells its input at the beginning, and its output at the end.
            told = spoken.usage_of({"usage": {**received.usage, "output_tokens": estimate.output_tokens}})
            return told and msgspec.structs.replace(told, estimated=True)
        if failure.status != OK or not flight.failure_body:
            return None
        answer: Json = _decode_object(flight.failure_body)
        return spoken.usage_of({"usage": usage_in(answer)} if is_error(answer) else answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, ValueError, KeyError, AttributeError):
        return None


def not_carried(message: str) -> Failure:
    """The request says what this target's format has no form for, so it was never sent; another target may have one."""
    return Failure("invalid_request", NOT_CARRIED, message, retryable=False, fallback=True)


def unread() -> Failure:
    """An answer that a fault of ours keeps us from reading: the target is not to blame, and may have billed it."""
    message = "the answer could not be read by a fault of the gateway; its log has the details"
    return Failure("malformed", UNREAD, message, retryable=False, fallback=True)


def not_sent() -> Failure:
    """A fault of ours before anything was sent."""
    message = "the request could not be made by a fault of the gateway; its log has the details"
    return Failure("malformed", UNREAD, message, retryable=False, fallback=True, unbilled=True)


def spent_on_reply(flight: Flight, reply: Reply) -> Spent:
    """An answer, at what its provider says it used. Where it does not say, nobody knows, so all that was reserved counts."""
    usage = reply.usage
    cost = None if usage.estimated else _cost(flight, usage)
    event = event_of(flight, "model_succeeded")
    event.call_id, event.latency_ms = flight.call_id, flight.latency_ms()
    detail: dict[str, Any] = {}
    if flight.request.hosted:
        used, fees = fees_of(flight.request.hosted, flight.gateway.fees, reply.body)
        if used:
            detail["hosted_tools"], detail["hosted_tools_microusd"] = used, fees
        cost = None if cost is None else cost + fees
    usage, cost, over = within_bound(flight, usage, cost)
    event.input_tokens, event.output_tokens = usage.input_tokens, usage.output_tokens
    event.cached_tokens = usage.cached_tokens
    if over is not None:
        detail["told"] = over
    if usage.estimated:
        detail["estimated"], detail["why"] = True, "the provider told no usage; all that was reserved counts"
    elif usage.adjusted:
        detail["adjusted"] = True
    if flight.losses:
        detail["dropped"] = flight.losses
    if flight.markers:
        detail["prompt_markers"] = flight.markers
    event.detail = detail or None
    tokens = (usage.input_tokens, usage.cached_tokens, usage.output_tokens)
    also = kept_by(flight.request, flight.answer_id, flight.called_seq)
    return Spent(flight.call_id, event, flight.target.model, tokens, cost, reply.body, also, flight.mark())
