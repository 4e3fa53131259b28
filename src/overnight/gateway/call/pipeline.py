"""The pipeline of one call: replay, cache, route, guard, admit, attempt, settle.

Every attempt is admitted on its own (reserved, counted, `model_called` durable before the provider is asked), and a failed
attempt is settled in the transaction that admits the next one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TypeVar

import msgspec

from overnight.domain import Fenced, OvernightError, StoreUnavailable
from overnight.providers.error_classes import Failure
from overnight.store import crash_point
from overnight.wire_formats.request import InvalidBody

from ..admission.admission_outcomes import (
    AdmissionOutcome,
    CacheHit,
    Concluded,
    Granted,
    Replayed,
    Stopped,
)
from ..admission.attempt_result import AttemptResult
from ..admission.call_account import CallAccount
from ..admission.call_admission import AttemptPlan, CallAdmission
from ..admission.commands import Lose
from ..admission.unsent_calls import SettleUnsent
from ..attempt import Attempt, AttemptFailure, Dispatch, Reply
from ..cache import CacheLookup
from ..call_context import CallContext
from ..call_deadlines import CallDeadlines
from .attempt_evaluation import AttemptResults
from .degraded_answer import FinalOutcome
from .final_outcome import final_outcome
from .gateway_failures import not_carried, not_sent, unread
from .request_preparation import attempt_state, new_attempt, prepare_request, without_thoughts
from .result import Answered, CallResult, DegradedAnswer, Failed, is_late
from .retry_decision import GiveUp, RetrySameTarget, TryNextTarget, attempt_share, retry_decision
from .services import CallServices
from .target_selection import TargetSelection
from .whole_answer import WHOLE_ANSWER, ProviderTime, Sender

MAX_HELD_BACKOFF_S = 0.02
"""A longer wait settles the failed attempt first: its reservation must not stand in the way of others."""

log = logging.getLogger("overnight.gateway")
_random = random.Random()  # noqa: S311 - spreads waits, hides nothing
T = TypeVar("T")


class CallPipeline:
    """One call. `run` brings it to its result, `release` ends it. It is the only writer of its state.

    Attributes:
        context: what was decided before the first attempt.
        deadlines: how long the call may take.
        selection: the target of the next attempt.
        account: what the call has cost.
        attempt: the last attempt that was admitted; None before.
        attempts: how many attempts were admitted.
        sent_at: when the present attempt was sent, a time of the loop; None before, and while the call is queued.
        result: the end of the call; None before.
        call_id: the attempt that the answer is of.
    """

    def __init__(self, services: CallServices, context: CallContext) -> None:
        self._services = services
        self.context = context
        waits_long = context.subject.place is not None
        self.deadlines = CallDeadlines(context.decision, services.loop, waits_long=waits_long)
        self._admission = CallAdmission(services.admission, context, self.deadlines)
        self.account: CallAccount = self._admission.account
        clock = services.admission.store.clock
        self.selection = TargetSelection(services.targets, services.circuits, context, clock, self.deadlines)
        self._results = AttemptResults(services.admission, self.selection, self.deadlines)
        self._lookup: CacheLookup | None = None
        self._final: FinalOutcome | None = None
        self._provider_time = ProviderTime()
        self.attempt: Attempt | None = None
        self.attempts = self._attempts_here = 0
        self.sent_at: float | None = None
        self.result: CallResult | None = None
        self.call_id = ""
        self._has_target = self.selection.select_next()

    # ── from start to end ───────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> CallResult:
        """Bring a call whose answer comes whole to its recorded end.

        Raises BudgetStopped, LoopStopped, RateLimited, WaitedTooLong, CallerLeft, Fenced, Conflict, NotFound, Forbidden,
        StoreUnavailable.
        """
        reply = await self.attempt_until_answered(WHOLE_ANSWER)
        if reply is not None:
            crash_point("model_answered")
            await self.settle_reply(reply)
        if self.result is None:
            raise RuntimeError("a call ended without a result")
        return self.result

    async def attempt_until_answered(self, sender: Sender[T]) -> T | None:
        """Admit and send attempts until one succeeds; its answer. None where the call has its `result`: the last failure is
        settled, or a recorded answer is given. Raises as `run`."""
        if await self._ask_caches():
            return None
        if not await self._find_first_target():
            self._final = await self._final_outcome(None)
        try:
            while (attempt := await self._admit()) is not None:
                result = await self._send(sender, attempt)
                if not isinstance(result, AttemptFailure):
                    return result
                if not await self._go_on_after(attempt, result):
                    return None
            self._return_probe()
            return None
        except BaseException:
            self._return_probe()
            raise

    def release(self) -> None:
        """The call is over, whichever way. To be called exactly once."""
        attempt, settlements, subject = self.attempt, self._services.admission.settlements, self.context.subject
        self.account.owe_held(subject)
        if attempt is not None and settlements.is_open(attempt.call_id):
            # It was ended between its admission and its settlement.
            was_sent = self.sent_at is not None
            end = Lose if was_sent else SettleUnsent
            why = "it was ended while it was under way" if was_sent else "it was ended before it was sent"
            settlements.owe(attempt.call_id, end(attempt.call_id, subject.job_id, why))
        self._admission.leave()
        if self._lookup is not None:
            self._lookup.release()

    # ── replay, cache, route ────────────────────────────────────────────────────────────────────────────────────────

    async def _ask_caches(self) -> bool:
        """Whether a recorded answer of an older attempt is given before any cache is asked. Else the caches are asked."""
        services = self._services.lookup
        if self.context.subject.aside or not services.caches.serve(self.context.decision):
            return False
        self._lookup = lookup = CacheLookup(services, self.context, self.deadlines)
        with self.deadlines.queueing(counts=False):
            if await lookup.may_replay():
                outcome = await self._admission.probe(self._plan())
                self._learn_subject()
                if self._is_answered(outcome):
                    return True
            await lookup.look_up(self.context.subject)
            self._admission.subject = lookup.subject
            self._learn_subject()
        return False

    async def _find_first_target(self) -> bool:
        """Whether there is a target to ask at all. With an answer from the cache at hand the call waits for none."""
        if self._has_cache_hit:
            return self._has_target
        selection = self.selection
        found = self._has_target and await selection.claim_probe(self.deadlines.circuit_deadline())
        if not found and selection.will_wait:
            with self.deadlines.queueing():
                is_recalled = await self._admission.recall(self._plan())
            self._learn_subject()
            if is_recalled:
                return True  # replayed, whatever is open
        return found or await selection.select_skipped(self.deadlines.circuit_deadline())

    @property
    def _has_cache_hit(self) -> bool:
        return self._lookup is not None and self._lookup.has_hit

    async def _final_outcome(self, failure: Failure | None) -> FinalOutcome | None:
        """The end of a call that no target is left for. None where that is its last `failure`."""
        if failure is not None and not failure.fallback:
            return None
        is_settled = self.account.unsettled is None
        return await final_outcome(self.context, self.selection, self._lookup, failure, is_settled=is_settled)

    # ── guard, admit ────────────────────────────────────────────────────────────────────────────────────────────────

    def _plan(self) -> AttemptPlan:
        lookup = self._lookup
        return AttemptPlan(
            target=self.selection.target,
            attempts=self.attempts,
            fallback=self.selection.fallback,
            cache_result=None if lookup is None else lookup.result,
            final=self._final,
            is_free=self._final is not None or self._has_cache_hit,
        )

    def _learn_subject(self) -> None:
        """Take over what admissions and the lookup have found out about the job."""
        subject = self._admission.subject
        if subject is not self.context.subject:
            self.context = msgspec.structs.replace(self.context, subject=subject)

    async def _admit(self) -> Attempt | None:
        """Reserve the next attempt, waiting for room where only outstanding calls are in the way. None where the call is
        answered without it."""
        self.sent_at = None
        try:
            outcome = await self._admit_in_turn()
        except StoreUnavailable:
            self.account.owe_held(self.context.subject)
            raise
        except OvernightError:
            held = self.account.take()
            if held is not None:
                await self._settle(held)
            raise
        self.selection.fallback = None
        if self._lookup is not None:
            self._lookup.admitted()
        if isinstance(outcome, Stopped):
            raise outcome.error
        crash_point("model_admitted")
        if self._is_answered(outcome):
            return None
        if not isinstance(outcome, Granted):
            raise TypeError(f"an admission ended as {type(outcome).__name__}")
        return self._new_attempt(outcome)

    async def _admit_in_turn(self) -> AdmissionOutcome:
        try:
            with self.deadlines.queueing():
                return await self._admission.admit(self._plan())
        finally:
            self._learn_subject()

    def _is_answered(self, outcome: AdmissionOutcome) -> bool:
        """Whether the call has its result without an attempt."""
        match outcome:
            case Concluded(recorded=recorded):
                failure = self._final.failure if self._final is not None else None
                self.call_id = recorded.facts.call_id or ""
                self.result = DegradedAnswer(recorded) if failure is None else Failed(failure, recorded)
            case CacheHit(recorded=recorded):
                self.result = outcome
                if self._lookup is not None:
                    self._lookup.hit_recorded(recorded)
            case Replayed():
                self.result = outcome
            case _:
                return False
        return True

    def _new_attempt(self, granted: Granted) -> Attempt:
        self.attempts += 1
        self._attempts_here += 1
        self.call_id = granted.call_id
        self.attempt = attempt = new_attempt(granted, self.selection, self.attempt)
        return attempt

    # ── attempt ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _send(self, sender: Sender[T], attempt: Attempt) -> T | AttemptFailure:
        check = None if self.context.check is None else self._check
        try:
            return await sender.send(self.context, attempt, self._prepare(attempt), self._provider_time, check)
        except InvalidBody as error:
            return AttemptFailure(not_carried(str(error)))
        except OvernightError:
            raise
        except Exception:
            log.exception("internal error while reading a response")
            if attempt.sent_at is None:
                return AttemptFailure(not_sent())
            return AttemptFailure(unread(), received=sender.received())

    def _prepare(self, attempt: Attempt) -> Dispatch:
        """The request in the target's format, and until when its attempt may take. Raises InvalidBody."""
        attempt.began = time.perf_counter()
        now = self.deadlines.loop.time()
        request = prepare_request(self.context, attempt)
        attempt.losses = request.prepared.losses
        if self.context.decision.cache.prompt_markers:
            attempt.markers = request.markers
        attempt.seconds = attempt_share(self.deadlines.deadline - now, has_next=self.selection.has_next)
        attempt.sent_at = self.sent_at = now
        return Dispatch(request.prepared, request.headers, now + attempt.seconds)

    def _check(self) -> None:
        """Whether the caller may still act for its job; else nothing is sent. Raises Fenced."""
        check = self.context.check
        try:
            if check is not None:
                check()
        except Fenced:
            self.sent_at = None
            raise

    async def _go_on_after(self, attempt: Attempt, failed: AttemptFailure) -> bool:
        """Prepare the next attempt. False where the failure is the end of the call, which is settled then."""
        result = self._results.failed(self.context, attempt, failed)
        self.account.hold(result)
        backoff_s = await self._choose_next(failed.failure)
        if backoff_s is None:
            self._final = await self._final_outcome(failed.failure)
            if self._final is None:
                crash_point("model_answered")
                self.account.take()
                await self._settle(result, failed)
                return False
            return True
        update = result.breaker_update
        is_probe = update is not None and update.call is not None
        if is_probe or backoff_s > MAX_HELD_BACKOFF_S:
            # Others wait to hear of a probe, and this call may have to queue.
            await self.account.settle_held(self.context.subject, self.context.request)
        if backoff_s:
            await asyncio.sleep(backoff_s)
        return True

    async def _choose_next(self, failure: Failure) -> float | None:
        """Choose the next attempt: how long to wait for it, in seconds; None when there is none."""
        self._return_probe()  # of a probe that could not be sent
        changed = without_thoughts(self.context, failure)
        if changed is not None:
            self.context = changed
            return 0.0
        selection, deadlines = self.selection, self.deadlines
        state = attempt_state(selection, deadlines, self._attempts_here)
        match retry_decision(failure, self._services.retries.of(failure.error_class), state, _random):
            case RetrySameTarget(delay_s=delay_s):
                return delay_s
            case GiveUp():
                return None
            case TryNextTarget(may_return=may_return):
                if may_return:
                    selection.allow_return()
        self._attempts_here = 0
        reason = f"{failure.error_class}: {failure.code}"
        if selection.select_next(reason) and await selection.claim_probe(deadlines.circuit_deadline()):
            return 0.0
        if selection.will_wait:
            # What it says of its target must be written: every call waits for that, this one too.
            await self.account.settle_held(self.context.subject, self.context.request)
        return 0.0 if await selection.select_skipped(deadlines.circuit_deadline()) else None

    def _return_probe(self) -> None:
        """A probe that came to nothing must not keep others from trying."""
        returning = self.selection.return_probe()
        if returning is not None:
            self._services.run_in_background(returning)

    # ── settle ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def settle_reply(self, reply: Reply) -> None:
        """Write the answer of the present attempt as the end of the call.

        Raises Fenced when a newer attempt or lease has begun meanwhile, StoreUnavailable.
        """
        await self._settle(self._results.answered(self.context, self._present_attempt(), reply), reply)

    async def settle_failure(self, failed: AttemptFailure) -> None:
        """Write the failure of the present attempt as the end of the call. Raises as `settle_reply`."""
        await self._settle(self._results.failed(self.context, self._present_attempt(), failed), failed)

    async def confirm_target(self) -> None:
        """The target of a stream answers: its circuit need not stay open until the stream has come to its end."""
        await self._results.confirm_target(self.context, self._present_attempt())

    def _present_attempt(self) -> Attempt:
        if self.attempt is None:
            raise RuntimeError("no attempt was admitted")
        return self.attempt

    async def _settle(self, result: AttemptResult, end: Reply | AttemptFailure | None = None) -> None:
        """Write the end of the call. Raises Fenced when a newer attempt or lease has begun meanwhile, StoreUnavailable."""
        context, attempt = self.context, self._present_attempt()
        if self._lookup is not None:
            self._lookup.compare(context.subject, attempt.target, result)
        settled = await self.account.settle(context.subject, context.request, result)
        if isinstance(end, Reply):
            self.result = Answered(end, settled.recorded)
        elif end is not None:
            self.result = Failed(end.failure, settled.recorded, end.body)
        crash_point("model_settled")
        if settled.fenced:
            raise Fenced(
                f"{context.subject.job_id}: a newer attempt began while this call was under way; this one is over"
            )
        if self._lookup is not None and isinstance(end, Reply) and not is_late(settled.recorded):
            self._lookup.store_answer(attempt, settled.recorded, end.body)

    # ── what the answer says of the call ────────────────────────────────────────────────────────────────────────────

    @property
    def cache_kind(self) -> str | None:
        """What the caches had to do with the call (see `CacheLookup.kind`)."""
        hit = self.result.recorded if isinstance(self.result, CacheHit) else None
        return None if self._lookup is None else self._lookup.kind(hit)

    def overhead_ms(self) -> float:
        """What of the time so far was not the providers', in milliseconds, waits for budgets and retries included."""
        elapsed_s = time.perf_counter() - self.context.started
        return max(0.0, (elapsed_s - self._provider_time.seconds) * 1000)
