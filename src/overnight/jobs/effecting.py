"""The effect decorator: a tool call that changes the world, done once.

    claim (durable) → call → commit (durable)

What raised or timed out is *unknown* unless the function says that nothing was done. Unknown is never repeated blindly: the
status check is asked, and without a certain answer the job parks for a person.
"""

import asyncio
import functools
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, ParamSpec, TypeVar

import msgspec

from overnight import effects
from overnight.domain import BadInput, Conflict, ErrorFacts, Event, Recorded
from overnight.ledger import JOB, locked_job
from overnight.reviews import Boundary, request_review
from overnight.store import Unit, crash_point

from .encoding import decode, encode, fingerprint
from .execution import Execution, error_facts
from .positions import Position, Scope, here

P = ParamSpec("P")
T = TypeVar("T")
Verdict = str


class NotDone(Exception):
    """Raise it inside an effect to say: nothing was done, and that is certain."""


class EffectFailed(Exception):
    """The effect was not done. `error_class` names what the function raised, or `rejected` when a person said so."""

    def __init__(self, message: str, error_class: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class Done(msgspec.Struct, frozen=True):
    """From an effect or its status check: it was done; the provider's authoritative id, and the result."""

    provider_id: str | None = None
    result: Any = None


NOT_DONE = "not_done"
CANNOT_TELL = "cannot_tell"


class Effect(Generic[P, T]):
    """An effect function. `status_check` is a decorator for the function that finds out what became of a call."""

    def __init__(
        self,
        function: Callable[P, Awaitable[T] | T],
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
        CANNOT_TELL. NOT_DONE counts only once `settle_after_s` has passed since the claim."""
        self.check = function
        return function

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        from .foreign import foreign_effect

        scope = here.get()
        if scope is None:
            return await foreign_effect(self, args, kwargs)
        named = self.arguments(args, kwargs)
        body = encode(named, f"the arguments of effect {self.tool}")
        print_ = fingerprint(self.tool)

        async def live(position: Position) -> Recorded:
            attempt = _Attempt(self, scope, position, body, named, print_)
            answer = await scope.execution.protect(attempt.run)
            while answer is None:
                await attempt.wait_for_person()
                answer = await scope.execution.protect(attempt.run)
            await scope.execution.turn()
            scope.execution.remember(scope, answer)
            return answer

        answer = await scope.execution.ask(scope, "effect", self.tool, print_, live)
        return self.outcome(answer.facts.event, answer.content, answer.facts.error)

    def outcome(self, event: str, content: bytes | None, error: ErrorFacts | None) -> T:
        """The result, or EffectFailed."""
        if event == "tool_failed":
            raise EffectFailed(error.message if error else self.tool, error.error_class if error else "failed")
        return decode(content, self.function)

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments by name; what the digest and the story show."""
        signature = inspect.signature(self.function)
        try:
            bound = signature.bind(*args, **(kwargs | ({"idempotency_key": ""} if self._takes_key else {})))
        except TypeError as error:
            raise BadInput(f"effect {self.tool}: {error}") from None
        bound.apply_defaults()
        bound.arguments.pop("idempotency_key", None)
        return dict(bound.arguments)

    async def call(self, key: str, named: dict[str, Any]) -> Done:
        """Call the function itself, sync ones in a thread; bounded by `timeout_s`."""
        options = {**named, "idempotency_key": key} if self._takes_key else named
        function: Callable[..., Any] = self.function
        async with asyncio.timeout(self.timeout_s):
            if inspect.iscoroutinefunction(function):
                result = await function(**options)
            else:
                result = await asyncio.to_thread(function, **options)
        return result if isinstance(result, Done) else Done(None, result)

    async def ask_status(self, key: str, named: dict[str, Any]) -> "Done | Verdict":
        """What became of the call. A check that fails cannot tell."""
        if self.check is None:
            return CANNOT_TELL
        check: Callable[..., Any] = self.check
        options = {**named, "idempotency_key": key}
        try:
            if inspect.iscoroutinefunction(check):
                return await check(**options)
            return await asyncio.to_thread(check, **options)
        except Exception:
            return CANNOT_TELL


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


class _Attempt:
    """One effect at one position of a running job."""

    def __init__(
        self, tool: Effect[..., Any], scope: Scope, position: Position, body: bytes, named: dict[str, Any], print_: str
    ) -> None:
        self.tool, self.scope, self.named, self.body = tool, scope, named, body
        self.execution: Execution = scope.execution
        self.at = effects.Position(position[0], position[1], print_)
        job = self.execution.job
        workflow = job.workflow or job.name
        self.key = effects.effect_key(
            job.tenant_id, workflow, scope.path, job.root_job_id, tool.tool, f"{job.job_id}:{position[0]}:{position[1]}"
        )

    async def run(self) -> Recorded | None:
        """The durable answer, or None when only a person can tell."""
        while True:
            claimed = await self._claim()
            row = claimed.row
            if claimed.verdict == "committed":
                return self._answer("tool_succeeded", 0, row.result, None)
            if claimed.verdict == "run":
                crash_point("effect_claimed")
                answer = await self._call(row)
                if answer is not None:
                    return answer
            found = await self._find_out(row)
            if isinstance(found, Done):
                return await self._commit(row, found, why="the status check found it done")
            if found == CANNOT_TELL:
                return None
            await self._write(
                lambda unit, job, row: effects.release(unit, job, row, "the status check found it not done")
            )

    async def _claim(self) -> effects.Claimed:
        digest = fingerprint(msgspec.json.decode(self.body))
        wanted = effects.Claim(
            self.key, self.tool.tool, self.body, digest, self.execution.services.owner, self.scope.name
        )
        try:
            return await self._write_row(lambda unit, job: effects.claim(unit, job, wanted, self.at))
        except Conflict as conflict:
            changed = {"arguments": {"recorded": "another digest under the same key", "asked": str(conflict)}}
            await self.execution.diverge(
                {"position": {"path": self.at.path, "ordinal": self.at.ordinal}, "changed": changed}
            )
            raise

    async def _call(self, row: effects.EffectRow) -> Recorded | None:
        began = time.perf_counter()
        try:
            done = await self.tool.call(self.key, self.named)
        except self.tool.not_done as error:
            facts = error_facts(error)
            seq = await self._write(lambda unit, job, row: effects.fail(unit, job, row, facts, self.at))
            return self._answer("tool_failed", seq, None, facts)
        except Exception as error:
            why = f"{type(error).__name__}: {str(error)[:200]}"
            await self._write(lambda unit, job, row: effects.mark_unknown(unit, job, row, why, self.at))
            return None
        crash_point("effect_called")
        return await self._commit(row, done, latency_ms=round((time.perf_counter() - began) * 1000, 3))

    async def _commit(
        self, row: effects.EffectRow, done: Done, *, why: str | None = None, latency_ms: float | None = None
    ) -> Recorded:
        result = encode(done.result, f"the result of effect {self.tool.tool}")
        seq = await self._write(
            lambda unit, job, row: effects.commit(
                unit, job, row, result, done.provider_id, self.at, why=why, latency_ms=latency_ms
            )
        )
        crash_point("effect_committed")
        return self._answer("tool_succeeded", seq, result, None)

    async def _find_out(self, row: effects.EffectRow) -> "Done | Verdict":
        found = await self.tool.ask_status(self.key, self.named)
        settled_at = row.claimed_at + round(self.tool.settle_after_s * 1_000_000)
        if found == NOT_DONE and (left := settled_at - self.execution.store.clock()) > 0:
            await asyncio.sleep(left / 1_000_000)
            found = await self.tool.ask_status(self.key, self.named)
        return found

    async def wait_for_person(self) -> None:
        """Ask whether it was done, and wait for the decision."""
        entry = self.execution.history.entries.get((self.at.path, self.at.ordinal))
        review_id = (entry.facts.detail or {}).get("review_id") if entry is not None else None
        if review_id is None:
            review_id = await self._request_review()
        facts = {"for": "quarantine", "review_id": review_id}
        await self.execution.wait_outside(self.scope, (self.at.path, self.at.ordinal), facts)

    async def _request_review(self) -> str:
        question = (
            f"Was {self.tool.tool} done? Its worker or its answer was lost, and there is no status check that can tell."
        )
        detail = {"effect_key": self.key, "tool": self.tool.tool, "arguments": msgspec.json.decode(self.body)}

        boundary = Boundary("effect", self.tool.tool, self.at.path, self.at.ordinal, self.at.fingerprint)

        def ask(unit: Unit, job: Any) -> str:
            return request_review(unit, job, "quarantine", question, detail, boundary).review_id

        return await self._write_row(ask)

    async def _write_row(self, decide: Callable[[Unit, Any], Any]) -> Any:
        return await self.execution.commit(_UnderJob(self.execution, self.key, decide))

    async def _write(self, decide: Callable[[Unit, Any, effects.EffectRow], Any]) -> Any:
        def with_row(unit: Unit, job: Any) -> Any:
            row = unit.get(effects.EFFECT, (job.tenant_id, self.key))
            if row is None:
                raise Conflict(f"effect {self.key} is gone")
            return decide(unit, job, row)

        return await self._write_row(with_row)

    def _answer(self, name: str, seq: int, content: bytes | None, error: ErrorFacts | None) -> Recorded:
        event = Event(name, kind="effect", name=self.tool.tool, error=error)
        job = self.execution.job
        return Recorded(
            job.job_id, seq, 0, event, self.at.path, self.at.ordinal, self.at.fingerprint, content, job.tenant_id
        )


class _UnderJob(msgspec.Struct):
    """A command under the job's lock and the effect's, as this lease."""

    execution: Any
    key: str
    act: Callable[[Unit, Any], Any]

    def locks(self) -> list[tuple[Any, Any]]:
        job = self.execution.job
        return [(JOB, job.job_id), (effects.EFFECT, (job.tenant_id, self.key))]

    def decide(self, unit: Unit) -> Any:
        job = self.execution.job
        return self.act(unit, locked_job(unit, job.job_id, lease_epoch=job.lease_epoch))
