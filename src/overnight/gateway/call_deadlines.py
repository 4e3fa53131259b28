"""The deadlines of one call: the time of its providers, and the time in queues and for the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType

from overnight.domain import StoreUnavailable, TimeLimits
from overnight.domain.policies import RouteDecision
from overnight.providers.error_classes import Failure

MIN_ATTEMPT_SHARE = 1 / 20
"""Share of the call's total. With less time left, no further attempt is made: it would be paid and not answered."""

MIN_CONCLUSIVE_SHARE = 1 / 4
"""Share of the call's total. A timeout after less time is not counted against the target."""

MIN_STORE_S = 1.0
"""The minimum wait for the store, also when the queue time is used up."""

JOB_QUEUE_S = 3600.0
"""Queue time of job code. It is long, since no client holds a connection open for it."""


def store_timeout_s(limits: TimeLimits) -> float:
    """The maximum wait for the store, in seconds, of a request whose route is not known yet."""
    return max(limits.queue_ms / 1000, MIN_STORE_S)


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
        total_s: the providers' time in seconds, from start to deadline.
        deadline: the end of the providers' time. Time in queues and in the store moves it later.
        queue_s: the queue time of the route, in seconds.
        queue_left_s: the remaining queue time. Calls of job code have an hour.
        queued_at: the start of the present stay in a queue.
        queued_s: the time in queues and in the store since the last `take_queued_ms`.
        is_queueing: whether the call is in a queue now.
    """

    __slots__ = ("deadline", "is_queueing", "loop", "queue_left_s", "queue_s", "queued_at", "queued_s", "total_s")

    def __init__(self, decision: RouteDecision, loop: asyncio.AbstractEventLoop, *, waits_long: bool) -> None:
        self.loop = loop
        self.total_s = decision.deadline_ms / 1000
        self.deadline = loop.time() + self.total_s
        self.queue_s = decision.time_limits.queue_ms / 1000
        self.queue_left_s = JOB_QUEUE_S if waits_long else self.queue_s
        self.queued_at = self.queued_s = 0.0
        self.is_queueing = False

    def queueing(self, *, counts: bool = True) -> QueueTime:
        """Measure time in queues and in the store. It moves the deadline later; with `counts` it is queue time."""
        return QueueTime(self, counts=counts)

    def restart_queueing(self) -> None:
        """Discard the queue time of the present stay so far: the call waited for a provider."""
        self.queued_at = self.loop.time()

    def take_queued_ms(self) -> float:
        """The milliseconds in queues and in the store since the last call of this, to the microsecond."""
        queued_s, self.queued_s = self.queued_s, 0.0
        return round(queued_s * 1000, 3)

    def queue_deadline(self) -> float:
        """The end of the present stay in a queue, at the latest."""
        return self.queued_at + self.queue_left_s

    def store_deadline(self) -> float:
        """The end of the wait for the store, a time of the loop: the queue time, and at least one second."""
        now = self.loop.time()
        return max((self.queued_at if self.is_queueing else now) + self.queue_left_s, now + MIN_STORE_S)

    @contextmanager
    def asking_store(self) -> Generator[None]:
        """Within queue time that does not count, count the time of a store that did not answer."""
        began = self.loop.time()
        try:
            yield
        except StoreUnavailable:
            self.queue_left_s -= self.loop.time() - began
            raise

    def circuit_deadline(self) -> float:
        """The end of the wait for a circuit. A provider caused that wait, so it is part of the providers' time."""
        return min(self.deadline, self.loop.time() + self.queue_s)

    def remaining_s(self) -> float:
        """The remaining time of the providers; negative after the deadline."""
        return self.deadline - self.loop.time()

    def stream_deadline(self, decision: RouteDecision) -> float:
        """The end of a stream, a time of the loop: its total counts from the start of the call, without its time in queues."""
        return self.deadline - self.total_s + decision.time_limits.stream_total(decision.deadline_ms)

    def end_by(self, until: float) -> None:
        """Bring the deadline forward to `until`, where that is earlier."""
        self.deadline = min(self.deadline, until)

    def is_inconclusive(self, failure: Failure, attempt_s: float) -> bool:
        """Whether an attempt of `attempt_s` seconds failed by the gateway's own limits: no connection was free, or too little
        time was left for an answer."""
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
        self._deadlines.queued_s += spent
        if self._counts:
            self._deadlines.queue_left_s -= spent
