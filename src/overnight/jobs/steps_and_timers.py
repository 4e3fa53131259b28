"""Steps, recorded values and timers: the boundaries that only need the ledger."""

import asyncio
import functools
import inspect
import math
import os
import random as _random
import time
import uuid as _uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

import msgspec

from overnight.domain import BadInput, Event, Recorded
from overnight.ledger import Append
from overnight.store import crash_point

from .encoding import decode, encode, fingerprint
from .execution import BoundaryRequest, Execution, current
from .positions import Position, Scope, current_scope
from .replay.retry_plan import stale_in_step
from .run_state import JobEvicted
from .tracebacks import error_facts, traceback_content

P = ParamSpec("P")
T = TypeVar("T")


class StepFailed(Exception):
    """A step failed for good. `error_class` names the exception it raised.

    The exception itself is the `__cause__` only in the process that raised it. A recovered job has its class and message.
    """

    def __init__(self, message: str, error_class: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class Retry(msgspec.Struct, frozen=True):
    """The retry policy of a step.

    - `attempts`: the maximum number of attempts; default 1, no retry.
    - `backoff_s`: the pause before the second attempt in seconds; it doubles with each attempt. Default 0.5.
    - `max_backoff_s`: the longest pause in seconds; default 60.
    """

    attempts: int = 1
    backoff_s: float = 0.5
    max_backoff_s: float = 60.0

    def pause_s(self, attempt: int) -> float:
        """The pause after a failed attempt (1 is the first), in seconds."""
        return min(self.max_backoff_s, self.backoff_s * 2 ** (attempt - 1))


def step(
    function: Callable[P, Awaitable[T]] | None = None, *, name: str | None = None, retry: Retry | None = None
) -> Any:
    """Make an async function a step: its result is committed once, and a recovered job receives that result.

    - `name`: the name of the boundary; default: the function's name.
    - `retry`: the retry policy; default: no retry. When the last attempt fails, the call raises StepFailed.

    The body may run again if its worker is killed before the commit. Put actions that must not happen twice into an effect.
    Outside a job the function runs as it is. Raises BadInput for a function that is not async.
    """

    def wrap(inner: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        if not inspect.iscoroutinefunction(inner):
            raise BadInput(f"@step {inner.__qualname__}: a step is an async function; write `async def`")
        label = name or inner.__name__
        policy = retry or Retry()

        @functools.wraps(inner)
        async def run(*args: P.args, **kwargs: P.kwargs) -> T:
            here = current()
            if here is None:
                return await inner(*args, **kwargs)
            execution, scope = here
            digest = fingerprint(label, args, kwargs)

            async def live(position: Position) -> Recorded:
                body = functools.partial(inner, *args, **kwargs)
                # Until its answer is delivered, not only while the body runs: the job must not park in between.
                with execution.scheduler.in_progress():
                    return await _StepRun(execution, scope, position, label, digest, policy).run(body)

            answer = await execution.resolve(scope, BoundaryRequest("step", label, digest, live))
            if answer.facts.event == "step_failed":
                raise _as_raised(answer)
            return decode(answer.content, inner)

        return run

    return wrap(function) if function is not None else wrap


class LiveFailure(Recorded):
    """A failure that was recorded just now, with the exception itself."""

    raised: Exception | None = None


def _as_raised(answer: Recorded) -> StepFailed:
    error = answer.facts.error
    name, message = (error.error_class, error.message) if error else ("Exception", "the step failed")
    failed = StepFailed(f"{name}: {message}", name)
    if isinstance(answer, LiveFailure):
        failed.__cause__ = answer.raised
    return failed


class _StepRun:
    """One step at its position: its attempts until it is committed or has failed for good."""

    def __init__(
        self, execution: Execution, scope: Scope, position: Position, label: str, digest: str, policy: Retry
    ) -> None:
        self._execution, self._scope, self._position = execution, scope, position
        self._label, self._digest, self._policy = label, digest, policy

    async def run(self, body: Callable[[], Awaitable[Any]]) -> Recorded:
        """The committed answer: `step_committed`, or `step_failed` after the last attempt."""
        log = self._execution.log
        attempt = 1 + log.history.failures.get(self._position, 0)
        while True:
            log.defer(self._event("step_started", attempt), self._position, self._digest)
            crash_point("step_started")
            began = time.perf_counter()
            inside = self._scope.inside(self._position[1], self._label)
            try:
                # A result without a JSON form is a failure of the step. It is recorded, so that a replay raises the same.
                result = encode(await _in_scope(inside, body), f"step {self._label}")
            except (JobEvicted, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                raise
            except Exception as error:
                failed = self._event("step_failed", attempt)
                failed.error, failed.latency_ms = error_facts(error), _ms_since(began)
                if attempt >= self._policy.attempts:
                    return await self._fail(failed, error, inside)
                await self._prepare_retry(failed, error, inside, self._policy.pause_s(attempt))
                attempt += 1
            else:
                crash_point("step_ran")
                done = self._event("step_committed", attempt)
                done.latency_ms = _ms_since(began)
                answer = await log.record(done, self._position, self._digest, result)
                crash_point("step_committed")
                return await self._execution.scheduler.deliver(self._scope, answer)

    def _event(self, name: str, attempt: int) -> Event:
        return Event(name, kind="step", name=self._label, step=self._label, attempt=attempt, about=self._scope.about)

    async def _fail(self, failed: Event, error: Exception, inside: Scope) -> Recorded:
        execution = self._execution
        if _has_boundaries(inside):
            failed.detail = {"unhandled": execution.failures.seqs(self._position)}
        answer = await execution.log.record(failed, self._position, self._digest, traceback_content(error))
        await execution.scheduler.deliver(self._scope, answer)
        return LiveFailure(answer.job_id, answer.seq, answer.at, answer.facts, raised=error)

    async def _prepare_retry(self, failed: Event, error: Exception, inside: Scope, pause_s: float) -> None:
        """Record the failure and which boundaries inside the retry re-runs, then pause."""
        execution, position, job = self._execution, self._position, self._execution.job
        place = {"path": position[0], "ordinal": position[1]}
        failed.detail = {"position": place, "retry_in_ms": round(pause_s * 1000)}
        await execution.log.commit(Append(job.job_id, failed, traceback_content(error), job.lease_epoch))
        if _has_boundaries(inside):
            unhandled = execution.failures.seqs(position)
            await execution.tasks.stop_step(inside)
            # A failure while the step stops counts too, even if the code then handled another failure.
            unhandled += execution.failures.seqs(position)
            stale = stale_in_step(execution.log.history, position, set(unhandled))
            await execution.recovery.retain(0, stale, position)
        await asyncio.sleep(pause_s)


def _has_boundaries(inside: Scope) -> bool:
    return inside.ordinal > 0 or inside.branches > 0


async def _in_scope(scope: Scope, body: Callable[[], Awaitable[Any]]) -> Any:
    token = current_scope.set(scope)
    try:
        return await body()
    finally:
        current_scope.reset(token)


def _ms_since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 3)


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _value(name: str, make: Callable[[], Any]) -> Any:
    here = current()
    return make() if here is None else here[0].record_value(here[1], name, make)


def now() -> datetime:
    """The time in UTC, recorded: a recovered job receives the same time."""
    here = current()
    clock = here[0].log.store.clock if here is not None else lambda: time.time_ns() // 1000
    return datetime.fromtimestamp(_value("now", clock) / 1_000_000, UTC)


def random() -> float:
    """A random number in [0, 1), recorded."""
    return _value("random", lambda: _random.SystemRandom().random())


def uuid() -> str:
    """A random UUID (version 4), recorded."""
    return _value("uuid", lambda: str(_uuid.UUID(bytes=os.urandom(16), version=4)))


# ── timers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Timer:
    """A timer at its position: its recorded due time, and the event of its firing."""

    def __init__(self, execution: Execution, scope: Scope, position: Position, name: str, digest: str) -> None:
        self._execution, self._scope, self._position = execution, scope, position
        self._name, self._digest = name, digest

    def set(self, seconds: float) -> int:
        """The due time of the timer in microseconds: the recorded one, or `seconds` from now, which is then recorded."""
        log = self._execution.log
        entry = log.find_entry(self._scope, self._position)
        if entry is not None and entry.facts.detail:
            return entry.facts.detail["due_at"]
        due_at = log.store.clock() + round(seconds * 1_000_000)
        event = self._event("timer_set")
        event.detail = {"due_at": due_at}
        log.defer(event, self._position, self._digest)
        return due_at

    async def fire(self) -> Recorded:
        """Record that the timer has fired, and wait for its turn."""
        execution = self._execution
        with execution.scheduler.in_progress():
            answer = await execution.log.record(self._event("timer_fired"), self._position, self._digest)
        return await execution.scheduler.deliver(self._scope, answer)

    def _event(self, name: str) -> Event:
        attempt = self._execution.job.attempt
        step, record = self._scope.name, self._scope.about
        return Event(name, kind="timer", name=self._name, step=step, attempt=attempt, about=record)


async def sleep(seconds: float) -> None:
    """Sleep durably: the due time is recorded, and a long sleep parks the job.

    Raises BadInput if `seconds` is not finite. Outside a job this is `asyncio.sleep`.
    """
    here = current()
    if here is None:
        await asyncio.sleep(seconds)
        return
    if not math.isfinite(seconds):
        raise BadInput(f"sleep({seconds}): give a number of seconds")
    execution, scope = here
    digest = fingerprint("sleep")

    async def live(position: Position) -> Recorded:
        timer = _Timer(execution, scope, position, "sleep", digest)
        due_at, scheduler = timer.set(seconds), execution.scheduler
        fired = Recorded("", 0, 0, Event("timer_fired"))
        delay_s = max(0.0, (due_at - execution.log.store.clock()) / 1_000_000)
        handle = asyncio.get_running_loop().call_later(delay_s, scheduler.end_wait, position, fired)
        try:
            await scheduler.wait_outside(scope, position, {"for": "timer", "due_at": due_at})
        finally:
            handle.cancel()
        return await timer.fire()

    await execution.resolve(scope, BoundaryRequest("timer", "sleep", digest, live))


class timeout:
    """`async with overnight.timeout(30): …` raises TimeoutError inside the block after that many seconds, as recorded.

    Raises BadInput if `seconds` is not positive and finite. Outside a job this is `asyncio.timeout`.
    """

    def __init__(self, seconds: float) -> None:
        if not 0 < seconds < math.inf:
            raise BadInput(f"timeout({seconds}): give a positive number of seconds")
        self._seconds = seconds
        self._inner = asyncio.timeout(None)
        self._waiter: asyncio.Task[Any] | None = None
        self._open = False
        self._at: tuple[Execution, Position] | None = None

    async def __aenter__(self) -> "timeout":
        here = current()
        if here is None:
            self._inner = asyncio.timeout(self._seconds)
            await self._inner.__aenter__()
            return self
        execution, scope = here
        execution.state.check()
        position = (scope.path, scope.ordinal)
        await self._inner.__aenter__()
        self._open, self._at = True, (execution, position)
        execution.scheduler.open_timeout()
        self._waiter = execution.background.start(self._watch(execution, scope, position))
        # The watcher takes its position in its first turn, before the block can reach a boundary.
        await asyncio.sleep(0)
        return self

    async def _watch(self, execution: Execution, scope: Scope, position: Position) -> None:
        digest = fingerprint("timeout")

        async def live(_: Position) -> Recorded:
            timer = _Timer(execution, scope, position, "timeout", digest)
            due_at = timer.set(self._seconds)
            if self._open:
                execution.scheduler.set_deadline(position, due_at)
            await asyncio.sleep(max(0.0, (due_at - execution.log.store.clock()) / 1_000_000))
            return await timer.fire()

        await execution.resolve(scope, BoundaryRequest("timer", "timeout", digest, live))
        if self._open:
            self._inner.reschedule(asyncio.get_running_loop().time())

    async def __aexit__(self, *raised: Any) -> bool | None:
        self._open = False
        if self._at is not None:
            execution, position = self._at
            execution.scheduler.close_timeout(position)
            if self._waiter is not None and position not in execution.log.history.answers:
                self._waiter.cancel()
        return await self._inner.__aexit__(*raised)
