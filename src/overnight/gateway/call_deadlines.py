"""The deadlines of one call: how long its providers may take, and how long it may wait in queues and for the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType

from overnight.domain import StoreUnavailable
from overnight.domain.policies import RouteDecision
from overnight.providers.error_classes import Failure

MIN_ATTEMPT_SHARE = 1 / 20
"""Of the call's total. With less left, a further attempt could not get an answer, so none is made or paid."""

MIN_CONCLUSIVE_SHARE = 1 / 4
"""Of the call's total. An attempt that had less and timed out says nothing about its target."""

MIN_STORE_S = 1.0
"""How long the store may take, also when the queue time is used up."""

JOB_QUEUE_S = 3600.0
"""Queue time of job code: no client waits for it at the other end of a socket."""


@asynccontextmanager
async def store_answers_by(until: float) -> AsyncGenerator[None]:
    """Bound a stage of a call that waits for the store alone. Raises StoreUnavailable at `until`, a time of the loop."""
    try:
        async with asyncio.timeout_at(until):
            yield
    except TimeoutError:
        raise StoreUnavailable("the store did not answer in time") from None


class CallDeadlines:
    """The clock of one call. Times are those of `loop`, in seconds.

    Attributes:
        total_s: seconds that the providers may take, from start to deadline.
        deadline: the end of the providers' time. It moves on by what the call spends in queues and in the store.
        queue_s: the queue time of the route, in seconds.
        queue_left_s: what is left of the queue time. Calls of job code have an hour.
        queued_at: when the present stay in a queue began.
        is_queueing: whether the call is in a queue now.
    """

    __slots__ = ("deadline", "is_queueing", "loop", "queue_left_s", "queue_s", "queued_at", "total_s")

    def __init__(self, decision: RouteDecision, loop: asyncio.AbstractEventLoop, *, waits_long: bool) -> None:
        self.loop = loop
        self.total_s = decision.deadline_ms / 1000
        self.deadline = loop.time() + self.total_s
        self.queue_s = decision.time_limits.queue_ms / 1000
        self.queue_left_s = JOB_QUEUE_S if waits_long else self.queue_s
        self.queued_at = 0.0
        self.is_queueing = False

    def queueing(self, *, counts: bool = True) -> QueueTime:
        """Measure time in queues and in the store: it moves the deadline on, and `counts` as queue time."""
        return QueueTime(self, counts=counts)

    def restart_queueing(self) -> None:
        """Do not count the present stay so far as queue time: the call waited for a provider."""
        self.queued_at = self.loop.time()

    def queue_deadline(self) -> float:
        """When the present stay in a queue must end."""
        return self.queued_at + self.queue_left_s

    def store_deadline(self) -> float:
        """Until when the call may wait for the store, a time of the loop: its queue time, and a second at least."""
        now = self.loop.time()
        return max((self.queued_at if self.is_queueing else now) + self.queue_left_s, now + MIN_STORE_S)

    @contextmanager
    def asking_store(self) -> Generator[None]:
        """Within queue time that does not count, count the time in which the store did not answer."""
        began = self.loop.time()
        try:
            yield
        except StoreUnavailable:
            self.queue_left_s -= self.loop.time() - began
            raise

    def circuit_deadline(self) -> float:
        """Until when the call may wait for a circuit: a provider is to blame for it, so this is within the deadline."""
        return min(self.deadline, self.loop.time() + self.queue_s)

    def remaining_s(self) -> float:
        """What is left of the providers' time; negative after the deadline."""
        return self.deadline - self.loop.time()

    def end_by(self, until: float) -> None:
        """Bring the deadline forward to `until`, where that is earlier."""
        self.deadline = min(self.deadline, until)

    def is_inconclusive(self, failure: Failure, attempt_s: float) -> bool:
        """Whether an attempt that had `attempt_s` seconds failed by our own limits: no connection was free, or too little time
        was left for an answer."""
        timed_out = failure.error_class == "timeout" or failure.code == "connect_timeout"
        too_short = attempt_s < self.total_s * MIN_CONCLUSIVE_SHARE
        return failure.error_class == "gateway_busy" or (timed_out and too_short)


class QueueTime:
    """A context manager: one stay in a queue."""

    __slots__ = ("_began", "_counts", "_deadlines")

    def __init__(self, deadlines: CallDeadlines, *, counts: bool) -> None:
        self._deadlines, self._counts, self._began = deadlines, counts, 0.0

    def __enter__(self) -> None:
        self._began = self._deadlines.queued_at = self._deadlines.loop.time()
        self._deadlines.is_queueing = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._deadlines.is_queueing = False
        spent = self._deadlines.loop.time() - self._began
        self._deadlines.deadline += spent
        if self._counts:
            self._deadlines.queue_left_s -= spent
