"""What a call writes: its events, its reservation, and how a try came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from overnight.domain import ErrorFacts, Event, new_id, span_of

from .asking import told, told_facts
from .commands import Reservation, Spent
from .failures import Failure, is_error
from .formats import Json
from .hosted_tools import bound_microusd, fees_of
from .kept import kept_by
from .output_limits import output_cap
from .prices import ModelPrice
from .usage import Usage, estimated_usage

if TYPE_CHECKING:
    from .flight import Flight

OK = 200
NO_OUTPUT = 1
"""Tokens reserved for formats whose answers are not text."""
NOT_CARRIED, UNREAD = "not_carried", "internal_fault"
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
    most = flight.decision.max_output_tokens
    return output_cap(request.cap, most, target.model, target.price, request.prompt_bytes)


def reservation_of(flight: Flight) -> Reservation:
    decision, who, tokens = flight.decision, flight.subject.who, _cap(flight)
    called = event_of(flight, "model_called")
    called.call_id = new_id("call")
    called.decision = told(decision)
    called.detail = {"requested_model": decision.requested_model, "try": flight.tries + 1}
    called.detail |= told_facts(who, flight.request.format)
    if tokens < (flight.request.cap or 0):
        called.detail["asked_max_output_tokens"] = flight.request.cap
    if who.trace_id:
        called.span_id = span_of(called.call_id)
        called.detail["parent_span_id"] = who.span_id
    asked = flight.request
    fees = bound_microusd(asked.hosted, flight.gateway.fees) if asked.hosted else 0
    demand = Demand(flight.target.price, asked.prompt_bytes, asked.choices, tokens, fees)
    return Reservation(called.call_id, flight.gateway.owner, demand, called)


def spent_on_failure(flight: Flight, failure: Failure, received_characters: int = 0) -> Spent:
    """A failed try: at no cost where the provider cannot have billed it, at what it told where it told that. Else nobody knows,
    so all that was reserved counts as spent."""
    event = event_of(flight, "model_failed")
    event.call_id, event.latency_ms = flight.call_id, flight.latency_ms()
    event.error = ErrorFacts(failure.error_class, failure.message, failure.code, failure.retryable)
    cost: int | None = 0
    tokens = (0, 0, 0)
    if failure.may_have_cost:
        usage = _told_usage(flight, failure)
        cost = _cost(flight, usage) if usage and not flight.request.hosted else None
        if usage is None:
            usage = estimated_usage(flight.request.prompt_bytes, received_characters)
            event.detail = {
                "estimated": True,
                "why": "the provider may have billed this try; all that was reserved counts",
            }
        tokens = (usage.input_tokens, usage.cached_tokens, usage.output_tokens)
        event.input_tokens, event.output_tokens = usage.input_tokens, usage.output_tokens
    mark = flight.mark(failure) if failure.code not in (NOT_CARRIED, UNREAD) else None
    return Spent(flight.call_id, event, flight.target.model, tokens, cost, mark=mark)


def _cost(flight: Flight, usage: Usage) -> int:
    return flight.target.price.cost_of(usage) if flight.target.price else 0


def _told_usage(flight: Flight, failure: Failure) -> Usage | None:
    """What an answer that cannot be used says it used. Errors and broken streams say nothing that is final."""
    if failure.status != OK or not flight.failure_body:
        return None
    try:
        answer: Json = _decode_object(flight.failure_body)
        return None if is_error(answer) else flight.wire.spoken.usage_of(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, ValueError, KeyError, AttributeError):
        return None


def not_carried(message: str) -> Failure:
    """The request says what this target's format has no form for, so it was never sent; another target may have one."""
    return Failure("invalid_request", NOT_CARRIED, message, retryable=False, fallback=True)


def unread() -> Failure:
    """An answer that a fault of ours keeps us from reading: the target is not to blame, and may have billed it."""
    message = "the answer could not be read by a fault of the gateway; its log has the details"
    return Failure("malformed", UNREAD, message, retryable=False, fallback=True)


def spent_on_reply(flight: Flight, reply: Reply) -> Spent:
    """An answer, at what its provider says it used. Where it does not say, nobody knows, so all that was reserved counts."""
    usage = reply.usage
    cost = None if usage.estimated else _cost(flight, usage)
    event = event_of(flight, "model_succeeded")
    event.call_id, event.latency_ms = flight.call_id, flight.latency_ms()
    event.input_tokens, event.output_tokens = usage.input_tokens, usage.output_tokens
    event.cached_tokens = usage.cached_tokens
    detail: dict[str, Any] = {}
    if flight.request.hosted:
        used, fees = fees_of(flight.request.hosted, flight.gateway.fees, reply.body)
        if used:
            detail["hosted_tools"], detail["hosted_tools_microusd"] = used, fees
        cost = None if cost is None else cost + fees
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
