"""One client's call on its way: tries, retries, fallbacks, until a recorded end.

Every try is admitted on its own (reserved, counted, `model_called` durable before the provider is asked), and a failed
try is settled in the transaction that admits the next one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from overnight.domain import Event, Fenced, OvernightError, Recorded, StoreUnavailable, traceparent_of
from overnight.store import crash_point

from .accounting import Reply, event_of, not_carried, reservation_of, spent_on_failure, spent_on_reply, unread
from .admission import Admission
from .caches import Visit, placed
from .choosing import Way
from .circuits import Mark
from .commands import Admit, Ended, Outcome, Spent
from .concluding import ending_of
from .degrading import Ending
from .failures import Failure, backoff_ms, exception_failure, response_failure
from .formats import Asked, Prepared, Wire, client_body
from .formats.messages_thoughts import are_refused, leave_out
from .identity import Subject
from .request import InvalidBody, Request
from .routes import Decision, Target
from .upstream import UpstreamError
from .usage import estimated_usage

if TYPE_CHECKING:
    from .calling import Gateway

SHARE_OF_A_TRY = 2 / 3
"""Of the time left, while there is another target: a provider that hangs must leave time for its fallback."""

log = logging.getLogger("overnight.gateway")
_random = random.Random()  # noqa: S311 - spreads waits, hides nothing


T = TypeVar("T")
UNKNOWN_SHAPE = (TypeError, ValueError, KeyError, AttributeError, IndexError)


ANSWER_IDS = {"chat": "chatcmpl-", "responses": "resp_", "messages": "msg_", "embeddings": "emb_"}


class Flight:
    """One call. `run` brings it to its end; afterwards the attributes tell what became of it."""

    def __init__(self, gateway: Gateway, subject: Subject, request: Request, decision: Decision) -> None:
        self.gateway, self.subject, self.request, self.decision = gateway, subject, request, decision
        self.loop = asyncio.get_running_loop()
        self.deadline = self.loop.time() + decision.deadline_ms / 1000
        self.ended: Ended | None = None
        self.call_id = ""
        self.called_seq = 0
        self.tokens = 0
        self.lowered = False
        self.losses: tuple[str, ...] = ()
        self.markers = 0
        self.tries = 0
        self.cost = 0
        self.failure: Failure | None = None
        self.failure_body = b""
        self.replayed: Recorded | None = None
        self.cached: Recorded | None = None
        self.degraded: Recorded | None = None
        self.visit: Visit | None = None
        self.reply: Reply | None = None
        self._tries_here = 0
        self._entered = time.perf_counter()
        self._upstream_s = 0.0
        self._began = 0.0
        self._backoff_s = 0.0
        self._unsettled: Spent | None = None
        self.ending: Ending | None = None
        self.admission = Admission(self)
        self.way = Way(gateway, request, decision, subject.who.tenant_id)
        self._found = self.way.next()

    @property
    def target(self) -> Target:
        return self.way.target

    @property
    def wire(self) -> Wire:
        return self.way.wire

    @property
    def fell_back(self) -> bool:
        return self.target.model != self.decision.targets[0]

    @property
    def given(self) -> Recorded | None:
        """The recorded answer of a call for which nobody was asked."""
        return self.replayed or self.cached or self.degraded

    def overhead_ms(self) -> float:
        """What of the time so far was not the providers': waits for the budget and for retries are ours."""
        return max(0.0, (time.perf_counter() - self._entered - self._upstream_s) * 1000)

    def landed(self) -> None:
        """The call has come to its end, whichever it was. Say so exactly once."""
        self.gateway.flying.leave(self.subject)
        if self.visit is not None:
            self.visit.left()

    # ── where to ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _find_first(self) -> bool:
        """Is there a target to ask at all? With an answer from the cache at hand nobody waits for one."""
        if self.visit is not None and self.visit.found:
            return self._found
        found = self._found and await self.way.ready(self.deadline)
        if not found and self.way.will_wait and await self.admission.recalls():
            return True  # given again, whatever is open
        return found or await self.way.otherwise(self.deadline)

    async def _advance(self, failure: Failure) -> bool:
        """Choose the next try: the same target after a wait, or another one at once. False when there is none."""
        self._give_back()  # of a probe that could not be sent; of any other one there is nothing left to give
        if not self.request.left_out and are_refused(failure.status, failure.message) and leave_out(self.request):
            return True
        left = self.deadline - self.loop.time()
        tries = self.gateway.routing.retries.of(failure.error_class)
        self._backoff_s = 0.0
        if failure.retryable and self._tries_here < tries.max_attempts:
            wait_s = backoff_ms(self._tries_here, tries, failure.retry_after_ms, _random) / 1000
            if self.way.is_open():
                self.way.comes_back()
            elif wait_s < self._time_here(left):
                self._backoff_s = wait_s
                return True
        if not failure.fallback or left <= 0:
            return False
        self._tries_here = 0
        if self.way.next(f"{failure.error_class}: {failure.code}") and await self.way.ready(self.deadline):
            return True
        if self.way.will_wait:
            await self._settle_try()  # what it says of its target must be written: all wait for that, this call too
        return await self.way.otherwise(self.deadline)

    async def _settle_try(self) -> None:
        """Write a failed try before the next one is admitted."""
        tried, self._unsettled = self._unsettled, None
        if tried is not None:
            written = await self.admission.settle(tried, last=False)
            self.cost += written.recorded.facts.cost_microusd or 0
            self._is_written(tried)

    def _time_here(self, left: float) -> float:
        return left * SHARE_OF_A_TRY if self.way.has_more else left

    def mark(self, failure: Failure | None = None) -> Mark | None:
        """Tell the circuits how the try came out: an answer, or a failure. What they want written is written with it."""
        target, call = self.target, self.way.call
        self.way.call = None
        circuits = self.gateway.circuits
        if failure is None:
            return circuits.answered(target.account, target.model, call)
        return circuits.failed(target.account, target.model, failure, call)

    def _give_back(self) -> None:
        """A probe that came to nothing must not keep others from trying."""
        call, target = self.way.call, self.target
        if call is not None:
            self.way.call = None
            giving = self.gateway.circuits.give_back(target.account, target.model, call)
            self.gateway.keep(self.loop.create_task(giving))

    async def _ending(self, failure: Failure | None) -> Ending | None:
        """What a call comes to when no target is left. None where that is its last `failure`."""
        if failure is not None and not failure.fallback:
            return None
        return await ending_of(self, failure, settled=self._unsettled is None)

    def latency_ms(self) -> float:
        return round((time.perf_counter() - self._began) * 1000, 3)

    # ── the way ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Until the recorded end: an answer (`reply` is set), the last failure (`failure`), or an older answer (`replayed` or
        `cached`).

        Raises BudgetStopped, LoopStopped, RateLimited, WaitedTooLong, Fenced, Conflict, NotFound, StoreUnavailable.
        """
        reply = await self._until(self._ask)
        if reply is not None:
            crash_point("model_answered")
            self.reply = reply
            await self.settle(spent_on_reply(self, reply))

    async def _until(self, ask: Callable[[], Awaitable[T | Failure]]) -> T | None:
        """Admit and ask until a try succeeds; None once the last failure is settled, or when an older answer is given."""
        if self.gateway.caches.serve(self.decision) and not self.subject.aside:
            self.visit = Visit(self.gateway, self)
            if await self.visit.comes_again() and self._given(await self.try_to_admit(probe=True)):
                return None
            await self.visit.look()
        if not await self._find_first():
            self.ending = await self._ending(None)
        try:
            while True:
                if self._given(await self.admit()):
                    self._give_back()
                    return None
                try:
                    result = await ask()
                except InvalidBody as error:
                    result = not_carried(str(error))
                except OvernightError:
                    raise
                except Exception:
                    log.exception("an answer could not be read by a fault of the gateway")
                    result = unread()
                if not isinstance(result, Failure):
                    self.failure = None
                    return result
                self.failure = result
                self._unsettled = spent = spent_on_failure(self, result, len(self.failure_body))
                if not await self._advance(result):
                    self.ending = await self._ending(result)
                    if self.ending is None:
                        crash_point("model_answered")
                        self._unsettled = None
                        await self.settle(spent)
                        return None
                elif spent.mark is not None and spent.mark.call is not None:
                    # A probe: others wait to hear of it, and this call may have to stand in line.
                    await self._settle_try()
        except BaseException:
            self._give_back()
            raise

    def _given(self, outcome: Outcome) -> bool:
        """Is the call answered without being made?"""
        ending = self.ending
        if outcome.ended is not None and ending is not None:
            self.ended, self.call_id = Ended(outcome.ended, fenced=False), ending.said.call_id or ""
            self.failure = ending.failure
            self.degraded = outcome.ended if ending.body is not None else None
            return True
        if outcome.cached and outcome.answer is not None and self.visit is not None:
            self.cached, self.ended = outcome.answer, Ended(outcome.answer, fenced=False)
            self.visit.given(outcome.answer)
        else:
            self.replayed = outcome.answer
        return outcome.answer is not None

    async def admit(self) -> Outcome:
        """Reserve the next try, waiting for room in the budget where only outstanding calls are in the way."""
        try:
            outcome = await self.admission.in_turn()
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

    @property
    def is_free(self) -> bool:
        """A cache has the answer, or nobody is left to be asked: no budget and no rate stands in its way."""
        return self.ending is not None or (self.visit is not None and self.visit.found)

    async def try_to_admit(self, *, probe: bool = False) -> Outcome:
        """Ask the store once, whoever waits."""
        gateway, subject, request = self.gateway, self.subject, self.request
        reservation = reservation_of(self)
        command = Admit(subject, request, gateway.policy, gateway.known_content, reservation, gateway.store.clock())
        command.after, command.moved, command.ending = self._unsettled, self._moved(), self.ending
        command.waited, command.probe = self.admission.waited(), probe
        if self.visit is not None:
            command.ticket = self.visit.ticket
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
        self.cost += outcome.after_microusd
        if self._unsettled is not None:
            self._is_written(self._unsettled)
        if probe:
            return outcome
        self.way.moved = self._unsettled = None
        if self.visit is not None:
            self.visit.ticket = None
        if outcome.granted is not None or outcome.cached:
            self.admission.learn(outcome.at)
        if outcome.granted is not None:
            self.admission.granted(outcome)
            self.call_id, self.tokens = reservation.call_id, outcome.granted.tokens
            self.lowered, self.called_seq = outcome.granted.lowered, outcome.called_seq
            self.tries += 1
            self._tries_here += 1
            if self.tries == 1:
                gateway.flying.enter(subject)
        return outcome

    def _moved(self) -> Event | None:
        if self.way.moved is None:
            return None
        moved = event_of(self, "fallback_taken")
        moved.decision = dict(self.way.moved)
        return moved

    def asked(self) -> Asked:
        """What the answer of this try must agree with."""
        return Asked(self.answer_id, self.target.model, client_body(self.request), int(time.time()))

    @property
    def answer_id(self) -> str:
        """The id of the answer of this try."""
        return self.id_of(self.call_id)

    def id_of(self, call_id: str) -> str:
        return ANSWER_IDS.get(self.request.format, "") + call_id.removeprefix("call_")

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
        if self.decision.cache.prompt_markers:
            sent, self.markers = placed(sent, self.wire.spoken.name, target.model, target.dialect, self.subject)
        return sent, now + self._time_here(self.deadline - now)

    def _headers(self, sent: Prepared) -> tuple[tuple[bytes, bytes], ...]:
        who, headers = self.subject.who, self.target.headers + sent.headers
        if who.trace_id is None:
            return headers
        return (*headers, (b"traceparent", traceparent_of(who.trace_id, self.call_id, who.trace_flags)))

    async def _ask(self) -> Reply | Failure:
        sent, deadline = await self._prepare()
        asked_at = time.perf_counter()
        try:
            headers, check = self._headers(sent), self.subject.check
            response = await self.target.pool.request("POST", sent.path, headers, sent.body, deadline, check)
        except UpstreamError as error:
            return exception_failure(error)
        finally:
            self._upstream_s += time.perf_counter() - asked_at
        if 200 <= response.status < 300:
            told = response.headers
            reply = self.reply_of(response.body, told.get(b"x-request-id") or told.get(b"request-id"))
            if reply is not None:
                return reply
        self.failure_body = self.target.without_key(response.body)
        return response_failure(response.status, response.headers, self.failure_body)

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

    def _is_written(self, spent: Spent) -> None:
        self.admission.settled()
        if spent.mark is not None:
            self.gateway.circuits.written()

    async def settle(self, spent: Spent) -> None:
        """Write the end of the call. Raises Fenced when a newer attempt or lease has begun meanwhile."""
        if self.visit is not None:
            self.visit.compare(spent)
        self.ended = ended = await self.admission.settle(spent)
        crash_point("model_settled")
        self._is_written(spent)
        self.cost += ended.recorded.facts.cost_microusd or 0
        if ended.fenced:
            raise Fenced(
                f"{self.subject.job_id}: a newer attempt began while this call was under way; this one is over"
            )
        if self.visit is not None and self.reply is not None:
            self.visit.answered(ended.recorded, self.reply.body)
