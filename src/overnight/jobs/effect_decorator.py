"""The effect decorator: a tool call with an external side effect, executed once. `effect_execution.py` executes it."""

import asyncio
import contextlib
import functools
import hashlib
import inspect
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar, get_type_hints

import msgspec

from overnight.domain import BadInput, ErrorFacts, Recorded

from .effect_boundary import EffectBoundary
from .effect_records import CANNOT_TELL, NOT_DONE, Check, Done, Late
from .encoding import decode, encode, fingerprint
from .execution import BoundaryRequest, current
from .external_job import external_effect
from .lease import LeaseLost
from .positions import Position

P = ParamSpec("P")
T = TypeVar("T")


class NotDone(Exception):
    """Raise it inside an effect to state that nothing was done."""


class EffectFailed(Exception):
    """The effect was not done. `error_class` is the class of the raised exception, `rejected` if a person rejected it, or
    `denied` if a rule of the brain forbids it."""

    def __init__(self, message: str, error_class: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class Effect(Generic[P, T]):
    """An effect function. `status_check` is a decorator for the function that determines the outcome of a call."""

    def __init__(
        self,
        function: Callable[P, Any],
        tool: str,
        not_done: tuple[type[Exception], ...],
        timeout_s: float | None,
        settle_after_s: float,
        repeat_safe: bool,
        key_lifetime_s: float | None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function, self.tool, self.not_done = function, tool, (NotDone, *not_done)
        self.timeout_s, self.settle_after_s = timeout_s, settle_after_s
        self.repeat_safe, self.key_lifetime_s = repeat_safe, key_lifetime_s
        self.check: Callable[..., Any] | None = None
        self.takes_key = "idempotency_key" in inspect.signature(function).parameters

    def status_check(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register the status check of this effect.

        It is called with `idempotency_key` and the effect's arguments, and returns Done(…), NOT_DONE or CANNOT_TELL.
        NOT_DONE is accepted only once `settle_after_s` has passed since the outcome became unknown.
        """
        self.check = function
        return function

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        here = current()
        named = self.arguments(args, kwargs)
        if here is None:
            outcome = await external_effect(self, named)
            return self.outcome(outcome.event, outcome.content, outcome.error)
        execution, scope = here
        request_digest = fingerprint(self.tool)
        # Before the boundary is reached, so that every replay raises the same error.
        arguments = encode(named, f"the arguments of effect {self.tool}")

        def digest() -> str:
            return hashlib.sha256(arguments).hexdigest()

        def at(position: Position) -> EffectBoundary:
            return EffectBoundary(self, execution, scope, position, named, request_digest)

        async def live(position: Position) -> Recorded:
            if scope.steps:  # a retry of the step may need it
                execution.log.history.arguments[position] = digest()
            return await at(position).run()

        async def settle(position: Position) -> None:
            await at(position).find_outcome()

        request = BoundaryRequest(
            kind="effect", name=self.tool, fingerprint=request_digest, live=live, settle=settle, arguments=digest
        )
        answer = await execution.resolve(scope, request)
        return self.outcome(answer.facts.event, answer.content, answer.facts.error)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the effect from synchronous code: under `overnight.attach`, in a script or a thread without an event loop."""
        return asyncio.run(self(*args, **kwargs))

    def outcome(self, event: str, content: bytes | None, error: ErrorFacts | None) -> Any:
        """The result of the effect. Raises EffectFailed."""
        if event in {"tool_failed", "tool_refused"}:
            raise EffectFailed(error.message if error else self.tool, error.error_class if error else "failed")
        return decode(content, self.function)

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments by name, as digested and recorded. Raises BadInput if they do not fit."""
        signature = inspect.signature(self.function)
        try:
            bound = signature.bind(*args, **(kwargs | ({"idempotency_key": ""} if self.takes_key else {})))
        except TypeError as error:
            raise BadInput(f"effect {self.tool}: {error}") from None
        bound.apply_defaults()
        bound.arguments.pop("idempotency_key", None)
        return dict(bound.arguments)

    def restore(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call from their JSON, as the annotated types. Raises BadInput if they do not fit."""
        named, hints = self.arguments((), dict(arguments)), _hints_of(self.function)
        try:
            return {name: msgspec.convert(value, hints.get(name, Any)) for name, value in named.items()}
        except (msgspec.ValidationError, TypeError, NotImplementedError) as error:
            raise BadInput(f"effect {self.tool}: {error}") from None

    async def call(self, key: str, named: dict[str, Any], check: Check, late: Late) -> Done:
        """Call the function itself, bounded by `timeout_s`; a sync one in a thread. `check` runs directly before it.

        `late` receives the result of a sync function that continues after its caller has stopped waiting.
        """
        options = {**named, "idempotency_key": key} if self.takes_key else named

        def late_result(result: Any) -> None:
            late(_done(result))

        return _done(await _call(self.function, options, check, self.timeout_s, late_result))

    async def ask_status(self, key: str, named: dict[str, Any], check: Check) -> Done | str:
        """The outcome of the call by the status check; CANNOT_TELL if there is none, it raises, or returns anything else."""
        if self.check is None:
            return CANNOT_TELL
        try:
            found = await _call(self.check, {**named, "idempotency_key": key}, check, self.timeout_s)
        except LeaseLost:
            raise
        except Exception:  # the outcome remains unknown
            return CANNOT_TELL
        # A check that forgets its return value must not repeat the effect.
        return found if isinstance(found, Done) or found == NOT_DONE else CANNOT_TELL


def _done(result: Any) -> Done:
    return result if isinstance(result, Done) else Done(None, result)


def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except Exception:  # annotations may be any code
        return {}


async def _call(
    function: Callable[..., Any],
    options: dict[str, Any],
    check: Check,
    timeout_s: float | None,
    late: Callable[[Any], None] | None = None,
) -> Any:
    """The function's result. The time limit starts with the call and excludes the wait for a thread: before the call starts,
    its outcome is not unknown."""
    if inspect.iscoroutinefunction(function):
        async with asyncio.timeout(timeout_s):
            check()
            return await function(**options)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:

        def begin() -> None:
            if timeout_s is not None:
                with contextlib.suppress(RuntimeError):  # the caller has stopped waiting
                    limit.reschedule(loop.time() + timeout_s)

        call = _ThreadCall(function, options, check, partial(loop.call_soon_threadsafe, begin), late)
        try:
            return await asyncio.to_thread(call.run)
        except asyncio.CancelledError:  # also the time limit
            call.give_up()
            raise


class _ThreadCall:
    """A call in a thread, which no time limit ends. Its result is late once its caller has given up."""

    def __init__(
        self,
        function: Callable[..., Any],
        options: dict[str, Any],
        check: Check,
        begin: Callable[[], object],
        late: Callable[[Any], None] | None,
    ) -> None:
        self._function, self._options, self._check, self._begin, self._late = function, options, check, begin, late
        self._lock = threading.Lock()
        self._result: list[Any] = []
        self._given_up = False

    def run(self) -> Any:
        function, options, check = self._function, self._options, self._check
        with contextlib.suppress(
            RuntimeError
        ):  # the loop has ended; the check tells whether the call may still be made
            self._begin()
        # Nothing may stand between the check and the call.
        check()
        result = function(**options)
        with self._lock:
            self._result.append(result)
            given_up = self._given_up
        if given_up and self._late is not None:
            self._late(result)
        return result

    def give_up(self) -> None:
        """The caller waits no longer."""
        with self._lock:
            self._given_up = True
            result = list(self._result)
        if result and self._late is not None:
            threading.Thread(target=self._late, args=result, name="overnight-late-result", daemon=True).start()


def effect(
    function: Callable[P, Any] | None = None,
    *,
    tool: str | None = None,
    not_done: tuple[type[Exception], ...] = (),
    timeout_s: float | None = 60.0,
    settle_after_s: float = 0.0,
    repeat_safe: bool = False,
    key_lifetime_s: float | None = None,
) -> Any:
    """Make a function an effect: async, or sync and then run in a thread.

    - `tool`: the name of the tool; default: the function's name.
    - `not_done`: exceptions that prove that nothing was done. After any other exception the outcome is unknown.
    - `timeout_s`: the maximum duration of a call in seconds, default 60; None is no limit. After a timeout the outcome is
      unknown.
    - `settle_after_s`: how long a call may still take effect after its outcome became unknown, in seconds; default 0.
    - `repeat_safe`: the provider ignores a repeated `idempotency_key`. An unknown outcome that the status check cannot
      determine is then settled by calling again; default False: a person is asked.
    - `key_lifetime_s`: how long the provider remembers the key, in seconds from the first call; None is for good. Later, a
      person is asked.

    A parameter named `idempotency_key` receives the key for the provider. The call raises EffectFailed if the effect was not
    done.
    """

    def wrap(inner: Callable[P, Any]) -> Effect[P, Any]:
        found: Effect[P, Any] = Effect(
            inner, tool or inner.__name__, not_done, timeout_s, settle_after_s, repeat_safe, key_lifetime_s
        )
        if repeat_safe and not found.takes_key:
            raise BadInput(
                f"effect {found.tool}: repeat_safe requires a parameter `idempotency_key`, which the provider must receive"
            )
        return found

    return wrap(function) if function is not None else wrap
