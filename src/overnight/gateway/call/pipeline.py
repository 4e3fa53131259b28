"""The pipeline of one call: replay, cache, route, guard, admit, attempt, settle.

Every attempt is admitted on its own: it is reserved and counted, and `model_called` is durable before the provider is called.
A failed attempt is settled in the transaction that admits the next one.
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

from ..admission.admission_outcomes import AdmissionOutcome, CacheHit, Concluded, Granted, Replayed, Stopped
from ..admission.attempt_result import AttemptResult
from ..admission.call_account import CallAccount
from ..admission.call_admission import AttemptPlan, CallAdmission
from ..admission.commands import SettleLost
from ..admission.unsent_calls import SettleUnsent
from ..attempt import Attempt, AttemptFailure, Dispatch, Reply
from ..cache import CacheLookup
from ..call_context import CallContext
from ..call_deadlines import CallDeadlines
from .attempt_evaluation import AttemptEvaluation
from .degraded_answer import FinalOutcome
from .final_outcome import final_outcome
from .gateway_failures import not_carried, not_sent, unread
from .request_preparation import attempt_state, context_without_reasoning, new_attempt, prepare_request
from .result import Answered, CallResult, DegradedAnswer, Failed, is_late
from .retry_decision import GiveUp, RetrySameTarget, TryNextTarget, attempt_share, retry_decision
from .services import CallServices
from .target_selection import TargetSelection
from .whole_answer import WHOLE_ANSWER, ProviderTime, Sender

MAX_HELD_BACKOFF_S = 0.02
"""Before a longer wait the failed attempt is settled, so that its reservation does not block other calls."""

log = logging.getLogger("overnight.gateway")
_random = random.Random()  # noqa: S311 - spreads waits, hides nothing
T = TypeVar("T")


class CallPipeline:
    """One call. `run` produces its result, `release` ends it. It is the only writer of its state.

    Attributes:
        context: the decisions before the first attempt.
        deadlines: the deadlines of the call.
        selection: the target of the next attempt.
        account: the cost of the call.
        attempt: the last admitted attempt; None before.
        attempts: the number of admitted attempts.
        sent_at: the time at which the present attempt was sent, a time of the loop; None before, and while the call is queued.
        result: the end of the call; None before.
        call_id: the attempt that produced the answer.
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
        self._evaluation = AttemptEvaluation(services.admission, self.selection, self.deadlines)
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
        """Run a call without streaming to its recorded end.

        Raises BudgetStopped, LoopStopped, RateLimited, QueueTimeout, ClientDisconnected, Fenced, Conflict, NotFound, Forbidden,
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
        """Admit and send attempts until one succeeds. Returns its answer, or None if the call has its `result`: the last failure
        is settled, or a recorded answer is returned. Raises the errors of `run`."""
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
        """End the call, whatever its result. Call it exactly once."""
        attempt, settlements, subject = self.attempt, self._services.admission.settlements, self.context.subject
        self.account.defer_held(subject)
        if attempt is not None and settlements.is_open(attempt.call_id):
            # The call was cancelled between its admission and its settlement.
            was_sent = self.sent_at is not None
            end = SettleLost if was_sent else SettleUnsent
            why = "it was cancelled while in flight" if was_sent else "it was cancelled before it was sent"
            settlements.defer(attempt.call_id, end(attempt.call_id, subject.job_id, why))
        self._admission.leave()
        if self._lookup is not None:
            self._lookup.release()

    # ── replay, cache, route ────────────────────────────────────────────────────────────────────────────────────────

    async def _ask_caches(self) -> bool:
        """Replay a recorded answer of an older attempt, or else consult the caches. Returns whether an answer was replayed."""
        services = self._services.lookup
        if self.context.subject.is_auxiliary or not services.caches.serve(self.context.decision):
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
        """Whether any target can be called. With a cache hit the call waits for none."""
        if self._has_cache_hit:
            return self._has_target
        selection = self.selection
        found = self._has_target and await selection.claim_probe(self.deadlines.circuit_deadline())
        if not found and selection.will_wait:
            with self.deadlines.queueing():
                is_recalled = await self._admission.recall(self._plan())
            self._learn_subject()
            if is_recalled:
                return True  # replayed, so open circuits do not matter
        return found or await selection.select_skipped(self.deadlines.circuit_deadline())

    @property
    def _has_cache_hit(self) -> bool:
        return self._lookup is not None and self._lookup.has_hit

    async def _final_outcome(self, failure: Failure | None) -> FinalOutcome | None:
        """The end of a call without a target. None if its last `failure` is the end."""
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
        """Copy the subject of the admission, which the lookup and the admission update, into the context."""
        subject = self._admission.subject
        if subject is not self.context.subject:
            self.context = msgspec.structs.replace(self.context, subject=subject)

    async def _admit(self) -> Attempt | None:
        """Reserve the next attempt; wait while outstanding calls hold its budgets. None if the call is answered without it."""
        self.sent_at = None
        try:
            outcome = await self._admit_in_turn()
        except StoreUnavailable:
            self.account.defer_held(self.context.subject)
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
        """The request in the target's format, and the deadline of its attempt. Raises InvalidBody."""
        attempt.began, attempt.queued_ms = time.perf_counter(), self.deadlines.take_queued_ms()
        now = self.deadlines.loop.time()
        request = prepare_request(self.context, attempt)
        attempt.losses = request.prepared.losses
        if self.context.decision.cache.prompt_markers:
            attempt.markers = request.markers
        attempt.seconds = attempt_share(self.deadlines.deadline - now, has_next=self.selection.has_next)
        attempt.sent_at = self.sent_at = now
        until = self.deadlines.stream_deadline(self.context.decision)
        return Dispatch(request.prepared, request.headers, now + attempt.seconds, until)

    def _check(self) -> None:
        """Check before sending that the caller may still act for its job. Raises Fenced."""
        check = self.context.check
        try:
            if check is not None:
                check()
        except Fenced:
            self.sent_at = None
            raise

    async def _go_on_after(self, attempt: Attempt, failed: AttemptFailure) -> bool:
        """Prepare the next attempt. Returns False if the failure is the end of the call; it is then settled."""
        result = self._evaluation.failed(self.context, attempt, failed)
        self.account.hold(result)
        backoff_s = await self._choose_next(failed)
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
            # Other calls wait for the result of a probe, and this call may have to queue.
            await self.account.settle_held(self.context.subject, self.context.request)
        if backoff_s:
            await asyncio.sleep(backoff_s)
        return True

    async def _choose_next(self, failed: AttemptFailure) -> float | None:
        """Choose the next attempt. Returns the delay before it, in seconds; None if there is none."""
        self._return_probe()  # if the attempt was a probe that was not sent
        failure = failed.failure
        changed = context_without_reasoning(self.context, failure)
        if changed is not None or self.selection.change_cap_field(failure, failed.body):
            self.context = changed or self.context
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
            # The circuit update must be written: all calls wait for it, including this one.
            await self.account.settle_held(self.context.subject, self.context.request)
        return 0.0 if await selection.select_skipped(deadlines.circuit_deadline()) else None

    def _return_probe(self) -> None:
        """Return an unused probe, so that other calls may probe."""
        returning = self.selection.return_probe()
        if returning is not None:
            self._services.run_in_background(returning)

    # ── settle ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def settle_reply(self, reply: Reply) -> None:
        """Write the answer of the present attempt as the end of the call.

        Raises Fenced when a newer attempt or lease has begun, StoreUnavailable.
        """
        await self._settle(self._evaluation.answered(self.context, self._present_attempt(), reply), reply)

    async def settle_failure(self, failed: AttemptFailure) -> None:
        """Write the failure of the present attempt as the end of the call. Raises as `settle_reply`."""
        await self._settle(self._evaluation.failed(self.context, self._present_attempt(), failed), failed)

    async def confirm_target(self) -> None:
        """Close the circuit of a stream's target once it answers, without waiting for the end of the stream."""
        await self._evaluation.confirm_target(self.context, self._present_attempt())

    def _present_attempt(self) -> Attempt:
        if self.attempt is None:
            raise RuntimeError("no attempt was admitted")
        return self.attempt

    async def _settle(self, result: AttemptResult, end: Reply | AttemptFailure | None = None) -> None:
        """Write the end of the call. Raises Fenced when a newer attempt or lease has begun, StoreUnavailable."""
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
                f"{context.subject.job_id}: a newer attempt began while this call was in flight; this one has ended"
            )
        if self._lookup is not None and isinstance(end, Reply) and not is_late(settled.recorded):
            self._lookup.store_answer(attempt, settled.recorded, end.body)

    # ── facts for the response headers ──────────────────────────────────────────────────────────────────────────────

    @property
    def cache_kind(self) -> str | None:
        """The value of the cache header (see `CacheLookup.kind`)."""
        hit = self.result.recorded if isinstance(self.result, CacheHit) else None
        return None if self._lookup is None else self._lookup.kind(hit)

    def overhead_ms(self) -> float:
        """The time spent outside of providers, in milliseconds, including waits for budgets and retries."""
        elapsed_s = time.perf_counter() - self.context.started
        return max(0.0, (elapsed_s - self._provider_time.seconds) * 1000)
