"""The execution of one effect, from the claim to its outcome: the same for job code and external jobs.

    claim (durable) → call → commit (durable)

After an exception or a timeout the outcome is *unknown*, unless the function states that nothing was done. An unknown effect
is never blindly repeated: the status check determines the outcome; without its answer the effect is repeated if its provider
ignores a repeated key; else a person decides.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from overnight import effects
from overnight.budgets import Limit
from overnight.domain import BadInput, BudgetStopped, Conflict, ErrorFacts, Fenced, OvernightError
from overnight.domain.json_text import decode_for_display
from overnight.ledger import JobRow, locked_job
from overnight.store import Unit, crash_point
from overnight.tools import EffectAdmission, Refused, boundary_of

from .effect_records import (
    CANNOT_TELL,
    NOT_DONE,
    Done,
    EffectAction,
    EffectCommand,
    EffectHolder,
    EffectOutcome,
    EffectWait,
    Late,
    Tool,
)
from .encoding import encode, fingerprint
from .lease import LeaseLost
from .run_state import JobEvicted
from .tracebacks import error_facts, traceback_content

log = logging.getLogger(__name__)
MAX_REPEATS = 3
REPEAT_PAUSE_S = 1.0
"""The pause before the second repetition under the same key; it doubles."""


class EffectCall:
    """One call of an effect.

    - `key`: its idempotency key. `named`: its arguments by name.
    - `position`: None for external programs. `about`: the record that the caller works on.
    - `asked_before`: the review of its outcome that an earlier lease requested, as rows of earlier versions do not name it.
    """

    def __init__(
        self,
        tool: Tool,
        holder: EffectHolder,
        *,
        key: str,
        named: dict[str, Any],
        step: str | None = None,
        position: effects.EffectPosition | None = None,
        about: str | None = None,
        asked_before: str | None = None,
    ) -> None:
        self._exception: dict[str, str] | None = None
        self._tool, self._holder, self._key, self._named = tool, holder, key, named
        self._position, self._about, self._asked_before = position, about, asked_before
        self._limits: Sequence[Limit] = ()
        self._asks_again, self._repeats = position is not None, 0
        self.arguments = encode(named, f"the arguments of effect {tool.tool}")
        self._asked: dict[str, Any] = decode_for_display(self.arguments)
        self._claim = effects.EffectClaim(
            effect_key=key,
            tool=tool.tool,
            arguments=self.arguments,
            arguments_sha256=fingerprint(self._asked),
            owner=holder.owner,
            step=step,
            about=about,
        )

    async def run(self, *, settles: bool = False) -> EffectOutcome | EffectWait:
        """The durable outcome, or the review that it waits for. With `settles`, an effect that has not begun is not executed.

        Raises Conflict for a key used with other arguments, BudgetStopped if no further tool call may be made.
        """
        while True:
            claimed = await self._admit(settles=settles)
            # An approval that expires while this call waits is not asked again: a person renews it, or resumes the job.
            self._asks_again = False
            if isinstance(claimed, BudgetStopped):
                raise claimed
            if isinstance(claimed, Refused):
                return EffectOutcome("tool_refused", claimed.seq, error=claimed.error)
            row = claimed.row
            outcome: EffectOutcome | EffectWait | None = None
            match claimed.verdict:
                case "committed":
                    return EffectOutcome("tool_succeeded", 0, row.result, replayed=True)
                case "rejected":
                    error = ErrorFacts("rejected", row.error or "a person rejected it")
                    return EffectOutcome("tool_failed", 0, error=error)
                case "waiting" | "expired":
                    crash_point("effect_waits")
                    return EffectWait("approval", row.review_id or "")
                case "in_progress":
                    await asyncio.sleep(0.05)
                case "run":
                    self._asked_before = None  # a review that was requested before this call is decided
                    crash_point("effect_claimed")
                    outcome = await self._call() or await self._find_out(self._holder.store.clock())
                case "unknown":
                    outcome = await self._find_out(row.settled_at or row.claimed_at)
            if outcome is not None:
                return outcome

    # ── claim ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _admit(self, *, settles: bool) -> effects.ClaimResult | BudgetStopped | Refused:
        holder = self._holder
        if holder.limits is not None:
            self._limits = await holder.limits()
        admission = EffectAdmission(self._new_claim(), self._asked, self._position, holder.rules)
        limits, asks_again = self._limits, self._asks_again

        def admitted(unit: Unit, job: JobRow) -> Any:
            return admission.decide(unit, job, limits, asks_again=asks_again, settles=settles)

        found = await self._write(admitted, limits)
        self._use(admission.done_arguments)
        return found

    def _new_claim(self) -> effects.EffectClaim:
        """The request with an identity of its own, so that a report after its end is known to be its."""
        if self._holder.begin is not None:
            self._holder.begin()
        self._claim = msgspec.structs.replace(self._claim, claim_digest=os.urandom(32))
        return self._claim

    def _use(self, done_arguments: bytes | None) -> None:
        """Use the arguments of a person who edited them."""
        self._claim = msgspec.structs.replace(self._claim, done_arguments=done_arguments)

    def _arguments(self) -> dict[str, Any]:
        """The arguments to call with. Raises BadInput if edited ones do not fit the function."""
        edited = self._claim.done_arguments
        return self._named if edited is None else self._tool.restore(decode_for_display(edited))

    # ── call ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _call(self) -> EffectOutcome | None:
        """Call the function, and record what it came to. None: the outcome is unknown."""
        while True:
            began = time.perf_counter()
            try:
                arguments = self._arguments()
            except BadInput as unfit:
                return await self._fail(ErrorFacts("invalid_arguments", str(unfit)))
            try:
                done = await self._tool.call(self._key, arguments, self._holder.check, self._late())
            except LeaseLost:
                if self._holder.begin is None:
                    raise  # the claim stays, and the next lease finds out the outcome
                self._holder.begin()
                await self._write(_nothing)
                continue
            except self._tool.not_done as error:
                return await self._fail(error_facts(error))
            except Exception as error:  # a timeout or a fault: the outcome is unknown
                name = type(error).__name__
                return await self._unknown(name, f"{name}: {str(error)[:200]}", traceback_content(error))
            crash_point("effect_called")
            try:
                return await self._done(done, round((time.perf_counter() - began) * 1000, 3))
            except BadInput as refused:
                return await self._unknown("result_not_kept", f"it was done, and its result cannot be kept: {refused}")

    async def _done(self, done: Done, latency_ms: float) -> EffectOutcome:
        result = self._encoded(done)

        def committed(unit: Unit, job: JobRow) -> int:
            row = self._row(unit, job)
            at, about = self._position, self._about
            return effects.commit(unit, job, row, result, done.provider_id, at, latency_ms=latency_ms, about=about)

        try:
            seq = await self._write(committed)
        except (Fenced, JobEvicted):
            # Another worker or attempt has the job: it was done all the same.
            await self._holder.store.commit(self._late_report(done, result))
            raise
        crash_point("effect_committed")
        return EffectOutcome("tool_succeeded", seq, result)

    async def _fail(self, facts: ErrorFacts) -> EffectOutcome:
        def failed(unit: Unit, job: JobRow) -> tuple[int, bytes | None]:
            row = self._row(unit, job)
            seq = effects.fail(unit, job, row, facts, self._position, self._about)
            return seq, row.result if row.state == "committed" else None

        seq, result = await self._write(failed)
        if result is not None:
            return EffectOutcome("tool_succeeded", seq, result)
        return EffectOutcome("tool_failed", seq, error=facts)

    async def _unknown(self, cause: str, why: str, trace: bytes | None = None) -> None:
        self._exception = {"class": cause, "message": why}

        def unknown(unit: Unit, job: JobRow) -> None:
            row = self._row(unit, job)
            if row.state == "claimed":  # not, if a late result came first
                effects.mark_unknown(unit, job, row, cause, why, self._position, trace, self._about)

        await self._write(unknown)

    # ── late results ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _late(self) -> Late:
        claim = self._claim

        def report(done: Done) -> None:
            try:
                result = self._encoded(done)
            except BadInput:
                result = b"null"
            try:
                self._holder.store.commit_blocking(self._late_report(done, result, claim))
            except OvernightError as error:
                log.warning("the late result of effect %s is not recorded: %s", self._tool.tool, error)

        return report

    def _late_report(self, done: Done, result: bytes, claim: effects.EffectClaim | None = None) -> EffectCommand:
        """Report a result after the end of the claim. It needs no lease: fencing stops claims, not reports."""
        digest = (claim or self._claim).claim_digest or b""

        def reported(unit: Unit, job: JobRow) -> None:
            row = self._row(unit, job)
            current = effects.claim_by(row, digest) == "current"
            at = self._position if row.state != "committed" else None
            effects.report_done(
                unit, job, row, result, done.provider_id, at, is_current=current, source="executed", about=self._about
            )

        return self._command(reported, fence=lambda unit: locked_job(unit, self._holder.job_id))

    # ── out of unknown ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _find_out(self, unknown_since: int) -> EffectOutcome | EffectWait | None:
        """Settle an unknown outcome by the status check, by a repetition under the same key, or by a person.

        None: it is no longer unknown, and can be claimed again.
        """
        while True:
            found = await self._ask_status(unknown_since)
            if isinstance(found, Done):
                try:
                    return await self._confirm(found)
                except BadInput:
                    found = CANNOT_TELL  # a person can enter the result
            if found == NOT_DONE:
                await self._write(self._released)
                return None
            repeated = await self._repeat()
            if repeated == "changed":
                return None
            if repeated == "no":
                return await self._ask_person()
            crash_point("effect_repeated")
            known = await self._call()
            if known is not None:
                return known
            unknown_since = self._holder.store.clock()

    async def _ask_status(self, unknown_since: int) -> Done | str:
        """Run the status check. NOT_DONE is accepted only once `settle_after_s` has passed since the outcome became unknown.

        The time of the claim would be too early: a slow caller makes its call long after the claim.
        """
        found = await self._check_status()
        left_us = unknown_since + round(self._tool.settle_after_s * 1_000_000) - self._holder.store.clock()
        if found == NOT_DONE and left_us > 0:
            await asyncio.sleep(left_us / 1_000_000)
            found = await self._check_status()
        return found

    async def _check_status(self) -> Done | str:
        holder = self._holder
        try:
            arguments = self._arguments()
        except BadInput:
            return CANNOT_TELL
        while True:
            if holder.begin is not None:
                holder.begin()
                await self._write(_nothing)
            try:
                return await self._tool.ask_status(self._key, arguments, holder.check)
            except LeaseLost:
                if holder.begin is None:
                    raise

    async def _confirm(self, found: Done) -> EffectOutcome | None:
        result, why = self._encoded(found), "confirmed by the status check"

        def confirmed(unit: Unit, job: JobRow) -> int | None:
            row = self._row(unit, job)
            if row.state != "unknown":
                return None  # a person or a late result came first
            at, about = self._position, self._about
            return effects.commit(unit, job, row, result, found.provider_id, at, why=why, about=about)

        seq = await self._write(confirmed)
        return None if seq is None else EffectOutcome("tool_succeeded", seq, result)

    def _released(self, unit: Unit, job: JobRow) -> None:
        row = self._row(unit, job)
        if row.state == "unknown":
            effects.release(unit, job, row, "the status check reports that it was not done", about=self._about)

    async def _repeat(self) -> Literal["repeated", "changed", "no"]:
        """Claim the effect again under the same key, if its provider still knows that key."""
        tool = self._tool
        if not tool.repeat_safe or self._repeats >= MAX_REPEATS:
            return "no"
        if self._repeats:
            await asyncio.sleep(REPEAT_PAUSE_S * 2 ** (self._repeats - 1))
        self._repeats += 1
        wanted = self._new_claim()
        lifetime_us = None if tool.key_lifetime_s is None else round(tool.key_lifetime_s * 1_000_000)

        def repeated(unit: Unit, job: JobRow) -> str:
            row = self._row(unit, job)
            if row.state != "unknown":
                return "changed"
            if lifetime_us is not None and unit.now >= row.claimed_at + lifetime_us:
                return "no"
            why = "repeated under the same key, which the provider ignores if it was done"
            effects.repeat(unit, job, row, wanted, why, self._position)
            return "repeated"

        return await self._write(repeated)

    async def _ask_person(self) -> EffectWait | None:
        """Request a review of the outcome, or find the one that is open. None: the outcome was found meanwhile."""
        edited, before = self._claim.done_arguments, self._asked_before
        used = self._asked if edited is None else decode_for_display(edited)
        at = boundary_of(self._tool.tool, self._position)
        why = "no status check can determine it"

        def requested(unit: Unit, job: JobRow) -> str | None:
            row = self._row(unit, job)
            if row.state == "unknown" and row.review_id is None and before is not None:
                return before
            return effects.quarantine(unit, job, row, why, self._about, at, used, self._exception)

        review_id = await self._write(requested)
        return None if review_id is None else EffectWait("quarantine", review_id)

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _command(
        self, act: EffectAction, limits: Sequence[Limit] = (), fence: Callable[[Unit], JobRow] | None = None
    ) -> EffectCommand:
        holder = self._holder
        return EffectCommand(
            job_id=holder.job_id,
            tenant_id=holder.tenant_id,
            key=self._key,
            fence=fence or holder.fence,
            act=act,
            limits=limits,
        )

    async def _write(self, act: EffectAction, limits: Sequence[Limit] = ()) -> Any:
        return await self._holder.commit(self._command(act, limits))

    def _row(self, unit: Unit, job: JobRow) -> effects.EffectRow:
        row = unit.get(effects.EFFECT, (job.tenant_id, self._key))
        if row is None:
            raise Conflict(f"effect {self._key} is gone")
        return row

    def _encoded(self, done: Done) -> bytes:
        return encode(done.result, f"the result of effect {self._tool.tool}")


def _nothing(unit: Unit, job: JobRow) -> None:
    """Only the fence is checked."""
