"""Admission control for one call: loop guard, recorded answers, fair queueing for budgets and rate limits."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import msgspec

from overnight.budgets import Key, Wait
from overnight.domain import Event, month_of, new_id
from overnight.providers.targets import Target

from ..call_context import CallContext, call_event
from ..call_deadlines import MIN_STORE_S, CallDeadlines, store_answers_by
from ..error_responses import ClientDisconnected, QueueTimeout, RateLimited
from ..identity import Subject, caller_of
from .admission_outcomes import (
    AdmissionOutcome,
    AdmissionReport,
    CacheHit,
    Granted,
    MustWait,
    NeedsAncestors,
    NeedsTurn,
    Replayed,
    StillInFlight,
)
from .call_account import CallAccount, keys_of
from .commands import Admit, CacheLookupResult, RecordRejection, UnreservedEnd
from .decision import GiveUpWaiting, may_recall, retry_after_s, waiting_decision
from .reservation import reservation_of
from .services import AdmissionServices
from .unsent_calls import SettleUnsent

_LIMIT_NAMES = {"requests": "requests a minute", "tokens": "tokens a minute", "concurrency": "calls at once"}


class AttemptPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt to be admitted.

    Fields:
        target: its target.
        attempts: the number of admitted attempts of the call before it.
        fallback: the decision of `fallback_taken`, if the call continues at another target.
        cache_result: the result of the cache lookup.
        final: the end of the call, if no target is left.
        is_free: whether it needs no budget and no rate limit: a cache has the answer, or no provider is called.
    """

    target: Target
    attempts: int = 0
    fallback: dict[str, str] | None = None
    cache_result: CacheLookupResult | None = None
    final: UnreservedEnd | None = None
    is_free: bool = False


class CallAdmission:
    """The admissions of one call. `subject` is its job, updated by each admission."""

    __slots__ = (
        "_call_id", "_context", "_deadlines", "_looked_up", "_rate_limit_recorded", "_recalled", "_services", "_waiting_for",
        "_waiting_since", "account", "subject",
    )  # fmt: skip

    def __init__(self, services: AdmissionServices, context: CallContext, deadlines: CallDeadlines) -> None:
        self._services, self._context, self._deadlines = services, context, deadlines
        self.subject: Subject = context.subject
        self.account = CallAccount(services, deadlines, context.subject.who.tenant_id)
        self._call_id = ""  # of the next attempt, also while it waits
        self._waiting_for: Wait | None = None
        self._waiting_since = 0.0
        self._rate_limit_recorded = self._looked_up = False
        self._recalled: Replayed | None = None

    # ── in turn ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def recall(self, plan: AttemptPlan) -> bool:
        """Whether a recorded answer will be replayed. It is looked up once, before the call waits; `admit` returns it."""
        if may_recall(self.subject, plan.attempts) and not self._looked_up:
            self._looked_up = True
            outcome = await self.probe(plan)
            self._recalled = outcome if isinstance(outcome, Replayed) else None
        return self._recalled is not None

    async def admit(self, plan: AttemptPlan) -> AdmissionOutcome:
        """Admit the attempt, after the calls that already wait for the same rows.

        Raises LoopStopped, RateLimited, QueueTimeout, ClientDisconnected, StoreUnavailable, and the errors of `admit_call`.
        """
        services, tenant_id = self._services, self.subject.who.tenant_id
        guard = services.loop_guard
        if plan.attempts == 0 and guard.suspects(self.subject) and not await self.recall(plan):
            async with services.in_flight.alone(self.subject.job_id, self._deadlines.store_deadline()):
                event = call_event(self._context, plan.target, "loop_stopped")
                await guard.check(self.subject, event, self._deadlines)
        if self._recalled is not None:
            return self._recalled
        place = None if plan.is_free else services.queue.join_any(partial(self._rows_of, plan.target), tenant_id)
        wait = place.row.wait if place is not None else None
        try:
            if place is not None:
                await self.account.settle_held(self.subject, self._context.request)
                if await self.recall(plan) and self._recalled is not None:
                    return self._recalled
                self._note_wait(wait)
                await place.reach_front(self._deadlines.queue_deadline())
                if (known := place.row.wait) is not None and self._is_known_to_last(known):
                    wait = known
                    await place.wait_for_change(self._deadlines.queue_deadline(), self._pause_s(known))
            while True:
                if self._context.disconnected():
                    raise ClientDisconnected("the client disconnected while its call was queued")
                outcome = await self._ask_store(plan)
                if not isinstance(outcome, MustWait):
                    if place is not None:
                        place.admitted()
                    return outcome
                # The first admission has written the fallback and the cache result.
                plan = AttemptPlan(target=plan.target, attempts=plan.attempts, final=plan.final)
                wait = outcome.wait
                self._note_wait(wait)
                if place is None or place.key != wait.key:
                    if place is not None:
                        place.leave()
                    place = services.queue.join(wait.key, tenant_id)
                place.row.wait = wait
                await place.wait_for_change(self._deadlines.queue_deadline(), self._pause_s(wait))
        except TimeoutError:
            if place is not None:
                place.give_up()
                place = None
            raise await self._refusal(wait, plan.target) from None
        finally:
            if place is not None:
                place.leave()

    def _note_wait(self, wait: Wait | None) -> None:
        is_rate_limit = wait is not None and wait.what != "budget"
        if is_rate_limit and self._waiting_for is None and not self._rate_limit_recorded:
            self._waiting_for, self._waiting_since = wait, self._deadlines.loop.time()

    def _is_known_to_last(self, wait: Wait) -> bool:
        """Whether a wait that the store reported to an earlier call holds for every call, and still lasts."""
        return wait.what == "requests" and (wait.until or 0) > self._services.store.clock()

    def _pause_s(self, wait: Wait) -> float | None:
        """The known minimum wait in seconds, if any. Raises TimeoutError if the queue time ends before it."""
        deadlines = self._deadlines
        now_us, loop_time = self._services.store.clock(), deadlines.loop.time()
        decision = waiting_decision(wait, now_us, loop_time, deadlines.queue_deadline())
        if isinstance(decision, GiveUpWaiting):
            raise TimeoutError
        return decision.after_s

    async def _refusal(self, wait: Wait | None, target: Target) -> QueueTimeout | RateLimited:
        subject, queue_ms = self.subject, self._context.decision.time_limits.queue_ms
        if wait is None or wait.what == "budget":
            return QueueTimeout(
                f"{subject.job_id}: waited {queue_ms} ms for outstanding calls of its budget (deadlines.queue_ms); make fewer"
                " concurrent calls, or raise the budget in routing.yaml"
            )
        if not self._rate_limit_recorded:
            refuse = RecordRejection(subject, self._rate_limited(wait, target, refused=True))
            await self._services.settlements.note(refuse, self._deadlines.loop.time() + MIN_STORE_S)
        retry_s = retry_after_s(wait, self._services.store.clock())
        return RateLimited(
            f"{wait.scope} {wait.scope_id} is at its limit of {_LIMIT_NAMES[wait.what]} (rate_limits in routing.yaml), and a"
            f" queue time of {queue_ms} ms (deadlines.queue_ms) does not suffice; retry after {retry_s} s",
            retry_s,
        )

    def _rate_limited(self, wait: Wait, target: Target, *, refused: bool = False) -> Event:
        """The event `rate_limited`: the call waited for a rate limit, or was rejected (`refused`)."""
        event = call_event(self._context, target, "rate_limited")
        event.attempt = self.subject.attempt
        why = f"{wait.scope} {wait.scope_id} was at its limit of {_LIMIT_NAMES[wait.what]}"
        event.decision = {"why": why, "scope": wait.scope, "name": wait.scope_id, "limit": wait.what}
        event.detail = {"waited_ms": round((self._deadlines.loop.time() - self._waiting_since) * 1000)}
        if refused:
            event.detail["refused"] = True
        return event

    def _rows_of(self, target: Target) -> Iterable[Key]:
        """The rows that the next attempt needs, as far as the request determines them."""
        policy, subject = self._services.policy, self.subject
        caller = caller_of(subject, target.model)
        limits = policy.limits(caller, self._services.store.clock())
        return keys_of(subject.who.tenant_id, limits, policy.rates(caller))

    # ── one admission ───────────────────────────────────────────────────────────────────────────────────────────────

    async def probe(self, plan: AttemptPlan) -> AdmissionOutcome:
        """Look for a recorded answer of an older attempt, without a reservation."""
        return await self._ask_store(plan, probe=True)

    async def _ask_store(self, plan: AttemptPlan, *, probe: bool = False) -> AdmissionOutcome:
        """Commit one admission, without regard to the queue."""
        report = await self._commit_found(self._command(plan, probe=probe))
        self.account.settled_by_admission(report.settled)
        outcome = report.outcome
        if probe:
            return outcome
        self.account.take()
        if isinstance(outcome, Granted):
            self._learn_content(outcome.at)
            self._granted(outcome, plan.attempts)
        elif isinstance(outcome, CacheHit):
            self._learn_content(outcome.at)
        return outcome

    def _command(self, plan: AttemptPlan, *, probe: bool) -> Admit:
        services, context = self._services, self._context
        self._call_id = self._call_id or new_id("call")
        fallback: Event | None = None
        if plan.fallback is not None:
            fallback = call_event(context, plan.target, "fallback_taken")
            fallback.decision, fallback.call_id = dict(plan.fallback), self._call_id
        waiting_for = self._waiting_for
        return Admit(
            subject=self.subject,
            request=context.request,
            policy=services.policy,
            known=services.known_content,
            reservation=reservation_of(
                context, plan.target, plan.attempts + 1, self._call_id, services.owner, services.fees
            ),
            now=services.store.clock(),
            unsettled=self.account.unsettled,
            fallback=fallback,
            probe=probe,
            cache_result=plan.cache_result,
            waited=None if waiting_for is None else self._rate_limited(waiting_for, plan.target),
            final=plan.final,
        )

    async def _commit_found(self, command: Admit) -> AdmissionReport:
        """Commit the admission; repeat it with the job's ancestors, or serialized within the job, if required."""
        jobs = self._services.jobs
        report = await self._commit(command)
        if isinstance(report.outcome, NeedsAncestors):
            async with store_answers_by(self._deadlines.store_deadline()):
                self.subject = await jobs.with_ancestors(self.subject, report.job_id)
            command = msgspec.structs.replace(command, subject=self.subject)
            report = await self._commit(command)
        learned = jobs.update_subject(self.subject, report.job_id, report.attempt)
        if learned is not self.subject:
            self._services.in_flight.update(self.subject, learned)
            self.subject = learned
        if isinstance(report.outcome, NeedsTurn):
            command = msgspec.structs.replace(command, subject=self.subject, serial=True)
            report = await self._commit_in_turn(command)
        return report

    async def _commit(self, command: Admit) -> AdmissionReport:
        """Commit one admission. Raises StoreUnavailable when the store does not answer within the queue time."""
        until = self._deadlines.store_deadline()
        return await self._services.store.commit(command, until=until, on_late_commit=self._committed_late)

    def _committed_late(self, report: AdmissionReport) -> None:
        """Settle at zero an admission that was committed after its caller had given up."""
        if isinstance(report.outcome, Granted):
            call_id = report.outcome.call_id
            why = "it was admitted after its caller had given up"
            self._services.settlements.defer(call_id, SettleUnsent(call_id, report.job_id, why))

    async def _commit_in_turn(self, command: Admit) -> AdmissionReport:
        """Admit a request of a later attempt, serialized within its job and after the same request of an older attempt.

        Raises QueueTimeout when the older request does not end within the time of this call.
        """
        services, deadlines, job_id = self._services, self._deadlines, self.subject.job_id
        until = deadlines.loop.time() + deadlines.total_s
        while True:
            async with services.in_flight.alone(job_id, deadlines.store_deadline()):
                report = await self._commit(command)
            if not isinstance(report.outcome, StillInFlight):
                return report
            if self._context.disconnected():
                raise ClientDisconnected("the client disconnected while the request of an older attempt was in flight")
            if not await services.in_flight.older_ends(services.store, self.subject, until):
                raise QueueTimeout(
                    f"{job_id}: the same request of an older attempt is still in flight. Its answer will be the answer to this"
                    " call: retry"
                )
            deadlines.restart_queueing()

    def _granted(self, granted: Granted, attempts: int) -> None:
        self._call_id = ""
        self.account.draw(granted)
        self._rate_limit_recorded = self._rate_limit_recorded or self._waiting_for is not None
        self._waiting_for = None
        self._services.settlements.opened(granted.call_id)
        if attempts == 0:
            self._services.loop_guard.request_admitted(self.subject)
            self._services.in_flight.enter(self.subject)

    def _learn_content(self, at: int) -> None:
        """Note that the content of the request is durable since `at`: it need not be written again in that month."""
        known, request = self._services.known_content, self._context.request
        tenant_id, month = self.subject.who.tenant_id, month_of(at)
        known.add_links(tenant_id, month, request.links)
        if request.tools_sha256:
            known.add_hashes(tenant_id, month, [bytes.fromhex(request.tools_sha256)])

    def leave(self) -> None:
        """End the call, whatever its result."""
        self._services.in_flight.leave(self.subject)
