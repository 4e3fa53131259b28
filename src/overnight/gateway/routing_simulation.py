"""Simulation of another routing on recorded calls: each is decided again from the facts in its events, and priced.

A call that keeps its model keeps its cost, unless the price of the model has changed. A call with a new model is priced with
its recorded tokens. That is an estimate: another model counts tokens differently, and its provider's cache is cold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from overnight.brain import Routing
from overnight.domain import CallFacts, Event, NotFound, Recorded, booked
from overnight.domain.policies import RouteDecision
from overnight.ledger import JobRow, Ledger
from overnight.pricing.price_book import ModelPrice, PriceBook, UnknownPrice
from overnight.providers.targets import SCRIPTED
from overnight.wire_formats import routed_format, wire_between

from .call_facts import last_user_text

FAILED, LOST, UNDER_WAY = "failed", "lost", "in flight"
FROM_CACHE, DEGRADED = "answered from a cache then", "answered without a provider then"
UNMETERED = "its provider reported no usage then"


class RecordedCall(msgspec.Struct):
    """One call of a client with all of its attempts. `left_out`: why it cannot be compared; "" if it can."""

    at: int
    tenant_id: str
    facts: CallFacts
    name: str | None
    route: str
    targets: tuple[str, ...]
    input_ref: str | None
    tries: int = 0
    model: str = ""
    provider: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_microusd: int = 0
    bound_microusd: int = 0
    left_out: str = UNDER_WAY

    def book(self, facts: Event) -> None:
        """Add the booked cost and bound of one attempt."""
        cost, bound = booked(facts)
        self.cost_microusd += cost or 0
        self.bound_microusd += bound or 0

    def passed_over(self) -> tuple[str, ...]:
        """The targets before the one that answered: they failed, or could not be called."""
        return self.targets[: self.targets.index(self.model)] if self.model in self.targets else ()


def recorded_calls(job: JobRow, events: Iterable[Recorded]) -> list[RecordedCall]:
    """The model calls of a job, in the order of their start."""
    calls: list[RecordedCall] = []
    in_flight: dict[str, RecordedCall] = {}
    failed: list[RecordedCall] = []
    for event in events:
        facts, call_id = event.facts, event.facts.call_id or ""
        detail: dict[str, Any] = facts.detail or {}
        if facts.event == "model_called":
            call = _again(failed, event) if detail.get("try", 1) > 1 else None
            if call is None:
                call = _begun(job, event)
                calls.append(call)
            call.tries, call.left_out = call.tries + 1, UNDER_WAY
            in_flight[call_id] = call
        elif facts.event == "model_succeeded" and call_id in in_flight:
            _answered(in_flight.pop(call_id), event)
        elif facts.event == "model_succeeded" and ("cache" in detail or "degraded" in detail):
            given = failed.pop() if failed and failed[-1].name == facts.name and "degraded" in detail else None
            if given is None:
                given = _begun(job, event)
                calls.append(given)
            given.left_out = FROM_CACHE if "cache" in detail else DEGRADED
        elif facts.event in ("model_failed", "model_lost") and call_id in in_flight:
            call = in_flight.pop(call_id)
            call.book(facts)
            call.left_out = FAILED if facts.event == "model_failed" else LOST
            failed.append(call)
    return calls


def _again(failed: list[RecordedCall], event: Recorded) -> RecordedCall | None:
    """The call of a repeated attempt: a failed attempt is settled in the transaction that admits the next one."""
    for at in range(len(failed) - 1, -1, -1):
        if failed[at].name == event.facts.name and failed[at].route == event.facts.route:
            return failed.pop(at)
    return None


def _begun(job: JobRow, event: Recorded) -> RecordedCall:
    called = event.facts
    detail: dict[str, Any] = called.detail or {}
    decision: dict[str, Any] = called.decision or {}
    claimed = detail.get("claimed", ())
    facts = CallFacts(
        model=detail.get("requested_model"),
        task=called.task_id,
        agent=called.agent_id,
        workflow=called.workflow,
        tags=tuple(detail.get("tags", ())),
        headers=detail.get("headers", {}),
        session=called.session_id,
        job=_job_name(job),
        # Without a claim, the bindings of a key are the agent and workflow of the event, whether there was a key or not.
        has_key=bool(claimed),
        key_agent=None if "agent" in claimed else called.agent_id,
        key_workflow=None if "workflow" in claimed else called.workflow,
        format=routed_format(detail.get("format", "chat")),
    )
    targets = tuple(decision.get("targets", ()))
    return RecordedCall(
        at=event.at,
        tenant_id=event.tenant_id,
        facts=facts,
        name=called.name,
        route=called.route or "",
        targets=targets,
        input_ref=called.input_ref,
    )


def _job_name(job: JobRow) -> str | None:
    """The name of the job in its calls: the job id for job code, the external id for an external job, or None."""
    if job.runtime != "foreign":
        return job.job_id
    unnamed = job.unattributed or (job.external_id or "").startswith("session:")
    return None if unnamed else job.external_id or job.job_id


def _answered(call: RecordedCall, event: Recorded) -> None:
    facts = event.facts
    call.model, call.provider = facts.model or "", facts.provider or ""
    # With a bound, cost and tokens are estimates, so a comparison would be meaningless.
    call.book(facts)
    call.left_out = UNMETERED if booked(facts)[1] else ""
    call.input_tokens, call.cached_tokens = facts.input_tokens or 0, facts.cached_tokens or 0
    call.output_tokens = facts.output_tokens or 0


class RouteChange(msgspec.Struct):
    """Calls with the same old and new route, model and provider. `now_microusd` is None if the new price is unknown."""

    route_then: str
    model_then: str
    provider_then: str
    route_now: str
    model_now: str
    provider_now: str
    calls: int = 0
    then_microusd: int = 0
    now_microusd: int | None = 0

    @property
    def moved(self) -> bool:
        if SCRIPTED in (self.provider_then, self.provider_now):  # it stands in for every provider
            return self.model_then != self.model_now
        return (self.model_then, self.provider_then) != (self.model_now, self.provider_now)


class ExcludedCalls(msgspec.Struct):
    """Calls that are excluded from the sums: the reason, their cost, and the bound of those with unknown cost."""

    why: str
    calls: int = 0
    cost_microusd: int = 0
    bound_microusd: int = 0


class _TextNeeded(Exception):
    pass


def _later() -> str:
    raise _TextNeeded


class RoutingSimulation:
    """The simulation. Add recorded calls with `take`, then read the sums.

    Attributes:
        unpriced: calls by model whose price is unknown.
        erased: calls whose prompt was erased, although a tier depends on it. They count as simple ones.
    """

    def __init__(
        self,
        ledger: Ledger,
        routing: Routing,
        prices: PriceBook,
        decide: Callable[[CallFacts], RouteDecision] | None = None,
        *,
        present: Routing,
        present_prices: PriceBook,
    ) -> None:
        self._ledger, self._routing, self._prices = ledger, routing, prices
        self._present, self._present_prices = present, present_prices
        self._decide = decide or routing.decide
        self._moves: dict[tuple[str, str, str, str, str, str], RouteChange] = {}
        self._left_out: dict[str, ExcludedCalls] = {}
        self.unpriced: dict[str, int] = {}
        self.erased = 0

    async def take(self, call: RecordedCall) -> None:
        """Decide one call again, and add it to the sums."""
        if call.left_out:
            self._leave_out(call, call.left_out)
            return
        try:
            decision = await self._decided(call)
        except LookupError as error:
            self._leave_out(call, f"refused now: {error}")
            return
        passed_over = call.passed_over()
        model = next((target for target in decision.targets if target not in passed_over), None)
        provider = self._routing.provider_for(model) if model is not None else None
        if model is None:
            self._leave_out(call, f"route {decision.route} has no target left now")
        elif provider is None:
            self._leave_out(call, f"no provider serves {model} now")
        elif wire_between(call.facts.format, tuple(provider.apis)) is None:
            self._leave_out(call, f"{model} does not take {call.facts.format} now")
        else:
            self._compare(call, decision.route, model, provider.name)

    async def _decided(self, call: RecordedCall) -> RouteDecision:
        try:
            return self._decide(msgspec.structs.replace(call.facts, text=_later))
        except _TextNeeded:
            text = await self._text(call)
            return self._decide(msgspec.structs.replace(call.facts, text=lambda: text))

    async def _text(self, call: RecordedCall) -> str:
        if call.input_ref is not None:
            try:
                kept = await self._ledger.content(call.tenant_id, call.input_ref)
                return last_user_text(kept) if isinstance(kept, list) else ""
            except NotFound:
                pass  # erased by retention; counted below
        self.erased += 1
        return ""

    def _leave_out(self, call: RecordedCall, why: str) -> None:
        left = self._left_out.setdefault(why, ExcludedCalls(why))
        left.calls += 1
        left.cost_microusd += call.cost_microusd
        left.bound_microusd += call.bound_microusd

    def _compare(self, call: RecordedCall, route: str, model: str, provider: str) -> None:
        key = (call.route, call.model, call.provider, route, model, provider)
        move = self._moves.get(key)
        if move is None:
            move = self._moves[key] = RouteChange(
                route_then=call.route,
                model_then=call.model,
                provider_then=call.provider,
                route_now=route,
                model_now=model,
                provider_now=provider,
            )
        move.calls += 1
        move.then_microusd += call.cost_microusd
        cost = self._cost(call, model)
        if cost is None:
            self.unpriced[model] = self.unpriced.get(model, 0) + 1
            move.now_microusd = None
        elif move.now_microusd is not None:
            move.now_microusd += cost

    def _cost(self, call: RecordedCall, model: str) -> int | None:
        try:
            now = _priced(call, _price(self._routing, self._prices, model))
        except UnknownPrice:
            return None
        if model != call.model:
            return now
        try:
            same = now == _priced(call, _price(self._present, self._present_prices, model))
        except UnknownPrice:
            same = False
        return call.cost_microusd if same else now

    def moves(self) -> Iterator[RouteChange]:
        """Changed calls first, then by cost in descending order."""
        yield from sorted(self._moves.values(), key=lambda each: (not each.moved, -each.then_microusd, each.model_then))

    def left_out(self) -> list[ExcludedCalls]:
        return sorted(self._left_out.values(), key=lambda each: each.why)


def _price(routing: Routing, book: PriceBook, model: str) -> ModelPrice:
    """Raises UnknownPrice."""
    provider = routing.provider_for(model)
    return book.price(model, provider.name if provider is not None else None)


def _priced(call: RecordedCall, price: ModelPrice) -> int:
    return price.cost_microusd(call.input_tokens, call.cached_tokens, call.output_tokens)
