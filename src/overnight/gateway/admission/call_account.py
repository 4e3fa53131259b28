"""The account of one call: what it draws on, what it has cost, and the failed attempt that is not settled yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from overnight.budgets import Booked, Key, Limit, Rate
from overnight.wire_formats.request import Request

from ..call_deadlines import CallDeadlines
from ..identity import Subject
from .admission_outcomes import Granted
from .attempt_result import AttemptResult
from .commands import Settle, Settled
from .cost_alerts import warn
from .services import AdmissionServices
from .settlement import booked_amounts


class CallAccount:
    """The money of one call, in microdollars.

    Attributes:
        cost_microusd, bound_microusd: what its settled attempts cost, and what they may have cost beyond that.
        left_microusd: what the budget with least left in money has left, as last known; None where no such budget holds.
        unsettled: the result of a failed attempt, until it is durable.
    """

    __slots__ = (
        "_deadlines", "_limits", "_rates", "_services", "_tenant_id", "bound_microusd", "cost_microusd",
        "left_microusd", "unsettled",
    )  # fmt: skip

    def __init__(self, services: AdmissionServices, deadlines: CallDeadlines, tenant_id: str) -> None:
        self._services, self._deadlines, self._tenant_id = services, deadlines, tenant_id
        self._limits: Sequence[Limit] = ()
        self._rates: Sequence[Rate] = ()
        self.cost_microusd = 0
        self.bound_microusd = 0
        self.left_microusd: int | None = None
        self.unsettled: AttemptResult | None = None

    def draw(self, granted: Granted) -> None:
        """The next attempt draws on these budgets and rates."""
        self._limits, self._rates, self.left_microusd = granted.limits, granted.rates, granted.left_microusd

    def hold(self, result: AttemptResult) -> None:
        """Keep the result of a failed attempt: it is settled by the admission of the next one, or before the call waits."""
        self.unsettled = result

    def take(self) -> AttemptResult | None:
        """The held result; it is held no longer."""
        result, self.unsettled = self.unsettled, None
        return result

    def settled_by_admission(self, booked: Booked) -> None:
        """An admission has settled the held result at `booked`."""
        self._count(booked)
        if self.unsettled is not None:
            self._is_written(self.unsettled)

    async def settle_held(self, subject: Subject, request: Request) -> None:
        """Write a failed attempt before the call waits for anything: others may wait for what it holds.

        Raises StoreUnavailable; the settlement is then due and is written later.
        """
        result = self.take()
        if result is not None:
            await self.settle(subject, request, result, last=False)

    async def settle(self, subject: Subject, request: Request, result: AttemptResult, *, last: bool = True) -> Settled:
        """Write the end of the call; not `last`: the end of an attempt after which the call goes on.

        Raises StoreUnavailable; the settlement is then due and is written later.
        """
        services, deadlines = self._services, self._deadlines
        command = self._command(subject, result, last=last)
        settled = await services.settlements.write(command, deadlines.loop.time() + deadlines.queue_s)
        self.left_microusd = settled.left_microusd
        warn(settled.alarmed)
        if last:
            services.loop_guard.request_answered(subject, request, result)
        self._is_written(result)
        self._count(booked_amounts(settled.recorded))
        return settled

    def owe_held(self, subject: Subject) -> None:
        """Have the held result written when the store is back."""
        result = self.take()
        if result is not None:
            self._services.settlements.owe(result.call_id, self._command(subject, result, last=True))

    def _command(self, subject: Subject, result: AttemptResult, *, last: bool) -> Settle:
        return Settle(
            subject=subject,
            result=result,
            limits=self._limits,
            rates=self._rates,
            alarms=self._services.cost_alerts.alarms(subject, self._limits),
            last=last,
        )

    def _count(self, booked: Booked) -> None:
        self.cost_microusd += booked.cost_microusd
        self.bound_microusd += booked.bound_microusd

    def _is_written(self, result: AttemptResult) -> None:
        """The result is durable: others may have room now."""
        services = self._services
        services.settlements.closed(result.call_id)
        services.queue.settled(lambda: keys_of(self._tenant_id, self._limits, self._rates))
        if result.breaker_update is not None:
            services.breakers_written()


def keys_of(tenant_id: str, limits: Iterable[Limit], rates: Iterable[Rate]) -> Iterable[Key]:
    """The rows of budgets and rates, as the queues name them."""
    yield from ((tenant_id, limit.scope, limit.scope_id) for limit in limits)
    yield from (rate.key for rate in rates)
