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

from overnight.budgets import Booked
from overnight.circuit_breakers import Mark
from overnight.domain import (
    Fenced,
    OvernightError,
    Recorded,
    StoreUnavailable,
    traceparent_of,
)
from overnight.domain.policies import RouteDecision
from overnight.pricing.usage import estimated_usage
from overnight.providers import UpstreamError
from overnight.providers.error_classes import (
    Failure,
    backoff_ms,
    exception_failure,
    response_failure,
)
from overnight.providers.targets import Target
from overnight.store import crash_point
from overnight.wire_formats import (
    Asked,
    Prepared,
    Wire,
    client_body,
)
from overnight.wire_formats.reasoning_blocks import are_refused, leave_out
from overnight.wire_formats.request import InvalidBody, Request

from ..admission.call_admission import Admission
from ..admission.commands import (
    Ended,
    Lose,
    Outcome,
    Spent,
)
from ..admission.reservation import (
    Received,
    Reply,
    not_carried,
    not_sent,
    spent_on_failure,
    spent_on_reply,
    unread,
)
from ..admission.settlement import booked_at
from ..admission.unsent_calls import NeverSent
from ..cache import Visit, placed
from ..identity import Subject
from .deadlines import LEAST_TRY, CallTime
from .degraded_answer import Ending
from .final_outcome import ending_of
from .target_selection import Way

if TYPE_CHECKING:
    from ..gateway import Gateway

SHARE_OF_A_TRY = 2 / 3
"""Of the time left, while there is another target: a provider that hangs must leave time for its fallback."""

LONGEST_BACKOFF_HELD_S = 0.02
"""A longer wait settles the failed try first: its reservation must not stand in the way of others."""

log = logging.getLogger("overnight.gateway")
_random = random.Random()  # noqa: S311 - spreads waits, hides nothing


T = TypeVar("T")
UNKNOWN_SHAPE = (TypeError, ValueError, KeyError, AttributeError, IndexError)


ANSWER_IDS = {"chat": "chatcmpl-", "responses": "resp_", "messages": "msg_", "embeddings": "emb_"}


def _stays() -> bool:
    return False


class Flight(CallTime):
    """One call. `run` brings it to its end; afterwards the attributes tell what became of it.

    `gone` tells whether the client has left.
    """

    def __init__(self, gateway: Gateway, subject: Subject, request: Request, decision: RouteDecision) -> None:
        self.gateway, self.subject, self.request, self.decision = gateway, subject, request, decision
        super().__init__(decision, waits_long=subject.place is not None)
        self.gone: Callable[[], bool] = _stays
        self.ended: Ended | None = None
        self.call_id = ""
        self.called_seq = 0
        self.tokens = 0
        self.reserved_microusd = 0
        self.lowered = False
        self.losses: tuple[str, ...] = ()
        self.markers = 0
        self.tries = 0
        self.cost = 0
        self.bound = 0
        self.failure: Failure | None = None
        self.failure_body = b""
        self.replayed: Recorded | None = None
        self.cached: Recorded | None = None
        self.degraded: Recorded | None = None
        self.visit: Visit | None = None
        self.reply: Reply | None = None
        self.tries_here = 0
        self._prepared = False
        self._entered = time.perf_counter()
        self._upstream_s = 0.0
        self._began = 0.0
        self._backoff_s = 0.0
        self.unsettled: Spent | None = None
        self.ending: Ending | None = None
        self.admission = Admission(self)
        self.way = Way(gateway, request, decision, subject.who, self.queueing)
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

    @property
    def came_late(self) -> bool:
        """The call was declared lost before its end: the end is no answer in the log."""
        return self.ended is not None and self.ended.recorded.facts.event == "cost_corrected"

    def count(self, booked: Booked) -> None:
        self.cost += booked.cost_microusd
        self.bound += booked.bound_microusd

    def overhead_ms(self) -> float:
        """What of the time so far was not the providers': waits for the budget and for retries are ours."""
        return max(0.0, (time.perf_counter() - self._entered - self._upstream_s) * 1000)

    def landed(self) -> None:
        """The call has come to its end, whichever it was. Say so exactly once."""
        if self.call_id and self.gateway.settlements.is_open(self.call_id):
            # It was ended between its admission and its settlement.
            end = Lose if self.was_sent else NeverSent
            why = "it was ended while it was under way" if self.was_sent else "it was ended before it was sent"
            self.gateway.settlements.owe(self.call_id, end(self.call_id, self.subject.job_id, why))
        self.gateway.flying.leave(self.subject)
        if self.visit is not None:
            self.visit.left()

    # ── where to ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _find_first(self) -> bool:
        """Is there a target to ask at all? With an answer from the cache at hand nobody waits for one."""
        if self.visit is not None and self.visit.found:
            return self._found
        found = self._found and await self.way.ready(self.circuit_deadline())
        if not found and self.way.will_wait:
            with self.queueing():
                if await self.admission.recalls():
                    return True  # given again, whatever is open
        return found or await self.way.otherwise(self.circuit_deadline())

    async def _advance(self, failure: Failure) -> bool:
        """Choose the next try: the same target after a wait, or another one at once. False when there is none."""
        self._give_back()  # of a probe that could not be sent; of any other one there is nothing left to give
        if not self.request.left_out and are_refused(failure.status, failure.message) and leave_out(self.request):
            return True
        left = self.deadline - self.loop.time()
        tries = self.gateway.routing.retries.of(failure.error_class)
        self._backoff_s = 0.0
        if failure.retryable and self.tries_here < tries.max_attempts:
            wait_s = backoff_ms(self.tries_here, tries, failure.retry_after_ms, _random) / 1000
            if self.way.is_open():
                self.way.comes_back()
            elif wait_s + self.total_s * LEAST_TRY < self._time_here(left) and wait_s < self._time_here(self.queue_s):
                self._backoff_s = wait_s
                return True
        if not failure.fallback or left <= self.total_s * LEAST_TRY:
            return False
        self.tries_here = 0
        if self.way.next(f"{failure.error_class}: {failure.code}") and await self.way.ready(self.circuit_deadline()):
            return True
        if self.way.will_wait:
            await self.settle_try()  # what it says of its target must be written: all wait for that, this call too
        return await self.way.otherwise(self.circuit_deadline())

    async def settle_try(self) -> None:
        """Write a failed try before the call waits for anything: others may wait for what it holds."""
        tried, self.unsettled = self.unsettled, None
        if tried is not None:
            written = await self.admission.settle(tried, last=False)
            self.count(booked_at(written.recorded))
            self.is_written(tried)

    def _time_here(self, left: float) -> float:
        return left * SHARE_OF_A_TRY if self.way.has_more else left

    def mark(self, failure: Failure | None = None) -> Mark | None:
        """Tell the circuits how the try came out: an answer, or a failure. What they want written is written with it."""
        if failure is not None and self.says_nothing(failure):
            return None
        target, call = self.target, self.way.call
        self.way.call = None
        circuits = self.gateway.circuits
        if failure is None:
            return circuits.answered(target.account, target.model, call, self.way.own)
        return circuits.failed(target.account, target.model, failure, call, self.way.own)

    def _give_back(self) -> None:
        """A probe that came to nothing must not keep others from trying."""
        call, target = self.way.call, self.target
        if call is not None:
            self.way.call = None
            giving = self.gateway.circuits.give_back(target.account, target.model, call, self.way.own)
            self.gateway.keep(self.loop.create_task(giving))

    async def _ending(self, failure: Failure | None) -> Ending | None:
        """What a call comes to when no target is left. None where that is its last `failure`."""
        if failure is not None and not failure.fallback:
            return None
        return await ending_of(self, failure, settled=self.unsettled is None)

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
            with self.queueing(counts=False):
                if await self.visit.comes_again() and self._given(await self.admission.admit_once(probe=True)):
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
                    result = unread() if self._prepared else not_sent()
                if not isinstance(result, Failure):
                    self.failure = None
                    return result
                self.failure = result
                self.unsettled = spent = spent_on_failure(self, result)
                if not await self._advance(result):
                    self.ending = await self._ending(result)
                    if self.ending is None:
                        crash_point("model_answered")
                        self.unsettled = None
                        await self.settle(spent)
                        return None
                elif spent.mark is not None and spent.mark.call is not None:
                    # A probe: others wait to hear of it, and this call may have to stand in line.
                    await self.settle_try()
                await self._back_off()
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

    async def _back_off(self) -> None:
        """Wait before the next try at the same target."""
        if self._backoff_s > LONGEST_BACKOFF_HELD_S:
            await self.settle_try()
        if self._backoff_s:
            await asyncio.sleep(self._backoff_s)

    async def admit(self) -> Outcome:
        """Reserve the next try, waiting for room in the budget where only outstanding calls are in the way."""
        self.sent_at = None
        try:
            with self.queueing():
                outcome = await self.admission.in_turn()
        except StoreUnavailable:
            if self.unsettled is not None:
                self.gateway.settlements.owe(self.unsettled.call_id, self.admission.settlement(self.unsettled))
            raise
        except OvernightError:
            if self.unsettled is not None:
                await self.settle(self.unsettled)
            raise
        if outcome.stopped is not None:
            raise outcome.stopped
        crash_point("model_admitted")
        return outcome

    @property
    def is_free(self) -> bool:
        """A cache has the answer, or nobody is left to be asked: no budget and no rate stands in its way."""
        return self.ending is not None or (self.visit is not None and self.visit.found)

    def asked(self) -> Asked:
        """What the answer of this try must agree with."""
        return Asked(self.answer_id, self.target.model, client_body(self.request), int(time.time()))

    @property
    def answer_id(self) -> str:
        """The id of the answer of this try."""
        return self.id_of(self.call_id)

    def id_of(self, call_id: str) -> str:
        return ANSWER_IDS.get(self.request.format, "") + call_id.removeprefix("call_")

    def _prepare(self) -> tuple[Prepared, float]:
        """What goes to the target, and until when this try may take."""
        self._prepared = False
        self._began = time.perf_counter()
        self.failure_body = b""
        now = self.loop.time()
        target = self.target
        sent = self.wire.prepare(self.request, target.upstream_model, self.tokens, target.dialect)
        self.losses = sent.losses
        if self.decision.cache.prompt_markers:
            sent, self.markers = placed(sent, self.wire.spoken.name, target.model, target.dialect, self.subject)
        self._prepared = True
        self.try_s, self.sent_at = self._time_here(self.deadline - now), now
        return sent, now + self.try_s

    def _headers(self, sent: Prepared) -> tuple[tuple[bytes, bytes], ...]:
        who, headers = self.subject.who, self.target.headers + sent.headers
        if who.trace_id is None:
            return headers
        return (*headers, (b"traceparent", traceparent_of(who.trace_id, self.call_id, who.trace_flags)))

    async def _ask(self) -> Reply | Failure:
        sent, deadline = self._prepare()
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
            received = self.wire.received(self.target.cleaned(body), self.asked)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, *UNKNOWN_SHAPE):
            return None
        if received is None:
            return None
        usage = received.usage or estimated_usage(self.request.prompt_bytes, received.characters)
        return Reply(received.body, usage, request_id and self.target.cleaned(request_id))

    def received(self) -> Received:
        """What of an answer came before the try failed."""
        return Received()

    def is_written(self, spent: Spent) -> None:
        self.gateway.settlements.closed(spent.call_id)
        self.admission.settled()
        if spent.mark is not None:
            self.gateway.circuits.written()

    async def settle(self, spent: Spent) -> None:
        """Write the end of the call. Raises Fenced when a newer attempt or lease has begun meanwhile."""
        if self.visit is not None:
            self.visit.compare(spent)
        self.ended = ended = await self.admission.settle(spent)
        crash_point("model_settled")
        self.is_written(spent)
        self.count(booked_at(ended.recorded))
        if ended.fenced:
            raise Fenced(
                f"{self.subject.job_id}: a newer attempt began while this call was under way; this one is over"
            )
        if self.visit is not None and self.reply is not None and not self.came_late:
            self.visit.answered(ended.recorded, self.reply.body)
