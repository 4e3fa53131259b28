"""The targets of one call, in order, without unavailable targets and targets with an open circuit."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

from overnight.circuit_breakers import BreakerUpdate, Circuit, CircuitBreakers, caller_account
from overnight.domain import iso_utc, new_id
from overnight.providers.error_classes import Failure
from overnight.providers.targets import NoCompaction, Target, Targets, Unavailable
from overnight.wire_formats import COMPACT, RESPONSES, Wire, wire_between
from overnight.wire_formats.dialects import other_cap_field
from overnight.wire_formats.responses_answer import has_sealed_items

from ..call_context import CallContext
from ..call_deadlines import MIN_STORE_S, CallDeadlines

PROBE_GRACE_US = 5_000_000


class TargetSelection:
    """The target of the next attempt.

    Attributes:
        target, wire: the selected target; if none was left, the last one considered.
        probe_id: set if the target's circuit is not closed: the call is its probe, or uses it as a last resort.
        skipped_targets: the targets skipped because their circuit is open.
        skip_reasons: the reasons, in the same order.
        fallback: the decision of `fallback_taken`, until it is written.
    """

    target: Target
    wire: Wire

    def __init__(
        self,
        targets: Targets,
        circuits: CircuitBreakers,
        context: CallContext,
        clock: Callable[[], int],
        deadlines: CallDeadlines,
    ) -> None:
        self._targets, self._circuits, self._clock, self._deadlines = targets, circuits, clock, deadlines
        self._context, self._decision, self._who = context, context.decision, context.subject.who
        self._left = list(context.decision.targets)
        self._skipped_accounts: dict[str, str] = {}  # model → account
        self._claim: Circuit | None = None
        self._last_resort_used = self._has_selected = False
        self._came_from: str | None = None
        self._first_provider = ""
        self._changed_caps: set[str] = set()
        self.skipped_targets: list[str] = []
        self.skip_reasons: list[str] = []
        self.probe_id: str | None = None
        self.fallback: dict[str, str] | None = None

    @property
    def has_next(self) -> bool:
        """Whether another target is left."""
        return bool(self._left)

    def select_next(self, reason: str = "") -> bool:
        """Select the next target; False when none is left.

        Args:
            reason: why the call left the previous target.

        Raises:
            Unavailable: no target is available.
        """
        self._claim = self.probe_id = None
        reasons = [reason] if reason else []
        unavailable: Unavailable | None = None
        while self._left:
            model = self._left.pop(0)
            try:
                self._prepare(model)
            except Unavailable as error:
                self._came_from = self._came_from or model
                reasons.append(str(error))
                unavailable = error
                continue
            circuit = self._circuits.open_circuit(self.target.account, model, self.caller_account)
            if circuit is not None and circuit.blocked_until > self._clock():
                reasons.append(self._skip(circuit))
                continue
            self._claim = circuit
            self._select(model, "; ".join(reasons))
            return True
        if unavailable is not None and not self._has_selected and not self._skipped_accounts:
            raise unavailable
        return False

    async def claim_probe(self, deadline: float) -> bool:
        """Claim the probe of the target's circuit, if it needs one. If another call is the probe, select the next target.

        False when no target is left. `deadline` is the call's, a time of the loop. Raises StoreUnavailable.
        """
        circuit = self._claim
        if circuit is None:
            return True
        self._claim = None
        now = self._deadlines.loop.time()
        left_us = int(max(deadline - now, 0) * 1_000_000)
        probe_id = new_id("probe")
        until = self._clock() + left_us + PROBE_GRACE_US
        with self._deadlines.queueing():  # the store's time is not the providers'
            granted = await self._circuits.probe(circuit, probe_id, until, max(deadline, now + MIN_STORE_S))
        if granted:
            self.probe_id = probe_id
            return True
        return self.select_next(self._skip(circuit)) and await self.claim_probe(deadline)

    def is_open(self) -> bool:
        """Whether the circuit of the selected target is open now."""
        return not self._circuits.allows(self.target.account, self.target.model, self.caller_account)

    def allow_return(self) -> None:
        """Allow a return to the target: the call left it because its circuit opened, with attempts left."""
        if self._decision.when_all_open == "wait":
            self._skipped_accounts[self.target.model] = self.target.account

    def change_cap_field(self, failure: Failure, body: bytes) -> bool:
        """Use the other field for the output limit, if the target refused the one that was sent. Once for each target; later
        calls begin with it. Returns whether the target can be called again."""
        target, asked = self.target, self._context.request.cap_field
        if failure.status not in (400, 422) or self.wire.upstream_format.name != "chat":
            return False
        sent = target.dialect.cap_field or (asked if self.wire.client_format.name == "chat" else None) or "max_tokens"
        other = other_cap_field(sent, body)
        if other is None or target.model in self._changed_caps:
            return False
        self._changed_caps.add(target.model)
        self.target = self._targets.learn_cap_field(target, other)
        return True

    @property
    def will_wait(self) -> bool:
        """Whether `select_skipped` would wait."""
        return bool(self._skipped_accounts) and self._decision.when_all_open == "wait"

    async def select_skipped(self, deadline: float) -> bool:
        """Select a target with an open circuit, after all others: wait for it, or use it as a last resort.

        Returns False if the route's policy is `fail`, or the wait ends at `deadline` (a time of the loop).
        """
        policy = self._decision.when_all_open
        if not self._skipped_accounts or policy == "fail":
            return False
        if policy == "wait":
            return await self._wait(deadline)
        degraded = self._decision.degraded
        if self._last_resort_used or (degraded is not None and degraded.answer is not None):
            return False
        self._last_resort_used = True
        model = min(self._skipped_accounts, key=self._blocked_until)
        del self._skipped_accounts[model]
        self._prepare(model)
        self.probe_id = new_id("probe")
        self._select(model, "every circuit is open: the target with the earliest probe is called as a last resort")
        return True

    async def _wait(self, deadline: float) -> bool:
        while self._deadlines.loop.time() < deadline:
            now = self._clock()
            self._left = [model for model in self._skipped_accounts if self._blocked_until(model) <= now]
            if self._left:
                for model in self._left:
                    del self._skipped_accounts[model]
                if self.select_next("waited until its circuit let a call through") and await self.claim_probe(deadline):
                    return True
                continue
            circuits = [self._open_circuit(model) for model in self._skipped_accounts]
            await self._circuits.wait_for_change([each for each in circuits if each is not None], deadline)
        return False

    def retry_after_ms(self) -> int:
        """The milliseconds until the first of the skipped targets may be called again."""
        soonest = min(map(self._blocked_until, self._skipped_accounts), default=0)
        return max(soonest - self._clock(), 0) // 1000

    # ── circuit updates ─────────────────────────────────────────────────────────────────────────────────────────────

    def record_answer(self) -> BreakerUpdate | None:
        """The circuit update for an answer, to be written with the answer; None if nothing changes."""
        target = self.target
        return self._circuits.record_success(target.account, target.model, self._take_probe(), self.caller_account)

    def record_failure(self, failure: Failure) -> BreakerUpdate | None:
        """The circuit update for a failure, to be written with the failure; None if nothing changes."""
        target = self.target
        return self._circuits.record_failure(
            target.account, target.model, failure, self._take_probe(), self.caller_account
        )

    def return_probe(self) -> Coroutine[None, None, None] | None:
        """Return an unused probe, so that other calls may probe; None if the call is no probe."""
        probe_id, target = self._take_probe(), self.target
        if probe_id is None:
            return None
        return self._circuits.release(target.account, target.model, probe_id, self.caller_account)

    def _take_probe(self) -> str | None:
        probe_id, self.probe_id = self.probe_id, None
        return probe_id

    def _prepare(self, model: str) -> None:
        target = self._targets.target(model, self._context.request.price_context, self._who.tenant_id)
        wire = wire_between(self._context.request.format, target.speaks)
        if wire is None:
            if self._context.request.format == COMPACT.name:
                raise NoCompaction(
                    f"{model} is served by {target.provider}, which has no {COMPACT.path}: it accepts "
                    f"{', '.join(target.speaks)}; let the client summarize the conversation with a usual call"
                )
            spoken = ", ".join(target.speaks)
            raise Unavailable(
                f"{model} is served by {target.provider}, which accepts {spoken}, not {self._context.request.format}"
            )
        if wire.upstream_format is wire.client_format and self._request_is_sealed(target, wire):
            raise Unavailable(
                f"the conversation has an encrypted item of {self._first_provider}; {target.provider} cannot read it"
            )
        self.target, self.wire = target, wire

    def _request_is_sealed(self, target: Target, wire: Wire) -> bool:
        """Whether the input has an item that only the provider of the first target can read: a compaction, or reasoning."""
        if wire.upstream_format.name not in (RESPONSES.name, COMPACT.name):
            return False
        self._first_provider = self._first_provider or target.provider
        if self._first_provider == target.provider:
            return False
        return has_sealed_items(bytes(self._context.request.fields["input"]))

    @property
    def caller_account(self) -> str:
        """The account of the caller's own circuit at the target."""
        return self._caller_account_at(self.target.account)

    def _caller_account_at(self, account: str) -> str:
        return caller_account(account, self._who.tenant_id, self._who.key_id)

    def _open_circuit(self, model: str) -> Circuit | None:
        account = self._skipped_accounts[model]
        return self._circuits.open_circuit(account, model, self._caller_account_at(account))

    def _blocked_until(self, model: str) -> int:
        circuit = self._open_circuit(model)
        return circuit.blocked_until if circuit is not None else 0

    def _skip(self, circuit: Circuit) -> str:
        target = self.target
        self._skipped_accounts[target.model] = target.account
        self._came_from = self._came_from or target.model
        named = f"{target.provider}/{target.model}"
        reason = f"the circuit of {named} is open until {iso_utc(circuit.blocked_until)}: {circuit.why}"
        if named not in self.skipped_targets:
            self.skipped_targets.append(named)
            self.skip_reasons.append(reason)
        return reason

    def _select(self, model: str, reason: str) -> None:
        if self._came_from is not None and self._came_from != model:
            self.fallback = {"from": self._came_from, "to": model, "why": reason}
        self._came_from, self._has_selected = model, True
