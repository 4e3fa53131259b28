"""What recorded calls would have cost under another routing: each is decided again by the facts its events hold.

A call that stays at its model costs what it cost, unless the model's price differs. One that moves is priced with the tokens it
used then: another model counts a little differently, says more or less, and begins with a cold cache of its provider.
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
from overnight.wire_formats import wire_between

from .call_facts import asked_text

FAILED, LOST, UNDER_WAY = "failed then", "lost then", "under way"
FROM_CACHE, DEGRADED = "answered from a cache then", "answered without a provider then"
UNMETERED = "its provider told no usage then"


class PastCall(msgspec.Struct):
    """One client's call with all its tries. `left_out` says why it cannot be compared; "" where it can."""

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
        """Add what a try of it was booked at."""
        cost, bound = booked(facts)
        self.cost_microusd += cost or 0
        self.bound_microusd += bound or 0

    def passed_over(self) -> tuple[str, ...]:
        """The targets before the one that answered: they had failed, or could not be called."""
        return self.targets[: self.targets.index(self.model)] if self.model in self.targets else ()


def past_calls(job: JobRow, events: Iterable[Recorded]) -> list[PastCall]:
    """The model calls of a job, in the order in which they began."""
    calls: list[PastCall] = []
    flying: dict[str, PastCall] = {}
    failed: list[PastCall] = []
    for event in events:
        facts, call_id = event.facts, event.facts.call_id or ""
        detail: dict[str, Any] = facts.detail or {}
        if facts.event == "model_called":
            call = _again(failed, event) if detail.get("try", 1) > 1 else None
            if call is None:
                call = _begun(job, event)
                calls.append(call)
            call.tries, call.left_out = call.tries + 1, UNDER_WAY
            flying[call_id] = call
        elif facts.event == "model_succeeded" and call_id in flying:
            _answered(flying.pop(call_id), event)
        elif facts.event == "model_succeeded" and ("cache" in detail or "degraded" in detail):
            given = failed.pop() if failed and failed[-1].name == facts.name and "degraded" in detail else None
            if given is None:
                given = _begun(job, event)
                calls.append(given)
            given.left_out = FROM_CACHE if "cache" in detail else DEGRADED
        elif facts.event in ("model_failed", "model_lost") and call_id in flying:
            call = flying.pop(call_id)
            call.book(facts)
            call.left_out = FAILED if facts.event == "model_failed" else LOST
            failed.append(call)
    return calls


def _again(failed: list[PastCall], event: Recorded) -> PastCall | None:
    """The call whose next try this is: a failed try is settled in the transaction that begins the next one."""
    for at in range(len(failed) - 1, -1, -1):
        if failed[at].name == event.facts.name and failed[at].route == event.facts.route:
            return failed.pop(at)
    return None


def _begun(job: JobRow, event: Recorded) -> PastCall:
    said = event.facts
    detail: dict[str, Any] = said.detail or {}
    decision: dict[str, Any] = said.decision or {}
    facts = CallFacts(
        model=detail.get("requested_model"),
        task=said.task_id,
        agent=said.agent_id,
        workflow=said.workflow,
        tags=tuple(detail.get("tags", ())),
        headers=detail.get("headers", {}),
        session=said.session_id,
        job=_named(job),
        format=detail.get("format", "chat"),
    )
    targets = tuple(decision.get("targets", ()))
    return PastCall(event.at, event.tenant_id, facts, said.name, said.route or "", targets, said.input_ref)


def _named(job: JobRow) -> str | None:
    """What its calls called it: job code its id, a foreign runtime the id it gave, or nothing."""
    if job.runtime != "foreign":
        return job.job_id
    unnamed = job.unattributed or (job.external_id or "").startswith("session:")
    return None if unnamed else job.external_id or job.job_id


def _answered(call: PastCall, event: Recorded) -> None:
    said = event.facts
    call.model, call.provider = said.model or "", said.provider or ""
    # What it was settled at is a bound, and its tokens a guess: no move would compare like with like.
    call.book(said)
    call.left_out = UNMETERED if booked(said)[1] else ""
    call.input_tokens, call.cached_tokens = said.input_tokens or 0, said.cached_tokens or 0
    call.output_tokens = said.output_tokens or 0


class Move(msgspec.Struct):
    """Calls with the same way then and now. `now_microusd` is None where the price of the model now is not known."""

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
        if SCRIPTED in (self.provider_then, self.provider_now):  # it plays whichever provider would be asked
            return self.model_then != self.model_now
        return (self.model_then, self.provider_then) != (self.model_now, self.provider_now)


class LeftOut(msgspec.Struct):
    """Calls that are in no sum, and what they cost then; beside that, what those of unknown cost may have cost at most."""

    why: str
    calls: int = 0
    cost_microusd: int = 0
    bound_microusd: int = 0


class _TextNeeded(Exception):
    pass


def _later() -> str:
    raise _TextNeeded


class Rerouting:
    """Takes recorded calls and keeps the sums: `moves`, `left_out`, `unpriced` (model → calls), `erased` (prompts that a tier
    would have weighed and that are no longer kept; they counted as simple ones)."""

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
        self._moves: dict[tuple[str, str, str, str, str, str], Move] = {}
        self._left_out: dict[str, LeftOut] = {}
        self.unpriced: dict[str, int] = {}
        self.erased = 0

    async def take(self, call: PastCall) -> None:
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
            self._leave_out(call, f"nobody serves {model} now")
        elif wire_between(call.facts.format, tuple(provider.apis)) is None:
            self._leave_out(call, f"{model} does not take {call.facts.format} now")
        else:
            self._compare(call, decision.route, model, provider.name)

    async def _decided(self, call: PastCall) -> RouteDecision:
        try:
            return self._decide(msgspec.structs.replace(call.facts, text=_later))
        except _TextNeeded:
            text = await self._text(call)
            return self._decide(msgspec.structs.replace(call.facts, text=lambda: text))

    async def _text(self, call: PastCall) -> str:
        if call.input_ref is not None:
            try:
                kept = await self._ledger.content(call.tenant_id, call.input_ref)
                return asked_text(kept) if isinstance(kept, list) else ""
            except NotFound:
                pass  # erased by retention: counted below, and said
        self.erased += 1
        return ""

    def _leave_out(self, call: PastCall, why: str) -> None:
        left = self._left_out.setdefault(why, LeftOut(why))
        left.calls += 1
        left.cost_microusd += call.cost_microusd
        left.bound_microusd += call.bound_microusd

    def _compare(self, call: PastCall, route: str, model: str, provider: str) -> None:
        key = (call.route, call.model, call.provider, route, model, provider)
        move = self._moves.setdefault(key, Move(*key))
        move.calls += 1
        move.then_microusd += call.cost_microusd
        cost = self._cost(call, model)
        if cost is None:
            self.unpriced[model] = self.unpriced.get(model, 0) + 1
            move.now_microusd = None
        elif move.now_microusd is not None:
            move.now_microusd += cost

    def _cost(self, call: PastCall, model: str) -> int | None:
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

    def moves(self) -> Iterator[Move]:
        """Those that move first, then by what they cost; dearest first."""
        yield from sorted(self._moves.values(), key=lambda each: (not each.moved, -each.then_microusd, each.model_then))

    def left_out(self) -> list[LeftOut]:
        return sorted(self._left_out.values(), key=lambda each: each.why)


def _price(routing: Routing, book: PriceBook, model: str) -> ModelPrice:
    """Raises UnknownPrice."""
    provider = routing.provider_for(model)
    return book.price(model, provider.name if provider is not None else None)


def _priced(call: PastCall, price: ModelPrice) -> int:
    return price.cost_microusd(call.input_tokens, call.cached_tokens, call.output_tokens)
