"""Steps, recorded values and timers: the boundaries that need nothing but the ledger."""

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
from .execution import Asked, Execution, error_facts
from .positions import Position, Scope, here
from .retry_plan import stale_in_step
from .task_registry import JobEvicted
from .tracebacks import traceback_content

P = ParamSpec("P")
T = TypeVar("T")
SHORT_RESULT = 64


class StepFailed(Exception):
    """A step failed for good. `error_class` names what it raised; after a recovery nothing more is left of that, so that job
    code sees the same in every life of the job."""

    def __init__(self, message: str, error_class: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class Retry(msgspec.Struct, frozen=True):
    """How often a failed step is tried: `attempts` in all, pauses in seconds doubling from `backoff_s` up to `max_backoff_s`."""

    attempts: int = 1
    backoff_s: float = 0.5
    max_backoff_s: float = 60.0

    def pause_s(self, attempt: int) -> float:
        return min(self.max_backoff_s, self.backoff_s * 2 ** (attempt - 1))


def step(
    function: Callable[P, Awaitable[T]] | None = None, *, name: str | None = None, retry: Retry | None = None
) -> Any:
    """Make an async function a step: its result is committed once, and a recovered job is given that result.

    The body may run more than once when its worker is killed before the commit; what must not happen twice belongs into
    an effect. Outside of a job the function runs as it is.
    """

    def wrap(inner: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        if not inspect.iscoroutinefunction(inner):
            raise BadInput(f"@step {inner.__qualname__}: a step is an async function; write `async def`")
        label = name or inner.__name__
        policy = retry or Retry()

        @functools.wraps(inner)
        async def run(*args: P.args, **kwargs: P.kwargs) -> T:
            scope = here.get()
            if scope is None:
                return await inner(*args, **kwargs)
            print_ = fingerprint(label, args, kwargs)

            async def live(position: Position) -> Recorded:
                # Until its answer is handed on, not only while the body runs: the job must not park in between.
                with scope.execution.flight():
                    return await _run_step(scope, position, label, print_, policy, inner, args, kwargs)

            answer = await scope.execution.ask(scope, Asked("step", label, print_, live))
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


async def _run_step(
    scope: Scope,
    position: Position,
    label: str,
    print_: str,
    policy: Retry,
    inner: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Recorded:
    execution = scope.execution
    attempt = 1 + execution.history.failures.get(position, 0)
    while True:
        started = Event("step_started", kind="step", name=label, step=label, attempt=attempt)
        execution.ride(started, position, print_)
        crash_point("step_started")
        began = time.perf_counter()
        body = scope.inside(position[1], label)
        try:
            # A result that cannot be kept is the step's failure: recorded, so that a replay comes to the same.
            result = encode(await _in_scope(body, inner, args, kwargs), f"step {label}")
        except (JobEvicted, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            failed = Event(
                "step_failed", kind="step", name=label, step=label, attempt=attempt, error=error_facts(error)
            )
            failed.latency_ms = _ms_since(began)
            asked_inside = body.ordinal > 0 or body.branches > 0
            if attempt >= policy.attempts:
                if asked_inside:
                    failed.detail = {"unhandled": execution.unhandled(position)}
                answer = await execution.record(failed, position, print_, traceback_content(error))
                await execution.turn(answer.seq)
                execution.remember(scope, answer)
                return LiveFailure(answer.job_id, answer.seq, answer.at, answer.facts, raised=error)
            pause_s = policy.pause_s(attempt)
            trace = traceback_content(error)
            await _again(execution, position, failed, trace, pause_s, body if asked_inside else None)
            attempt += 1
        else:
            crash_point("step_ran")
            done = Event("step_committed", kind="step", name=label, step=label, attempt=attempt)
            done.latency_ms = _ms_since(began)
            answer = await execution.record(done, position, print_, result)
            crash_point("step_committed")
            await execution.turn(answer.seq)
            execution.remember(scope, answer)
            return answer


async def _again(
    execution: Execution,
    position: Position,
    failed: Event,
    trace: bytes | None,
    pause_s: float,
    body: Scope | None,
) -> None:
    """Record the failure and what the retry must ask afresh, then pause."""
    failed.detail = {"position": {"path": position[0], "ordinal": position[1]}, "retry_in_ms": round(pause_s * 1000)}
    job = execution.job
    await execution.commit(Append(job.job_id, failed, trace, job.lease_epoch))
    if body is not None:
        unhandled = execution.unhandled(position)
        await execution.branches.stop(body)
        # One that has failed meanwhile counts too, even where the stopping let the code go on from another.
        stale = stale_in_step(execution.history, position, {*unhandled, *execution.unhandled(position)})
        await execution.set_aside(0, stale, position)
    await asyncio.sleep(pause_s)


async def _in_scope(scope: Scope, inner: Callable[..., Awaitable[Any]], args: Any, kwargs: Any) -> Any:
    token = here.set(scope)
    try:
        return await inner(*args, **kwargs)
    finally:
        here.reset(token)


def _ms_since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 3)


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _value(name: str, make: Callable[[], Any]) -> Any:
    scope = here.get()
    return make() if scope is None else scope.execution.value(scope, name, make)


def now() -> datetime:
    """The time in UTC, recorded: a recovered job sees the same moment again."""
    scope = here.get()
    clock = scope.execution.store.clock if scope is not None else lambda: time.time_ns() // 1000
    return datetime.fromtimestamp(_value("now", clock) / 1_000_000, UTC)


def random() -> float:
    """A number in [0, 1), recorded."""
    return _value("random", lambda: _random.SystemRandom().random())


def uuid() -> str:
    """A random UUID (version 4), recorded."""
    return _value("uuid", lambda: str(_uuid.UUID(bytes=os.urandom(16), version=4)))


# ── timers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _due(execution: Execution, scope: Scope, position: Position, seconds: float) -> tuple[int, bool]:
    """When the timer at this position is due, and whether that was recorded before."""
    entry = execution.begun(scope, position)
    if entry is not None and entry.facts.detail:
        return entry.facts.detail["due_at"], True
    return execution.store.clock() + round(seconds * 1_000_000), False


def _timer_set(execution: Execution, scope: Scope, position: Position, name: str, due_at: int, print_: str) -> None:
    event = Event("timer_set", kind="timer", name=name, step=scope.name, attempt=execution.job.attempt)
    event.detail = {"due_at": due_at}
    execution.ride(event, position, print_)


def _fired(execution: Execution, scope: Scope, name: str) -> Event:
    return Event("timer_fired", kind="timer", name=name, step=scope.name, attempt=execution.job.attempt)


async def sleep(seconds: float) -> None:
    """Sleep durably: the moment to wake is recorded, and a long sleep parks the job, which then costs one row."""
    scope = here.get()
    if scope is None:
        await asyncio.sleep(seconds)
        return
    if not math.isfinite(seconds):
        raise BadInput(f"sleep({seconds}): give a number of seconds")
    execution = scope.execution
    print_ = fingerprint("sleep")

    async def live(position: Position) -> Recorded:
        due_at, known = _due(execution, scope, position, seconds)
        if not known:
            _timer_set(execution, scope, position, "sleep", due_at, print_)
        loop = asyncio.get_running_loop()

        def ring() -> None:
            waiting = execution.waits.get(position)
            if waiting is not None and not waiting.future.done():
                waiting.future.set_result(Recorded("", 0, 0, Event("timer_fired")))

        handle = loop.call_later(max(0.0, (due_at - execution.store.clock()) / 1_000_000), ring)
        try:
            await execution.wait_outside(scope, position, {"for": "timer", "due_at": due_at})
        finally:
            handle.cancel()
        with execution.flight():
            answer = await execution.record(_fired(execution, scope, "sleep"), position, print_)
        await execution.turn(answer.seq)
        execution.remember(scope, answer)
        return answer

    await execution.ask(scope, Asked("timer", "sleep", print_, live))


class timeout:
    """`async with overnight.timeout(30): …` raises TimeoutError inside the block; that it fired is recorded."""

    def __init__(self, seconds: float) -> None:
        if not 0 < seconds < math.inf:
            raise BadInput(f"timeout({seconds}): give a positive number of seconds")
        self._seconds = seconds
        self._inner = asyncio.timeout(None)
        self._waiter: asyncio.Task[Any] | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._open = False
        self._at: tuple[Execution, Position] | None = None

    async def __aenter__(self) -> "timeout":
        scope = here.get()
        if scope is None:
            self._inner = asyncio.timeout(self._seconds)
            await self._inner.__aenter__()
            return self
        execution, print_ = scope.execution, fingerprint("timeout")
        execution.refuse_if_evicted()
        position = (scope.path, scope.ordinal)
        await self._inner.__aenter__()
        self._open, self._at = True, (execution, position)
        execution.timeouts += 1

        async def live(_: Position) -> Recorded:
            due_at, known = _due(execution, scope, position, self._seconds)
            if not known:
                _timer_set(execution, scope, position, "timeout", due_at, print_)
            if self._open:
                execution.alarms[position] = due_at
            await asyncio.sleep(max(0.0, (due_at - execution.store.clock()) / 1_000_000))
            with execution.flight():
                answer = await execution.record(_fired(execution, scope, "timeout"), position, print_)
            await execution.turn(answer.seq)
            execution.remember(scope, answer)
            return answer

        async def watch() -> None:
            await execution.ask(scope, Asked("timer", "timeout", print_, live))
            if self._open:
                self._inner.reschedule(asyncio.get_running_loop().time())

        self._waiter = execution.branches.chore(watch())
        # The watcher takes its position in its first turn, before the block can ask for anything.
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *raised: Any) -> bool | None:
        self._open = False
        if self._at is not None:
            execution, position = self._at
            execution.timeouts -= 1
            execution.alarms.pop(position, None)
            if self._waiter is not None and position not in execution.history.answers:
                self._waiter.cancel()
        return await self._inner.__aexit__(*raised)
