"""The effect decorator: a tool call that changes the world, done once. See `effect_call.py` for how."""

import asyncio
import contextlib
import functools
import hashlib
import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

from overnight import effects
from overnight.budgets import Limit
from overnight.domain import BadInput, BudgetStopped, Conflict, ErrorFacts, Event, Recorded
from overnight.ledger import JobRow, locked_job
from overnight.store import Unit

from .effect_execution import (
    CANNOT_TELL,
    Act,
    Check,
    Done,
    EffectCall,
    Known,
    UnderJob,
)
from .encoding import decode, encode, fingerprint
from .execution import Asked
from .lease import LeaseLost
from .positions import Position, Scope, here
from .waiting_for_budget import room_in_budget

P = ParamSpec("P")
T = TypeVar("T")


class NotDone(Exception):
    """Raise it inside an effect to say: nothing was done, and that is certain."""


class EffectFailed(Exception):
    """The effect was not done. `error_class` names what the function raised, or `rejected` when a person said so."""

    def __init__(self, message: str, error_class: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class Effect(Generic[P, T]):
    """An effect function. `status_check` is a decorator for the function that finds out what became of a call."""

    def __init__(
        self,
        function: Callable[P, Any],
        tool: str,
        not_done: tuple[type[Exception], ...],
        timeout_s: float | None,
        settle_after_s: float,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function, self.tool, self.not_done = function, tool, (NotDone, *not_done)
        self.timeout_s, self.settle_after_s = timeout_s, settle_after_s
        self.check: Callable[..., Any] | None = None
        self._takes_key = "idempotency_key" in inspect.signature(function).parameters

    def status_check(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function is called with `idempotency_key` and the effect's arguments, and answers Done(…), NOT_DONE or
        CANNOT_TELL. NOT_DONE counts only once `settle_after_s` has passed since the outcome became unknown."""
        self.check = function
        return function

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from .external_programs import foreign_effect

        scope = here.get()
        named = self.arguments(args, kwargs)
        if scope is None:
            known = await foreign_effect(self, named)
            return self.outcome(known.event, known.content, known.error)
        print_ = fingerprint(self.tool)
        # Before the boundary is asked for: what is refused here is refused in every replay.
        arguments = encode(named, f"the arguments of effect {self.tool}")

        def digest() -> str:
            return hashlib.sha256(arguments).hexdigest()

        async def live(position: Position) -> Recorded:
            if scope.steps:  # a retry of the step may need it
                scope.execution.history.arguments[position] = digest()
            return await _live(self, scope, position, print_, _work(self, scope, position, named, print_))

        async def settle(position: Position) -> None:
            await _work(self, scope, position, named, print_)()

        answer = await scope.execution.ask(scope, Asked("effect", self.tool, print_, live, settle, digest))
        return self.outcome(answer.facts.event, answer.content, answer.facts.error)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The same for synchronous code: under `overnight.attach`, in a script or a thread without an event loop."""
        return asyncio.run(self(*args, **kwargs))

    def outcome(self, event: str, content: bytes | None, error: ErrorFacts | None) -> Any:
        """The result, or EffectFailed."""
        if event == "tool_failed":
            raise EffectFailed(error.message if error else self.tool, error.error_class if error else "failed")
        return decode(content, self.function)

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments by name; what the digest and the story show. Raises BadInput when they do not fit."""
        signature = inspect.signature(self.function)
        try:
            bound = signature.bind(*args, **(kwargs | ({"idempotency_key": ""} if self._takes_key else {})))
        except TypeError as error:
            raise BadInput(f"effect {self.tool}: {error}") from None
        bound.apply_defaults()
        bound.arguments.pop("idempotency_key", None)
        return dict(bound.arguments)

    async def call(self, key: str, named: dict[str, Any], check: Check) -> Done:
        """Call the function itself, sync ones in a thread; bounded by `timeout_s`. `check` is the last thing done before."""
        options = {**named, "idempotency_key": key} if self._takes_key else named
        result = await _called(self.function, options, check, self.timeout_s)
        return result if isinstance(result, Done) else Done(None, result)

    async def ask_status(self, key: str, named: dict[str, Any], check: Check) -> Done | str:
        """What became of the call. A check that fails cannot tell."""
        if self.check is None:
            return CANNOT_TELL
        try:
            return await _called(self.check, {**named, "idempotency_key": key}, check, self.timeout_s)
        except LeaseLost:
            raise
        except Exception:  # whatever it raised, nobody knows more than before
            return CANNOT_TELL


async def _called(function: Callable[..., Any], options: dict[str, Any], check: Check, timeout_s: float | None) -> Any:
    """The function's result. The time limit begins with the call: waiting for a thread is not part of it, since a call that
    has not begun is not unknown."""
    if inspect.iscoroutinefunction(function):
        async with asyncio.timeout(timeout_s):
            check()
            return await function(**options)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:

        def begin() -> None:
            if timeout_s is not None:
                with contextlib.suppress(RuntimeError):  # nobody waits for the call any more
                    limit.reschedule(loop.time() + timeout_s)

        def work() -> Any:
            loop.call_soon_threadsafe(begin)
            check()
            return function(**options)

        return await asyncio.to_thread(work)


def _work(
    tool: Effect[..., Any], scope: Scope, position: Position, named: dict[str, Any], print_: str
) -> Callable[[], Coroutine[Any, Any, Known | str]]:
    """The effect at a position of the running job, to be done to its durable end: what is known, or the review that asks."""
    execution, job = scope.execution, scope.execution.job
    at = effects.Position(position[0], position[1], print_)
    occurrence = f"{job.job_id}:{position[0]}:{position[1]}"
    workflow = job.workflow or job.name
    key = effects.effect_key(job.tenant_id, workflow, scope.path, job.root_job_id, tool.tool, occurrence)

    def fence(unit: Unit) -> JobRow:
        return locked_job(unit, job.job_id, lease_epoch=job.lease_epoch)

    async def write(act: Act, limits: Sequence[Limit] = ()) -> Any:
        return await execution.commit(UnderJob(job.job_id, job.tenant_id, key, fence, act, limits))

    services = execution.services
    call = EffectCall(
        tool,
        key,
        named,
        write,
        execution.store.clock,
        services.owner,
        check=execution.check_lease,
        step=scope.name,
        position=at,
        limits=lambda: services.tool_limits.of(job, scope.name),
    )

    async def work() -> Known | str:
        asked = execution.begun(scope, position)
        try:
            known = await execution.unless_gone(call.run())
        except Conflict as conflict:
            changed = {"arguments": {"recorded": "others under the same key", "asked": str(conflict)}}
            place = {"path": at.path, "ordinal": at.ordinal}
            why = f"effect {tool.tool} was started with other arguments, so it is not done with these"
            await execution.diverge(
                {"position": place, "boundary": f"effect {tool.tool}", "changed": changed, "why": why}
            )
            raise
        if known is not None:
            return known
        # A question that was asked before the last call is answered already.
        asked = None if call.was_called else asked
        review_id = (asked.facts.detail or {}).get("review_id") if asked is not None else None
        return review_id or await call.request_review()

    return work


async def _live(
    tool: Effect[..., Any],
    scope: Scope,
    position: Position,
    print_: str,
    work: Callable[[], Coroutine[Any, Any, Known | str]],
) -> Recorded:
    """The answer at a position: known from the world, from the status check, or from a person."""
    execution, job = scope.execution, scope.execution.job
    known: Known | str | None = None
    while not isinstance(known, Known):
        try:
            known = await execution.branches.protect(scope, work)
        except BudgetStopped as stop:
            await room_in_budget(scope, position, stop)
            continue
        if isinstance(known, str):
            await execution.wait_outside(scope, position, {"for": "quarantine", "review_id": known})
            if (decided := execution.history.answers.get(position)) is not None:
                return await _in_turn(scope, decided)
            known = None
    event = Event(known.event, kind="effect", name=tool.tool, error=known.error)
    if known.seq:
        answer = Recorded(job.job_id, known.seq, 0, event, *position, print_, known.content, job.tenant_id)
        return await _in_turn(scope, answer)
    # A person has decided it, and this worker has not heard of that yet; or an earlier attempt that asked otherwise knew it.
    await execution.unless_gone(execution.news.read())
    if (decided := execution.history.answers.get(position)) is not None:
        return await _in_turn(scope, decided)
    event.attempt, event.step, event.detail = job.attempt, scope.name, {"replayed": True}
    event.decision = {"why": "replayed from an earlier attempt"}
    with execution.flight():
        return await _in_turn(scope, await execution.record(event, position, print_, known.content))


async def _in_turn(scope: Scope, answer: Recorded) -> Recorded:
    await scope.execution.turn(answer.seq)
    scope.execution.remember(scope, answer)
    return answer


def effect(
    function: Callable[P, Any] | None = None,
    *,
    tool: str | None = None,
    not_done: tuple[type[Exception], ...] = (),
    timeout_s: float | None = 60.0,
    settle_after_s: float = 0.0,
) -> Any:
    """Make a function (async, or sync and then run in a thread) an effect.

    `not_done`: exceptions that mean for certain that nothing happened. Any other exception, and a call longer than
    `timeout_s`, is unknown. A parameter named `idempotency_key` receives the key to hand to the provider.
    """

    def wrap(inner: Callable[P, Any]) -> Effect[P, Any]:
        return Effect(inner, tool or inner.__name__, not_done, timeout_s, settle_after_s)

    return wrap(function) if function is not None else wrap
