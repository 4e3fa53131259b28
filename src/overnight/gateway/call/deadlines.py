"""The time of one call: what its providers may take, and what it may spend in our own queues and store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

from overnight.domain import StoreUnavailable
from overnight.domain.policies import RouteDecision
from overnight.providers.error_classes import Failure

LEAST_TRY = 1 / 20
"""Of the call's total. With less left, a further try could not get an answer, so none is made or paid."""

TELLING_TRY = 1 / 4
"""Of the call's total. A try that had less and timed out says nothing about its target."""

LEAST_STORE_S = 1.0
"""How long the store may take, also when the queue time is used up."""

LONGEST_PATIENCE_S = 3600.0
"""Queue time of job code: nobody waits for it at the other end of a socket."""


@asynccontextmanager
async def store_answers_by(until: float) -> AsyncGenerator[None]:
    """Bound a stage of a call that waits for nothing but the store. Raises StoreUnavailable at `until`, a time of the loop."""
    try:
        async with asyncio.timeout_at(until):
            yield
    except TimeoutError:
        raise StoreUnavailable("the store did not answer in time") from None


class CallTime:
    """`deadline` (a time of the loop) is the providers' time: it moves on by what the call spends in queues and in the store.

    `total_s`: seconds from start to deadline. `queue_left`: what is left of `queue_s`, the queue time. `sent_at`: when the
    present try went out, None before. `try_s`: how long it may take. A call that `waits_long` has an hour of queue time.
    """

    def __init__(self, decision: RouteDecision, *, waits_long: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.total_s = decision.deadline_ms / 1000
        self.deadline = self.loop.time() + self.total_s
        self.queue_s = decision.time_limits.queue_ms / 1000
        self.queue_left = LONGEST_PATIENCE_S if waits_long else self.queue_s
        self.sent_at: float | None = None
        self.queued_at = 0.0
        self._is_queueing = False
        self.try_s = 0.0

    @contextmanager
    def queueing(self, *, counts: bool = True) -> Generator[None]:
        """Time in queues and in the store is not the providers': it moves the deadline on, and `counts` as queue time."""
        began = self.queued_at = self.loop.time()
        self._is_queueing = True
        try:
            yield
        finally:
            self._is_queueing = False
            spent = self.loop.time() - began
            self.deadline += spent
            if counts:
                self.queue_left -= spent

    def queue_deadline(self) -> float:
        """Until when the present stay in a queue may last, a time of the loop."""
        return self.queued_at + self.queue_left

    def store_deadline(self) -> float:
        """Until when the call may wait for the store, a time of the loop: its queue time, and a second at least."""
        now = self.loop.time()
        return max((self.queued_at if self._is_queueing else now) + self.queue_left, now + LEAST_STORE_S)

    @contextmanager
    def asking_store(self) -> Generator[None]:
        """Within queue time that does not count, the time in which the store did not answer counts all the same."""
        began = self.loop.time()
        try:
            yield
        except StoreUnavailable:
            self.queue_left -= self.loop.time() - began
            raise

    def circuit_deadline(self) -> float:
        """Until when the call may wait for a circuit: a provider is to blame for it, so this is within the deadline."""
        return min(self.deadline, self.loop.time() + self.queue_s)

    @property
    def was_sent(self) -> bool:
        """Whether the present try has gone out to its provider."""
        return self.sent_at is not None

    def says_nothing(self, failure: Failure) -> bool:
        """Whether the failure is ours: no connection was free, or too little time was left for an answer."""
        timed_out = failure.error_class == "timeout" or failure.code == "connect_timeout"
        return failure.error_class == "gateway_busy" or (timed_out and self.try_s < self.total_s * TELLING_TRY)
