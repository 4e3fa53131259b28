"""The account of one call: its budgets, its cost, and its failed attempt that is not settled yet."""

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
    """The account of one call, in microdollars.

    Attributes:
        cost_microusd, bound_microusd: the cost of its settled attempts, and the bound beyond that cost.
        remaining_microusd: the lowest remaining amount of its money budgets, as last known; None without such a budget.
        unsettled: the result of a failed attempt, until it is durable.
    """

    __slots__ = (
        "_deadlines", "_limits", "_rates", "_services", "_tenant_id", "bound_microusd", "cost_microusd",
        "remaining_microusd", "unsettled",
    )  # fmt: skip

    def __init__(self, services: AdmissionServices, deadlines: CallDeadlines, tenant_id: str) -> None:
        self._services, self._deadlines, self._tenant_id = services, deadlines, tenant_id
        self._limits: Sequence[Limit] = ()
        self._rates: Sequence[Rate] = ()
        self.cost_microusd = 0
        self.bound_microusd = 0
        self.remaining_microusd: int | None = None
        self.unsettled: AttemptResult | None = None

    def draw(self, granted: Granted) -> None:
        """Set the budgets and rate limits of the next attempt."""
        self._limits, self._rates, self.remaining_microusd = granted.limits, granted.rates, granted.remaining_microusd

    def hold(self, result: AttemptResult) -> None:
        """Hold the result of a failed attempt: the next admission settles it, or the call does so before it waits."""
        self.unsettled = result

    def take(self) -> AttemptResult | None:
        """Remove and return the held result."""
        result, self.unsettled = self.unsettled, None
        return result

    def settled_by_admission(self, booked: Booked) -> None:
        """Note that an admission has settled the held result at `booked`."""
        self._count(booked)
        if self.unsettled is not None:
            self._is_written(self.unsettled)

    async def settle_held(self, subject: Subject, request: Request) -> None:
        """Settle a failed attempt before the call waits: other calls may wait for its reservation.

        Raises StoreUnavailable; the settlement is then deferred.
        """
        result = self.take()
        if result is not None:
            await self.settle(subject, request, result, last=False)

    async def settle(self, subject: Subject, request: Request, result: AttemptResult, *, last: bool = True) -> Settled:
        """Settle an attempt. `last`: whether the call ends with it.

        Raises StoreUnavailable; the settlement is then deferred.
        """
        services, deadlines = self._services, self._deadlines
        command = self._command(subject, result, last=last)
        settled = await services.settlements.write(command, deadlines.loop.time() + deadlines.queue_s)
        self.remaining_microusd = settled.remaining_microusd
        warn(settled.alarmed)
        if last:
            services.loop_guard.request_answered(subject, request, result)
        self._is_written(result)
        self._count(booked_amounts(settled.recorded))
        return settled

    def defer_held(self, subject: Subject) -> None:
        """Defer the settlement of the held result until the store is available."""
        result = self.take()
        if result is not None:
            self._services.settlements.defer(result.call_id, self._command(subject, result, last=True))

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
        """Release the waiting calls: the result is durable, so its reservation has ended."""
        services = self._services
        services.settlements.closed(result.call_id)
        services.queue.settled(lambda: keys_of(self._tenant_id, self._limits, self._rates))
        if result.breaker_update is not None:
            services.breakers_written()


def keys_of(tenant_id: str, limits: Iterable[Limit], rates: Iterable[Rate]) -> Iterable[Key]:
    """The keys of budgets and rate limits in the queues."""
    yield from ((tenant_id, limit.scope, limit.scope_id) for limit in limits)
    yield from (rate.key for rate in rates)
