"""One client's call on its way: tries, retries, fallbacks, until a recorded end.

Every try is admitted on its own (reserved, counted, `model_called` durable before the provider is asked), and a failed
try is settled in the transaction that admits the next one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from overnight.domain import ErrorFacts, Event, Fenced, OvernightError, Recorded, StoreUnavailable, month_of, new_id
from overnight.store import crash_point

from .commands import Admit, Ended, Outcome, Reservation, Settle, Spent
from .failures import Failure, backoff_ms, exception_failure, response_failure
from .identity import Subject
from .prices import ModelPrice
from .refusals import WaitedTooLong
from .request import ChatRequest
from .routes import Decision, Target, Unavailable
from .upstream import UpstreamError
from .usage import Usage, estimated_usage, openai_usage

if TYPE_CHECKING:
    from .calling import Gateway

LOST_AFTER_US = 30_000_000
LONGEST_PATIENCE_S = 3600
SHARE_OF_A_TRY = 2 / 3
"""Of the time left, while there is another target: a provider that hangs must leave time for its fallback."""

_random = random.Random()  # noqa: S311 - spreads waits, hides nothing


T = TypeVar("T")


class Completion(msgspec.Struct):
    """What is read of a chat completion."""

    choices: list[msgspec.Raw] = []
    usage: dict[str, Any] | None = None
    error: Any = None


_completion = msgspec.json.Decoder(Completion).decode


class Demand:
    """What a try may cost at most, by its output cap; `n` choices are `n` outputs."""

    __slots__ = ("_choices", "_price", "_prompt_bytes", "wanted_tokens")

    def __init__(self, price: ModelPrice | None, prompt_bytes: int, choices: int, wanted_tokens: int) -> None:
        self._price, self._prompt_bytes, self._choices = price, prompt_bytes, choices
        self.wanted_tokens = wanted_tokens

    def bound_microusd(self, tokens: int) -> int:
        if self._price is None:
            return 0
        return self._price.upper_bound_microusd(self._prompt_bytes, tokens * self._choices)

    def affordable_tokens(self, available_microusd: int) -> int:
        if self._price is None:
            return self.wanted_tokens
        return self._price.affordable_output_tokens(self._prompt_bytes, available_microusd) // self._choices


class Reply(msgspec.Struct):
    """A provider's answer as it came, and what it used."""

    body: bytes
    usage: Usage
    request_id: bytes | None = None


class Flight:
    """One call. `run` brings it to its end; afterwards the attributes tell what became of it."""

    def __init__(self, gateway: Gateway, subject: Subject, request: ChatRequest, decision: Decision) -> None:
        self.gateway, self.subject, self.request, self.decision = gateway, subject, request, decision
        self.loop = asyncio.get_running_loop()
        self.deadline = self.loop.time() + decision.deadline_ms / 1000
        self.target: Target
        self.ended: Ended | None = None
        self.call_id = ""
        self.tokens = 0
        self.lowered = False
        self.tries = 0
        self.cost = 0
        self.failure: Failure | None = None
        self.failure_body = b""
        self.replayed: Recorded | None = None
        self.reply: Reply | None = None
        self._tries_here = 0
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

    def landed(self) -> None:
        """The call has come to its end, whichever it was. Say so exactly once."""
        self.gateway.flying.leave(self.subject)

    # ── where to ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _next_target(self, why: str) -> bool:
        """Go to the next target that can be called. False when there is none; Unavailable when there never was one."""
        came_from = self.target.model if self.tries else None
        while self._waiting_targets:
            model = self._waiting_targets.pop(0)
            try:
                self.target = self.gateway.targets.target(model, self.request.price_context)
            except Unavailable as error:
                if not self._waiting_targets and came_from is None:
                    raise
                came_from, why = came_from or model, why or str(error)
                continue
            self._tries_here = 0
            if came_from is not None:
                self._moved = self.event("fallback_taken")
                self._moved.decision = {"from": came_from, "to": model, "why": why}
            return True
        return False

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

    # ── what is written ─────────────────────────────────────────────────────────────────────────────────────────────

    def event(self, name: str) -> Event:
        """An event of this call with everything that all of them say."""
        who, target = self.subject.who, self.target
        return Event(
            name,
            step=who.step,
            task_id=who.task_id,
            session_id=who.session_id,
            agent_id=who.agent_id,
            workflow=who.workflow,
            actor=who.actor,
            route=self.decision.route,
            model=target.model,
            provider=target.provider,
            kind="model",
            name=self.subject.label,
            trace_id=who.trace_id,
            span_id=who.span_id,
        )

    def _reservation(self, tokens: int) -> Reservation:
        decision = self.decision
        called = self.event("model_called")
        called.call_id = new_id("call")
        called.decision = {"route": decision.route, "why": decision.why, "targets": decision.targets}
        called.detail = {"requested_model": decision.requested_model, "try": self.tries + 1}
        left_us = int((self.deadline - self.loop.time()) * 1_000_000)
        expires_at = self.gateway.store.clock() + max(left_us, 0) + LOST_AFTER_US
        demand = Demand(self.target.price, self.request.prompt_bytes, self.request.choices, tokens)
        return Reservation(called.call_id, self.gateway.owner, expires_at, demand, called)

    def spent_on_failure(self, failure: Failure, received_characters: int = 0) -> Spent:
        """A failed try: at no cost where the provider cannot have billed it, at the estimate where it may have."""
        event = self.event("model_failed")
        event.call_id, event.latency_ms = self.call_id, self._latency_ms()
        event.error = ErrorFacts(failure.error_class, failure.message, failure.code, failure.retryable)
        cost, tokens = 0, (0, 0, 0)
        if failure.may_have_cost:
            usage = estimated_usage(self.request.prompt_bytes, received_characters)
            cost = self.target.price.cost_of(usage) if self.target.price else 0
            tokens = (usage.input_tokens, 0, usage.output_tokens)
            event.input_tokens, event.output_tokens = usage.input_tokens, usage.output_tokens
            event.detail = {"estimated": True, "why": "the provider may have billed this try"}
        return Spent(self.call_id, event, self.target.model, tokens, cost)

    def spent_on_reply(self, reply: Reply) -> Spent:
        usage = reply.usage
        cost = self.target.price.cost_of(usage) if self.target.price else 0
        event = self.event("model_succeeded")
        event.call_id, event.latency_ms = self.call_id, self._latency_ms()
        event.input_tokens, event.output_tokens = usage.input_tokens, usage.output_tokens
        event.cached_tokens = usage.cached_tokens
        if usage.estimated or usage.adjusted:
            event.detail = {"estimated": True} if usage.estimated else {"adjusted": True}
        tokens = (usage.input_tokens, usage.cached_tokens, usage.output_tokens)
        return Spent(self.call_id, event, self.target.model, tokens, cost, reply.body)

    def _latency_ms(self) -> float:
        return round((time.perf_counter() - self._began) * 1000, 3)

    # ── the way ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Until the recorded end: an answer (`reply` is set), the last failure (`failure`), or an older answer (`replayed`).

        Raises BudgetStopped, WaitedTooLong, Fenced, Conflict, NotFound, StoreUnavailable.
        """
        reply = await self._until(self._ask)
        if reply is not None:
            crash_point("model_answered")
            self.reply, self.failure = reply, None
            await self.settle(self.spent_on_reply(reply))

    async def _until(self, ask: Callable[[], Awaitable[T | Failure]]) -> T | None:
        """Admit and ask until a try succeeds; None once the last failure is settled, or when `replayed` is the answer."""
        while True:
            outcome = await self.admit()
            if outcome.answer is not None:
                self.replayed = outcome.answer
                return None
            result = await ask()
            if not isinstance(result, Failure):
                return result
            self.failure = result
            spent = self.spent_on_failure(result, len(self.failure_body))
            if not self._advance(result):
                crash_point("model_answered")
                await self.settle(spent)
                return None
            self._unsettled = spent

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
        turn = lines.join_any(subject.ancestors)
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

    async def _try_to_admit(self) -> Outcome:
        gateway, subject, request = self.gateway, self.subject, self.request
        wanted = min(request.cap or self.decision.max_output_tokens, self.decision.max_output_tokens)
        reservation = self._reservation(wanted)
        command = Admit(
            subject, request, gateway.routing.budgets, gateway.known_content, reservation, self._unsettled, self._moved
        )
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
        self._moved = self._unsettled = None
        if outcome.granted is not None:
            self._learn()
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

    async def _prepare(self) -> tuple[bytes, float]:
        """Wait for the backoff, if there is one; then the body for the target, and until when this try may take."""
        if self._backoff_s:
            await asyncio.sleep(self._backoff_s)
        if self.tries == 1 and self.subject.place is not None:
            self.deadline = self.loop.time() + self.decision.deadline_ms / 1000
        self._began = time.perf_counter()
        self.failure_body = b""
        now = self.loop.time()
        body = self.request.upstream_body(self.target.upstream_model, self.tokens, self.target.dialect)
        return body, now + self._time_here(self.deadline - now)

    async def _ask(self) -> Reply | Failure:
        body, deadline = await self._prepare()
        try:
            response = await self.target.pool.request("POST", "/chat/completions", self.target.headers, body, deadline)
        except UpstreamError as error:
            return exception_failure(error)
        if 200 <= response.status < 300:
            reply = self.reply_of(response.body, response.headers.get(b"x-request-id"))
            if reply is not None:
                return reply
        self.failure_body = response.body
        return response_failure(response.status, response.headers, response.body)

    def reply_of(self, body: bytes, request_id: bytes | None) -> Reply | None:
        """The answer in a body, with what it used; None when it is no chat completion."""
        try:
            completion = _completion(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if not completion.choices or completion.error:
            return None
        usage = openai_usage(completion.usage)
        if usage is None:
            usage = estimated_usage(self.request.prompt_bytes, sum(len(bytes(each)) for each in completion.choices))
        return Reply(body, usage, request_id)

    async def settle(self, spent: Spent) -> None:
        """Write the end of the call. Raises Fenced when a newer attempt or lease has begun meanwhile."""
        self.ended = ended = await self.gateway.store.commit(Settle(self.subject, spent))
        crash_point("model_settled")
        self.gateway.lines.settled(self.subject.ancestors)
        self.cost = ended.recorded.facts.cost_microusd or 0
        if ended.fenced:
            raise Fenced(
                f"{self.subject.job_id}: a newer attempt began while this call was under way; this one is over"
            )
