"""The execution of one effect, from the claim to its outcome: the same for job code and external jobs.

    claim (durable) → call → commit (durable)

After an exception or a timeout the outcome is *unknown*, unless the function states that nothing was done. An unknown effect
is never blindly repeated: the status check determines the outcome, or else a person decides.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec

from overnight import effects
from overnight.budgets import Limit, count_tool_call, locks, stop_facts
from overnight.domain import BadInput, BudgetStopped, Conflict, ErrorFacts, Event
from overnight.domain.json_text import decode_for_display
from overnight.ledger import JOB, JobRow, append
from overnight.reviews import Boundary, request_review
from overnight.store import Unit, crash_point

from .encoding import encode, fingerprint
from .lease import LeaseLost
from .tracebacks import error_facts, traceback_content


class Done(msgspec.Struct, frozen=True):
    """Returned by an effect or its status check: it was done. `provider_id`: its id at the provider; `result`: its result."""

    provider_id: str | None = None
    result: Any = None


NOT_DONE = "not_done"
CANNOT_TELL = "cannot_tell"


class Tool(Protocol):
    """The interface of an effect function for its execution."""

    tool: str
    not_done: tuple[type[Exception], ...]
    settle_after_s: float

    async def call(self, key: str, named: dict[str, Any], check: "Check") -> Done: ...

    async def ask_status(self, key: str, named: dict[str, Any], check: "Check") -> Done | str: ...


Check = Callable[[], None]
"""Raises LeaseLost if the caller may no longer act."""


class EffectOutcome(msgspec.Struct, frozen=True):
    """The outcome of an effect: `tool_succeeded` with its result as JSON, or `tool_failed`.

    `seq`: its event; 0 if it was not written by this call. `replayed`: an earlier caller executed the effect.
    """

    event: str
    seq: int
    content: bytes | None = None
    error: ErrorFacts | None = None
    replayed: bool = False


EffectAction = Callable[[Unit, JobRow], Any]


class Write(Protocol):
    """Commit an action, counted in the budgets of `limits`."""

    def __call__(self, act: EffectAction, limits: Sequence[Limit] = ()) -> Awaitable[Any]: ...


class EffectCall:
    """One call of an effect.

    - `key`: its idempotency key. `named`: its arguments by name.
    - `write`: commits an action under the locks of the job and the effect; raises Fenced once the caller has lost the job.
    - `clock`: the time in microseconds. `owner`: the process. `check`: runs directly before the function.
    - `limits`: finds the limits that the call counts in. `position`: None for external programs.
    - `about`: the record that the caller works on.
    """

    def __init__(
        self,
        tool: Tool,
        *,
        key: str,
        named: dict[str, Any],
        write: Write,
        clock: Callable[[], int],
        owner: str,
        check: Check,
        step: str | None = None,
        position: effects.EffectPosition | None = None,
        limits: Callable[[], Awaitable[Sequence[Limit]]] | None = None,
        about: str | None = None,
    ) -> None:
        self._find_limits, self._limits = limits, tuple[Limit, ...]()
        self.tool, self.key, self.named, self._write, self._clock = tool, key, named, write, clock
        self.position, self._check, self._about = position, check, about
        self.was_called = False
        self.arguments = encode(named, f"the arguments of effect {tool.tool}")
        digest = fingerprint(decode_for_display(self.arguments))
        self._claim = effects.EffectClaim(
            effect_key=key,
            tool=tool.tool,
            arguments=self.arguments,
            arguments_sha256=digest,
            owner=owner,
            step=step,
            about=about,
        )

    async def run(self) -> EffectOutcome | None:
        """The durable outcome; None if only a person can determine it.

        Raises Conflict for a key used with other arguments, BudgetStopped if no further tool call may be made.
        """
        while True:
            if self._find_limits is not None:
                self._limits = tuple(await self._find_limits())
            claimed: effects.ClaimResult | BudgetStopped = await self._write(self._claimed, self._limits)
            if isinstance(claimed, BudgetStopped):
                raise claimed
            row = claimed.row
            if claimed.verdict == "committed":
                return EffectOutcome("tool_succeeded", 0, row.result, replayed=True)
            if claimed.verdict == "rejected":
                return EffectOutcome(
                    "tool_failed", 0, error=ErrorFacts("rejected", row.error or "a person rejected it")
                )
            if claimed.verdict == "in_progress":
                await asyncio.sleep(0.05)
                continue
            if claimed.verdict == "run":
                self.was_called = True
                crash_point("effect_claimed")
                known = await self._call()
                if known is not None:
                    return known
                unknown_since = self._clock()
            else:
                unknown_since = row.settled_at or row.claimed_at
            found = await self._find_out(unknown_since)
            if isinstance(found, Done):
                try:
                    return await self._commit(found, why="confirmed by the status check")
                except BadInput:
                    found = CANNOT_TELL  # a person can enter the result
            if found == CANNOT_TELL:
                return None
            await self._write(self._released)

    def _claimed(self, unit: Unit, job: JobRow) -> effects.ClaimResult | BudgetStopped:
        if self._limits and effects.begins(job, unit.get(effects.EFFECT, (job.tenant_id, self.key))):
            try:
                count_tool_call(unit, job.tenant_id, self._limits)
            except BudgetStopped as stop:
                event = Event("budget_stopped", kind="effect", name=self.tool.tool, step=self._claim.step)
                event.attempt, event.decision, event.about = job.attempt, stop_facts(stop), self._about
                append(unit, job, event)
                return stop
        return effects.claim(unit, job, self._claim, self.position)

    def _released(self, unit: Unit, job: JobRow) -> None:
        why = "the status check reports that it was not done"
        effects.release(unit, job, self._row(unit, job), why, about=self._about)

    def _row(self, unit: Unit, job: JobRow) -> effects.EffectRow:
        row = unit.get(effects.EFFECT, (job.tenant_id, self.key))
        if row is None:
            raise Conflict(f"effect {self.key} is gone")
        return row

    async def _call(self) -> EffectOutcome | None:
        began = time.perf_counter()
        try:
            done = await self.tool.call(self.key, self.named, self._check)
        except LeaseLost:
            raise  # the claim stays, and the next lease finds out the outcome
        except self.tool.not_done as error:
            return await self._fail(error_facts(error))
        except Exception as error:  # a timeout or a fault: the outcome is unknown
            name = type(error).__name__
            return await self._unknown(name, f"{name}: {str(error)[:200]}", traceback_content(error))
        crash_point("effect_called")
        try:
            return await self._commit(done, latency_ms=round((time.perf_counter() - began) * 1000, 3))
        except BadInput as refused:
            return await self._unknown("result_not_kept", f"it was done, and its result cannot be kept: {refused}")

    async def _unknown(self, cause: str, why: str, trace: bytes | None = None) -> None:
        def unknown(unit: Unit, job: JobRow) -> None:
            effects.mark_unknown(unit, job, self._row(unit, job), cause, why, self.position, trace, self._about)

        await self._write(unknown)

    async def _fail(self, facts: ErrorFacts) -> EffectOutcome:
        def failed(unit: Unit, job: JobRow) -> int:
            return effects.fail(unit, job, self._row(unit, job), facts, self.position, self._about)

        return EffectOutcome("tool_failed", await self._write(failed), error=facts)

    async def _commit(self, done: Done, *, why: str | None = None, latency_ms: float | None = None) -> EffectOutcome:
        result = encode(done.result, f"the result of effect {self.tool.tool}")

        def committed(unit: Unit, job: JobRow) -> int:
            row = self._row(unit, job)
            return effects.commit(
                unit,
                job,
                row,
                result,
                done.provider_id,
                self.position,
                why=why,
                latency_ms=latency_ms,
                about=self._about,
            )

        seq = await self._write(committed)
        crash_point("effect_committed")
        return EffectOutcome("tool_succeeded", seq, result)

    async def _find_out(self, unknown_since: int) -> Done | str:
        """Run the status check. NOT_DONE is accepted only once `settle_after_s` has passed since the outcome became unknown.

        The time of the claim would be too early: a slow caller makes its call long after the claim.
        """
        found = await self.tool.ask_status(self.key, self.named, self._check)
        left_us = unknown_since + round(self.tool.settle_after_s * 1_000_000) - self._clock()
        if found == NOT_DONE and left_us > 0:
            await asyncio.sleep(left_us / 1_000_000)
            found = await self.tool.ask_status(self.key, self.named, self._check)
        return found

    async def request_review(self) -> str:
        """Request a review of the outcome. Returns the review's id."""
        question = f"Was effect {self.tool.tool} done? Its outcome is unknown, and no status check can determine it."
        detail = {"effect_key": self.key, "tool": self.tool.tool, "arguments": decode_for_display(self.arguments)}
        at = self.position
        boundary = Boundary("effect", self.tool.tool, at.path, at.ordinal, at.fingerprint) if at is not None else None

        def requested(unit: Unit, job: JobRow) -> str:
            return request_review(unit, job, "quarantine", question, detail, boundary, self._about).review_id

        return await self._write(requested)


class EffectCommand(msgspec.Struct):
    """An action under the locks of a job and an effect. `fence` raises if the caller may no longer write."""

    job_id: str
    tenant_id: str
    key: str
    fence: Callable[[Unit], JobRow]
    act: EffectAction
    limits: Sequence[Limit] = ()

    def locks(self) -> list[tuple[Any, Any]]:
        counted = locks(self.tenant_id, self.limits)
        return [(JOB, self.job_id), *counted, (effects.EFFECT, (self.tenant_id, self.key))]

    def decide(self, unit: Unit) -> Any:
        return self.act(unit, self.fence(unit))
