"""A call's way through the targets of its decision: past those that cannot be called and those whose circuit is open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from overnight.circuit_breakers import Circuit, caller_account
from overnight.domain import Attribution, iso_utc, new_id
from overnight.providers.targets import Target, Unavailable
from overnight.wire_formats import Wire, wire_between

from .deadlines import LEAST_STORE_S

if TYPE_CHECKING:
    from overnight.domain.policies import RouteDecision
    from overnight.wire_formats.request import Request

    from ..gateway import Gateway

PROBE_GRACE_US = 5_000_000


class Way:
    """`target` and `wire` are where the call heads for; of a way that found none, the last one looked at.

    `call` is set where the target's circuit is not closed: as its probe, or as a last resort. `passed` are the targets
    passed over because their circuit is open, and `shut` says why. `moved` is what `fallback_taken` has to say, until it
    is written.
    """

    target: Target
    wire: Wire

    def __init__(
        self,
        gateway: Gateway,
        request: Request,
        decision: RouteDecision,
        who: Attribution,
        queueing: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._queueing = queueing
        self._targets, self._circuits, self._clock = gateway.targets, gateway.circuits, gateway.store.clock
        self._request, self._decision, self._who = request, decision, who
        self._left = list(decision.targets)
        self._closed_off: dict[str, str] = {}  # model → account
        self._claim: Circuit | None = None
        self._resorted = self._arrived = False
        self._came_from: str | None = None
        self.passed: list[str] = []
        self.shut: list[str] = []
        self.call: str | None = None
        self.moved: dict[str, str] | None = None

    @property
    def has_more(self) -> bool:
        return bool(self._left)

    def next(self, why: str = "") -> bool:
        """Head for the next target. False when there is none left; Unavailable when not one can ever be called.
        `why` the one before was left."""
        self._claim = self.call = None
        reasons = [why] if why else []
        unavailable: Unavailable | None = None
        while self._left:
            model = self._left.pop(0)
            try:
                self._head_for(model)
            except Unavailable as error:
                self._came_from = self._came_from or model
                reasons.append(str(error))
                unavailable = error
                continue
            circuit = self._circuits.open_circuit(self.target.account, model, self.own)
            if circuit is not None and circuit.blocked_until > self._clock():
                reasons.append(self._pass_over(circuit))
                continue
            self._claim = circuit
            self._arrive(model, "; ".join(reasons))
            return True
        if unavailable is not None and not self._arrived and not self._closed_off:
            raise unavailable
        return False

    async def ready(self, deadline: float) -> bool:
        """Ask to be the probe, where the circuit wants one, and go on where another one is. False when no target is left.
        `deadline` is the call's, a time of the loop."""
        circuit = self._claim
        if circuit is None:
            return True
        self._claim = None
        loop = asyncio.get_running_loop()
        left_us = int(max(deadline - loop.time(), 0) * 1_000_000)
        call = new_id("probe")
        until = self._clock() + left_us + PROBE_GRACE_US
        with self._queueing():  # the store's time is not the providers'
            granted = await self._circuits.probe(circuit, call, until, max(deadline, loop.time() + LEAST_STORE_S))
        if granted:
            self.call = call
            return True
        return self.next(self._pass_over(circuit)) and await self.ready(deadline)

    def is_open(self) -> bool:
        return not self._circuits.allows(self.target.account, self.target.model, self.own)

    def comes_back(self) -> None:
        """The target was left because its circuit opened, not because it had its tries: wait for it too."""
        if self._decision.when_all_open == "wait":
            self._closed_off[self.target.model] = self.target.account

    @property
    def will_wait(self) -> bool:
        """Would `otherwise` wait?"""
        return bool(self._closed_off) and self._decision.when_all_open == "wait"

    async def otherwise(self, deadline: float) -> bool:
        """No target is left but those whose circuit is open: wait for one, ask one all the same, or give up."""
        policy = self._decision.when_all_open
        if not self._closed_off or policy == "fail":
            return False
        if policy == "wait":
            return await self._wait(deadline)
        degraded = self._decision.degraded
        if self._resorted or (degraded is not None and degraded.answer is not None):
            return False
        self._resorted = True
        model = min(self._closed_off, key=self._blocked_until)
        del self._closed_off[model]
        self._head_for(model)
        self.call = new_id("probe")
        self._arrive(model, "every circuit is open: the one that is tried again soonest is asked as a last resort")
        return True

    async def _wait(self, deadline: float) -> bool:
        loop = asyncio.get_running_loop()
        while loop.time() < deadline:
            now = self._clock()
            self._left = [model for model in self._closed_off if self._blocked_until(model) <= now]
            if self._left:
                for model in self._left:
                    del self._closed_off[model]
                if self.next("waited until its circuit let a call through") and await self.ready(deadline):
                    return True
                continue
            circuits = [self._open_circuit(model) for model in self._closed_off]
            await self._circuits.change([each for each in circuits if each is not None], deadline)
        return False

    def retry_after_ms(self) -> int:
        """When the first of the targets that were passed over may be asked again."""
        soonest = min(map(self._blocked_until, self._closed_off), default=0)
        return max(soonest - self._clock(), 0) // 1000

    def _head_for(self, model: str) -> None:
        target = self._targets.target(model, self._request.price_context, self._who.tenant_id)
        wire = wire_between(self._request.format, target.speaks)
        if wire is None:
            spoken = ", ".join(target.speaks)
            raise Unavailable(
                f"{model} is served by {target.provider}, which speaks {spoken}, not {self._request.format}"
            )
        self.target, self.wire = target, wire

    @property
    def own(self) -> str:
        """The account of the caller's own circuit at the target."""
        return self._own_at(self.target.account)

    def _own_at(self, account: str) -> str:
        return caller_account(account, self._who.tenant_id, self._who.key_id)

    def _open_circuit(self, model: str) -> Circuit | None:
        account = self._closed_off[model]
        return self._circuits.open_circuit(account, model, self._own_at(account))

    def _blocked_until(self, model: str) -> int:
        circuit = self._open_circuit(model)
        return circuit.blocked_until if circuit is not None else 0

    def _pass_over(self, circuit: Circuit) -> str:
        target = self.target
        self._closed_off[target.model] = target.account
        self._came_from = self._came_from or target.model
        named = f"{target.provider}/{target.model}"
        why = f"the circuit of {named} is open until {iso_utc(circuit.blocked_until)}: {circuit.why}"
        if named not in self.passed:
            self.passed.append(named)
            self.shut.append(why)
        return why

    def _arrive(self, model: str, why: str) -> None:
        if self._came_from is not None and self._came_from != model:
            self.moved = {"from": self._came_from, "to": model, "why": why}
        self._came_from, self._arrived = model, True
