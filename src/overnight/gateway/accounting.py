"""What a call writes: its events, its reservation, and how a try came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from overnight.domain import ErrorFacts, Event, new_id

from .asking import told, told_facts
from .commands import Reservation, Spent
from .failures import Failure
from .prices import ModelPrice
from .usage import Usage, estimated_usage

if TYPE_CHECKING:
    from .flight import Flight

LOST_AFTER_US = 30_000_000


class Demand:
    """What a try may cost at most, by its output cap; `n` choices are `n` outputs."""

    __slots__ = ("_choices", "_price", "_prompt_bytes", "wanted_tokens")

    def __init__(self, price: ModelPrice | None, prompt_bytes: int, choices: int, wanted_tokens: int) -> None:
        self._price, self._prompt_bytes, self._choices = price, prompt_bytes, choices
        self.wanted_tokens = wanted_tokens

    def bound_microusd(self, tokens: int) -> int:
        if self._price is None:
            return 0
        return self._price.upper_bound_microusd(self._prompt_bytes, tokens * self._choices)

    def affordable_tokens(self, available_microusd: int) -> int:
        if self._price is None:
            return self.wanted_tokens
        return self._price.affordable_output_tokens(self._prompt_bytes, available_microusd) // self._choices


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
        span_id=who.span_id,
    )


def reservation_of(flight: Flight, tokens: int) -> Reservation:
    decision = flight.decision
    called = event_of(flight, "model_called")
    called.call_id = new_id("call")
    called.decision = told(decision)
    called.detail = {"requested_model": decision.requested_model, "try": flight.tries + 1}
    called.detail |= told_facts(flight.subject.who, flight.request.format)
    left_us = int((flight.deadline - flight.loop.time()) * 1_000_000)
    expires_at = flight.gateway.store.clock() + max(left_us, 0) + LOST_AFTER_US
    demand = Demand(flight.target.price, flight.request.prompt_bytes, flight.request.choices, tokens)
    return Reservation(called.call_id, flight.gateway.owner, expires_at, demand, called)


def spent_on_failure(flight: Flight, failure: Failure, received_characters: int = 0) -> Spent:
    """A failed try: at no cost where the provider cannot have billed it, at the estimate where it may have."""
    event = event_of(flight, "model_failed")
    event.call_id, event.latency_ms = flight.call_id, flight.latency_ms()
    event.error = ErrorFacts(failure.error_class, failure.message, failure.code, failure.retryable)
    cost, tokens = 0, (0, 0, 0)
    if failure.may_have_cost:
        usage = estimated_usage(flight.request.prompt_bytes, received_characters)
        cost = flight.target.price.cost_of(usage) if flight.target.price else 0
        tokens = (usage.input_tokens, 0, usage.output_tokens)
        event.input_tokens, event.output_tokens = usage.input_tokens, usage.output_tokens
        event.detail = {"estimated": True, "why": "the provider may have billed this try"}
    return Spent(flight.call_id, event, flight.target.model, tokens, cost)


def spent_on_reply(flight: Flight, reply: Reply) -> Spent:
    usage = reply.usage
    cost = flight.target.price.cost_of(usage) if flight.target.price else 0
    event = event_of(flight, "model_succeeded")
    event.call_id, event.latency_ms = flight.call_id, flight.latency_ms()
    event.input_tokens, event.output_tokens = usage.input_tokens, usage.output_tokens
    event.cached_tokens = usage.cached_tokens
    detail: dict[str, Any] = {}
    if usage.estimated or usage.adjusted:
        detail["estimated" if usage.estimated else "adjusted"] = True
    if flight.losses:
        detail["dropped"] = flight.losses
    event.detail = detail or None
    tokens = (usage.input_tokens, usage.cached_tokens, usage.output_tokens)
    return Spent(flight.call_id, event, flight.target.model, tokens, cost, reply.body)
