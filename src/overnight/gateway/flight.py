"""One client's call on its way: tries, retries, fallbacks, until a recorded end.

Every try is admitted on its own (reserved, counted, `model_called` durable before the provider is asked), and a failed
try is settled in the transaction that admits the next one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from overnight.domain import Event, Fenced, OvernightError, Recorded, StoreUnavailable, month_of
from overnight.store import crash_point

from .accounting import Reply, event_of, reservation_of, spent_on_failure, spent_on_reply
from .caches import Visit
from .commands import Admit, Ended, Outcome, Settle, Spent
from .failures import Failure, backoff_ms, exception_failure, response_failure
from .formats import Asked, Prepared, Wire, client_body, wire_between
from .identity import Subject
from .refusals import WaitedTooLong
from .request import Request
from .routes import Decision, Target, Unavailable
from .upstream import UpstreamError
from .usage import estimated_usage

if TYPE_CHECKING:
    from .calling import Gateway

LONGEST_PATIENCE_S = 3600
SHARE_OF_A_TRY = 2 / 3
"""Of the time left, while there is another target: a provider that hangs must leave time for its fallback."""

_random = random.Random()  # noqa: S311 - spreads waits, hides nothing


T = TypeVar("T")
NO_OUTPUT = 1
"""Tokens reserved for formats whose answers are not text."""
UNKNOWN_SHAPE = (TypeError, ValueError, KeyError, AttributeError, IndexError)


ANSWER_IDS = {"chat": "chatcmpl-", "responses": "resp_", "messages": "msg_", "embeddings": "emb_"}


class Flight:
    """One call. `run` brings it to its end; afterwards the attributes tell what became of it."""

    def __init__(self, gateway: Gateway, subject: Subject, request: Request, decision: Decision) -> None:
        self.gateway, self.subject, self.request, self.decision = gateway, subject, request, decision
        self.loop = asyncio.get_running_loop()
        self.deadline = self.loop.time() + decision.deadline_ms / 1000
        self.target: Target
        self.wire: Wire
        self.ended: Ended | None = None
        self.call_id = ""
        self.tokens = 0
        self.lowered = False
        self.losses: tuple[str, ...] = ()
        self.tries = 0
        self.cost = 0
        self.failure: Failure | None = None
        self.failure_body = b""
        self.replayed: Recorded | None = None
        self.cached: Recorded | None = None
        self.visit: Visit | None = None
        self.reply: Reply | None = None
        self._tries_here = 0
        self._entered = time.perf_counter()
        self._upstream_s = 0.0
        self._began = 0.0
        self._backoff_s = 0.0
        self._moved: Event | None = None
        self._unsettled: Spent | None = None
        self._waiting_targets = list(decision.targets)
        self._first_model = decision.targets[0]
        self._next_target("")

    @property
    def fell_back(self) -> bool:
        return self.target.model != self._first_model

    def overhead_ms(self) -> float:
        """What of the time so far was not the providers': waits for the budget and for retries are ours."""
        return max(0.0, (time.perf_counter() - self._entered - self._upstream_s) * 1000)

    def landed(self) -> None:
        """The call has come to its end, whichever it was. Say so exactly once."""
        self.gateway.flying.leave(self.subject)
        if self.visit is not None:
            self.visit.left()

    # ── where to ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _next_target(self, why: str) -> bool:
        """Go to the next target that can be called. False when there is none; Unavailable when there never was one."""
        came_from = self.target.model if self.tries else None
        while self._waiting_targets:
            model = self._waiting_targets.pop(0)
            try:
                self._head_for(model)
            except Unavailable as error:
                if not self._waiting_targets and came_from is None:
                    raise
                came_from, why = came_from or model, why or str(error)
                continue
            self._tries_here = 0
            if came_from is not None:
                self._moved = event_of(self, "fallback_taken")
                self._moved.decision = {"from": came_from, "to": model, "why": why}
            return True
        return False

    def _head_for(self, model: str) -> None:
        target = self.gateway.targets.target(model, self.request.price_context)
        wire = wire_between(self.request.format, target.speaks)
        if wire is None:
            spoken = ", ".join(target.speaks)
            raise Unavailable(
                f"{model} is served by {target.provider}, which speaks {spoken}, not {self.request.format}"
            )
        self.target, self.wire = target, wire

    def _advance(self, failure: Failure) -> bool:
        """Choose the next try: the same target after a wait, or the next target at once. False when there is none."""
        left = self.deadline - self.loop.time()
        retries = self.gateway.routing.retries
        if failure.retryable and self._tries_here < retries.max_attempts:
            wait_s = backoff_ms(self._tries_here, retries, failure.retry_after_ms, _random) / 1000
            if wait_s < self._time_here(left):
                self._backoff_s = wait_s
                return True
        self._backoff_s = 0.0
        return failure.fallback and left > 0 and self._next_target(f"{failure.error_class}: {failure.code}")

    def _time_here(self, left: float) -> float:
        return left * SHARE_OF_A_TRY if self._waiting_targets else left

    def latency_ms(self) -> float:
        return round((time.perf_counter() - self._began) * 1000, 3)

    # ── the way ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Until the recorded end: an answer (`reply` is set), the last failure (`failure`), or an older answer (`replayed` or
        `cached`).

        Raises BudgetStopped, WaitedTooLong, Fenced, Conflict, NotFound, StoreUnavailable.
        """
        reply = await self._until(self._ask)
        if reply is not None:
            crash_point("model_answered")
            self.reply, self.failure = reply, None
            await self.settle(spent_on_reply(self, reply))

    async def _until(self, ask: Callable[[], Awaitable[T | Failure]]) -> T | None:
        """Admit and ask until a try succeeds; None once the last failure is settled, or when an older answer is given."""
        if self.gateway.caches.serve(self.decision) and not self.subject.aside:
            self.visit = Visit(self.gateway, self)
            if await self.visit.comes_again() and self._given(await self._try_to_admit(probe=True)):
                return None
            await self.visit.look()
        while True:
            if self._given(await self.admit()):
                return None
            result = await ask()
            if not isinstance(result, Failure):
                return result
            self.failure = result
            spent = spent_on_failure(self, result, len(self.failure_body))
            if not self._advance(result):
                crash_point("model_answered")
                await self.settle(spent)
                return None
            self._unsettled = spent

    def _given(self, outcome: Outcome) -> bool:
        """Is the call answered without being made?"""
        if outcome.cached and outcome.answer is not None and self.visit is not None:
            self.cached, self.ended = outcome.answer, Ended(outcome.answer, fenced=False)
            self.visit.given(outcome.answer)
        else:
            self.replayed = outcome.answer
        return outcome.answer is not None

    async def admit(self) -> Outcome:
        """Reserve the next try, waiting for room in the budget where only outstanding calls are in the way."""
        try:
            outcome = await self._admit_in_turn()
        except StoreUnavailable:
            raise  # the failed try before this one cannot be settled either; its reservation expires
        except OvernightError:
            if self._unsettled is not None:
                await self.settle(self._unsettled)
            raise
        if outcome.stopped is not None:
            raise outcome.stopped
        crash_point("model_admitted")
        return outcome

    async def _admit_in_turn(self) -> Outcome:
        lines, subject = self.gateway.lines, self.subject
        free = self.visit is not None and self.visit.found
        turn = None if free else lines.join_any(subject.ancestors)
        try:
            if turn is not None:
                await turn.front(self._patience())
            while True:
                outcome = await self._try_to_admit()
                if outcome.wait is None:
                    return outcome
                turn = turn or lines.join(outcome.wait.scope_id)
                await turn.news(self._patience())
        except TimeoutError:
            raise WaitedTooLong(
                f"{subject.job_id}: waited for outstanding calls of its budget until the deadline of"
                f" {self.decision.deadline_ms} ms; make fewer calls at once, or raise the budget in routing.yaml"
            ) from None
        finally:
            if turn is not None:
                turn.leave()

    def _patience(self) -> float:
        # Job code in this process has nobody waiting at the other end of a socket; reservations expire, so this ends.
        return self.deadline if self.subject.place is None else self.loop.time() + LONGEST_PATIENCE_S

    async def _try_to_admit(self, *, probe: bool = False) -> Outcome:
        gateway, subject, request = self.gateway, self.subject, self.request
        most = self.decision.max_output_tokens if request.cap_field else NO_OUTPUT
        wanted = min(request.cap or most, most)
        reservation = reservation_of(self, wanted)
        command = Admit(
            subject, request, gateway.routing.budgets, gateway.known_content, reservation, self._unsettled, self._moved
        )
        if self.visit is not None:
            command.probe, command.ticket = probe, self.visit.ticket
        outcome = await gateway.store.commit(command)
        if outcome.kin:
            await gateway.find_kin(subject, outcome.job_id)
            outcome = await gateway.store.commit(command)
        gateway.learn(subject, outcome)
        if outcome.serial:
            command.serial = True
            await gateway.flying.older(subject, self.deadline)
            async with gateway.flying.alone(subject.job_id):
                outcome = await gateway.store.commit(command)
        if self._unsettled is not None:
            gateway.lines.settled(subject.ancestors)
        if probe:
            return outcome
        self._moved = self._unsettled = None
        if self.visit is not None:
            self.visit.ticket = None
        if outcome.granted is not None or outcome.cached:
            self._learn()
        if outcome.granted is not None:
            self.call_id, self.tokens = reservation.call_id, outcome.granted.tokens
            self.lowered = outcome.granted.lowered
            self.tries += 1
            self._tries_here += 1
            if self.tries == 1:
                gateway.flying.enter(subject)
        return outcome

    def _learn(self) -> None:
        """The request is durable: what it consists of need not be written again."""
        tenant_id, month = self.subject.who.tenant_id, month_of(self.gateway.store.clock())
        self.gateway.known_content.learn(tenant_id, month, self.request.links)
        if self.request.tools_sha256:
            self.gateway.known_content.learn_hashes(tenant_id, month, [bytes.fromhex(self.request.tools_sha256)])

    def asked(self) -> Asked:
        """What the answer of this try must agree with."""
        call = self.call_id.removeprefix("call_")
        form = self.request.format
        answer_id = ANSWER_IDS.get(form, "") + call
        return Asked(answer_id, self.target.model, client_body(self.request), int(time.time()))

    async def _prepare(self) -> tuple[Prepared, float]:
        """Wait for the backoff, if there is one; then what goes to the target, and until when this try may take."""
        if self._backoff_s:
            await asyncio.sleep(self._backoff_s)
        if self.tries == 1 and self.subject.place is not None:
            self.deadline = self.loop.time() + self.decision.deadline_ms / 1000
        self._began = time.perf_counter()
        self.failure_body = b""
        now = self.loop.time()
        target = self.target
        sent = self.wire.prepare(self.request, target.upstream_model, self.tokens, target.dialect)
        self.losses = sent.losses
        return sent, now + self._time_here(self.deadline - now)

    def _headers(self, sent: Prepared) -> tuple[tuple[bytes, bytes], ...]:
        return self.target.headers + sent.headers

    async def _ask(self) -> Reply | Failure:
        sent, deadline = await self._prepare()
        asked_at = time.perf_counter()
        try:
            response = await self.target.pool.request("POST", sent.path, self._headers(sent), sent.body, deadline)
        except UpstreamError as error:
            return exception_failure(error)
        finally:
            self._upstream_s += time.perf_counter() - asked_at
        if 200 <= response.status < 300:
            reply = self.reply_of(response.body, response.headers.get(b"x-request-id"))
            if reply is not None:
                return reply
        self.failure_body = response.body
        return response_failure(response.status, response.headers, response.body)

    def reply_of(self, body: bytes, request_id: bytes | None) -> Reply | None:
        """The answer in a body, with what it used; None when it is no answer."""
        try:
            received = self.wire.received(body, self.asked)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, *UNKNOWN_SHAPE):
            return None
        if received is None:
            return None
        usage = received.usage or estimated_usage(self.request.prompt_bytes, received.characters)
        return Reply(received.body, usage, request_id)

    async def settle(self, spent: Spent) -> None:
        """Write the end of the call. Raises Fenced when a newer attempt or lease has begun meanwhile."""
        if self.visit is not None:
            self.visit.compare(spent)
        self.ended = ended = await self.gateway.store.commit(Settle(self.subject, spent))
        crash_point("model_settled")
        self.gateway.lines.settled(self.subject.ancestors)
        self.cost = ended.recorded.facts.cost_microusd or 0
        if ended.fenced:
            raise Fenced(
                f"{self.subject.job_id}: a newer attempt began while this call was under way; this one is over"
            )
        if self.visit is not None and self.reply is not None:
            self.visit.answered(ended.recorded, self.reply.body)
