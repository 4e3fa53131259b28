"""The reservation of an attempt: its id, its `model_called` event, and its cost bound."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from overnight.domain import Event, span_of
from overnight.pricing.output_limits import output_cap
from overnight.pricing.price_book import ModelPrice
from overnight.pricing.provider_tools import bound_microusd
from overnight.providers.targets import Target

from ..call_context import CallContext, call_event
from ..call_facts import caller_facts, decision_facts

NO_OUTPUT = 1
"""Output tokens reserved for formats without text answers."""


class AttemptCostBound:
    """The maximum cost of an attempt, as a function of its output cap.

    Args:
        price: the price of the model.
        prompt_bytes: an upper bound of the input tokens, since a token has at least one byte.
        choices: the number of requested outputs.
        wanted_tokens: the requested output cap.
        fees_microusd: fees in addition to the tokens.
    """

    __slots__ = ("_fees", "_price", "choices", "prompt_tokens", "wanted_tokens")

    def __init__(
        self, price: ModelPrice, prompt_bytes: int, choices: int, wanted_tokens: int, fees_microusd: int = 0
    ) -> None:
        self._price, self.prompt_tokens, self.choices = price, prompt_bytes, choices
        self._fees = fees_microusd
        self.wanted_tokens = wanted_tokens

    def bound_microusd(self, tokens: int) -> int:
        """The maximum cost with an output cap of `tokens`."""
        return self._fees + self._price.upper_bound_microusd(self.prompt_tokens, tokens * self.choices)

    def affordable_tokens(self, available_microusd: int) -> int:
        """The largest output cap that `available_microusd` covers."""
        return self._price.affordable_output_tokens(self.prompt_tokens, available_microusd - self._fees) // self.choices


class Reservation(msgspec.Struct, frozen=True):
    """A reservation to be made: the attempt, the process that owns it, its cost bound and its event."""

    call_id: str
    owner: str
    bound: AttemptCostBound
    called: Event


def _output_cap(context: CallContext, target: Target) -> int:
    request, decision = context.request, context.decision
    if not request.cap_field:
        return NO_OUTPUT
    return output_cap(
        request.cap,
        decision.max_output_tokens,
        decision.output_cap,
        target.model,
        target.price,
        request.prompt_bytes,
    )


def reservation_of(
    context: CallContext, target: Target, number: int, call_id: str, owner: str, fees: Mapping[str, int]
) -> Reservation:
    """The reservation of an attempt at `target`.

    Args:
        number: the number of the attempt in its call, from 1.
        call_id: its id.
        owner: the name of this process.
        fees: the fees of provider-run tools, in microdollars.
    """
    decision, request, who = context.decision, context.request, context.subject.who
    tokens = _output_cap(context, target)
    called = call_event(context, target, "model_called")
    called.call_id = call_id
    called.decision = decision_facts(decision)
    called.detail = {"requested_model": decision.requested_model, "try": number}
    called.detail |= caller_facts(who, request.format)
    if prompts := context.subject.prompts:
        called.detail["prompts"] = [{"name": name, "version": version} for name, version in prompts]
    if tokens < (request.cap or 0):
        called.detail["asked_max_output_tokens"] = request.cap
        called.detail["capped_by"] = "route" if tokens == decision.output_cap else "model"
    if who.trace_id:
        called.span_id = span_of(call_id)
        called.detail["parent_span_id"] = who.span_id
    tool_fees = bound_microusd(request.hosted, fees) if request.hosted else 0
    bound = AttemptCostBound(target.price, request.prompt_bytes, request.choices, tokens, tool_fees)
    return Reservation(call_id, owner, bound, called)
