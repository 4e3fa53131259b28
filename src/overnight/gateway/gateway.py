"""The gateway: one path for all model calls, whoever makes them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from typing import Any

from overnight.brain import Routing
from overnight.budgets import Policy, wake_topped_up
from overnight.circuit_breakers import CircuitBreakers
from overnight.domain import (
    Attribution,
    CallFacts,
    OvernightError,
    Recorded,
    StoreUnavailable,
)
from overnight.domain.policies import RouteDecision
from overnight.keys import Keyring
from overnight.ledger import JobRow, KnownContent, Ledger, Registration
from overnight.pricing.price_book import PriceBook
from overnight.pricing.provider_tools import FEES
from overnight.providers.targets import Targets, Unavailable
from overnight.store import Store
from overnight.wire_formats import (
    MESSAGES,
    RESPONSES,
    Codec,
    client_body,
    counted,
)
from overnight.wire_formats.request import Request

from .admission.admission_queue import AdmissionQueue
from .admission.cost_alerts import CostAlerts, UsageWarnings
from .admission.due_settlements import Settlements
from .admission.in_flight import InFlightCalls
from .admission.key_permissions import permitted_decision
from .admission.loop_guard import LoopGuard
from .admission.outcomes import CacheHit, Replayed
from .admission.services import AdmissionServices
from .cache import Caches, Embedded, LookupServices
from .call.embedding_call import embed
from .call.pipeline import CallPipeline
from .call.result import CallResult, DegradedAnswer
from .call.services import CallServices
from .call.streaming import StreamedCall
from .call_context import CallContext, new_context
from .call_deadlines import MIN_STORE_S
from .error_responses import (
    JSON,
    Answer,
    BodyTooLarge,
    UnknownModelAsked,
    fault,
    refusal,
)
from .identity import METADATA_NAMES, Subject, with_cache_key, with_metadata
from .job_ancestry import JobAncestry
from .orphaned_calls import OrphanedCalls
from .response_headers import answer_of, call_headers
from .routing_facts import facts_of
from .stored_responses import StoredResponses

log = logging.getLogger("overnight.gateway")
SWEEP_EVERY_S = 1.0
COSTS_EVERY = 20
"""Sweeps between two looks at the costs of finished jobs."""

GRACE_S = 5.0
"""How long streams have to end when the gateway closes."""

_STREAM = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))


class Gateway:
    """Model calls of this process. `start` it before the first call and `close` it after the last.

    `owner` names this process in its reservations and in `worker`, where it `registers` (unless the caller does that under the
    same name). `environment` holds the providers' keys (the process' own by default).
    """

    def __init__(
        self,
        store: Store,
        routing: Routing,
        prices: PriceBook,
        *,
        offline_base_url: str | None = None,
        offline_was_asked_for: bool = True,
        owner: str | None = None,
        brain_version: str | None = None,
        prompts_version: str | None = None,
        registers: bool = True,
        environment: Mapping[str, str] | None = None,
        keys: Keyring | None = None,
    ) -> None:
        self.store, self.routing, self.prices = store, routing, prices
        self.brain_version = brain_version
        self.owner = owner or f"gateway-{os.getpid()}-{os.urandom(3).hex()}"
        self.keys = keys or Keyring(store)
        self.keys.patience_s = self._patience_s
        self.targets = Targets(
            routing, prices, environment, offline_base_url, self.keys, was_asked_for=offline_was_asked_for
        )
        self.ledger = Ledger(store)
        self.responses = StoredResponses(self.ledger)
        self.known_content = KnownContent()
        self.queue = AdmissionQueue()
        self.settlements = Settlements(store, self._settled_late)
        self.lost_calls = OrphanedCalls(store, self.owner, self.settlements, self.queue.notify)
        self._registration = Registration(store, self.owner, "gateway") if registers else None
        self.policy = Policy(routing.budgets, routing.rate_limits)
        self.cost_alerts = CostAlerts(store, routing.alarms)
        self.jobs = JobAncestry(self.ledger, brain_version)
        self.circuits = CircuitBreakers(store, routing.breakers)
        self.caches = Caches(store, self.ledger)
        self._prompts_version = prompts_version or brain_version or ""
        self._services: CallServices | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

    @property
    def services(self) -> CallServices:
        """What calls need of this gateway. Made in the loop of the first call, which is the loop of all."""
        if self._services is None:
            self._services = self._new_services(asyncio.get_running_loop())
        return self._services

    def _new_services(self, loop: asyncio.AbstractEventLoop) -> CallServices:
        admission = AdmissionServices(
            store=self.store,
            owner=self.owner,
            policy=self.policy,
            fees={**FEES, **self.routing.hosted_tools},
            known_content=self.known_content,
            jobs=self.jobs,
            queue=self.queue,
            in_flight=InFlightCalls(),
            settlements=self.settlements,
            loop_guard=LoopGuard(self.store, self.routing.guards),
            cost_alerts=self.cost_alerts,
            usage_warnings=UsageWarnings(),
            breakers_written=self.circuits.written,
        )
        lookup = LookupServices(
            caches=self.caches,
            known_content=self.known_content,
            embed=self._embed,
            prompts_version=self._prompts_version,
        )
        return CallServices(
            loop=loop,
            admission=admission,
            lookup=lookup,
            targets=self.targets,
            circuits=self.circuits,
            retries=self.routing.retries,
            run_in_background=self._run_in_background,
        )

    async def _embed(self, subject: Subject, model: str, text: str, until: float) -> Embedded:
        return await embed(self.services, self.decide, subject, model, text, until)

    async def start(self) -> None:
        """Load the price data and begin to settle what was lost."""
        await asyncio.to_thread(self.prices.load)
        if self._registration is not None:
            await self._registration.start()
        await self.circuits.start()
        self._sweeper = self.services.loop.create_task(self._sweep())
        self._watcher = self.services.loop.create_task(self.lost_calls.watch())
        if self.routing.cache.semantic is not None:
            await self.caches.vectors()  # if they are missing, say so at once

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it to its end: streams are read to their end whether or not their client stays."""
        task = self.services.loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Give streams a moment to end. What is under way then fails, and is settled as lost."""
        if self._background:
            await asyncio.wait(self._background, timeout=GRACE_S)
            for task in list(self._background):
                task.cancel()
        if tasks := [each for each in (self._sweeper, self._watcher) if each is not None]:
            for each in tasks:
                each.cancel()
            await asyncio.wait(tasks)
        self.caches.close()
        await self.circuits.close()
        try:
            await self.settlements.write_due()
            await self.settle_owner(self.owner)
            await self.keys.close()
            if self._registration is not None:
                await self._registration.end()
        except StoreUnavailable as error:
            log.warning("calls in flight will be settled by the next process: %s", error)
        await self.targets.close()

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def call(
        self,
        form: Codec,
        body: bytes,
        who: Attribution,
        headers: Iterable[tuple[bytes, bytes]] = (),
        disconnected: Callable[[], bool] | None = None,
    ) -> Answer:
        """A model call of a foreign runtime, in any client format; the answer with its headers, the last failure included.

        Args:
            form: the client's wire format.
            body: the request as it came.
            who: whom the call is attributed to.
            headers: of the request. A target of the same format gets those that the format has for it.
            disconnected: tells whether the client has disconnected. A call that is still queued then is given up.

        Raises:
            OvernightError: as `CallPipeline.run`; and BadInput, UnknownModelAsked, BodyTooLarge, Unavailable (see `refusal`).
        """
        request = self.read(form, body)
        if form.passes:
            request = request.with_pass_headers(each for each in headers if each[0] in form.passes)
        if request.metadata is not None:
            who = with_metadata(who, request.metadata)
            request = request.without_metadata(METADATA_NAMES)
        if form is RESPONSES:
            request = await self.responses.go_on(
                request, who, self.routing.limits.max_body_bytes, self._store_deadline()
            )
        if who.session_id is None and (cache_key := request.fields.get("prompt_cache_key")) is not None:
            who = with_cache_key(who, cache_key)
        decision = permitted_decision(self.decide(facts_of(who, request)), who)
        subject = await self.jobs.subject_of(who, request, self._store_deadline())
        context = new_context(subject, request, decision, form, disconnected=disconnected)
        if request.stream:
            return await self._streamed(context)
        pipeline = CallPipeline(self.services, context)
        try:
            result = await pipeline.run()
        finally:
            pipeline.release()
        return await self._answer(pipeline, result)

    async def _answer(self, pipeline: CallPipeline, result: CallResult | None) -> Answer:
        """The HTTP answer of a call that has ended."""
        match result:
            case None:
                raise RuntimeError("a call ended without a result")
            case Replayed() | CacheHit() | DegradedAnswer():
                return await self._recorded_answer(pipeline, result.recorded)
            case _:
                return answer_of(pipeline, result)

    async def _recorded_answer(self, pipeline: CallPipeline, recorded: Recorded) -> Answer:
        """An older attempt's answer, one from a cache or a degraded one, in the form that is asked for now."""
        body = await self.ledger.answer(recorded, until=pipeline.deadlines.store_deadline()) or b"{}"
        context, headers = pipeline.context, call_headers(pipeline)
        if not context.request.stream:
            return Answer(200, [JSON, *headers], body)
        chunks = context.client.taken_apart(body, 0.0 if context.request.wants_usage else None)
        return Answer(200, [*_STREAM, *headers], pieces=_each(chunks))

    async def _streamed(self, context: CallContext) -> Answer:
        call, loop = StreamedCall(self.services, context), self.services.loop
        opening = loop.create_task(call.open())
        try:
            while not opening.done():
                await asyncio.wait((opening,), timeout=call.keep_alive_due_s())
                if not opening.done() and call.is_silent():
                    self._run_in_background(self._open_late(call, opening))
                    return Answer(200, [*_STREAM, *call_headers(call.pipeline, streams=True)], pieces=call.buffer)
        except BaseException:
            opening.cancel()
            raise
        if opening.result():
            return Answer(200, [*_STREAM, *call_headers(call.pipeline, streams=True)], pieces=call.buffer)
        return await self._answer(call.pipeline, call.pipeline.result)

    async def _open_late(self, call: StreamedCall, opening: asyncio.Task[bool]) -> None:
        """The client has had its status, since its provider was silent for long: the result of the call is in the stream."""
        client, buffer = call.pipeline.context.client, call.buffer
        call.keep_alive()
        try:
            if await opening:
                return
            answer = await self._answer(call.pipeline, call.pipeline.result)
            if answer.pieces is None:
                call.end_with_error(answer.body)
            else:
                buffer.push([chunk async for chunk in answer.pieces])
        except OvernightError as error:
            call.end_with_error(refusal(error, client).body)
        except asyncio.CancelledError:
            opening.cancel()
            raise
        except Exception:
            log.exception("internal error in a streamed call")
            call.end_with_error(fault(client).body)
        finally:
            if not (opening.done() and not opening.cancelled() and opening.exception() is None and opening.result()):
                buffer.end()

    @property
    def _patience_s(self) -> float:
        """How long a call whose route is not known yet may wait for the store, in seconds."""
        return max(self.routing.time_limits.queue_ms / 1000, MIN_STORE_S)

    def _store_deadline(self) -> float:
        return self.services.loop.time() + self._patience_s

    def count_tokens(self, body: bytes) -> int:
        """About how many tokens the input of a messages request comes to. Nobody is asked. Raises BodyTooLarge, InvalidBody."""
        return counted(client_body(self.read(MESSAGES, body)))

    def read(self, form: Codec, body: bytes) -> Request:
        most = self.routing.limits.max_body_bytes
        if len(body) > most:
            raise BodyTooLarge(f"the body has {len(body):,} bytes; the most is {most:,} (limits.max_body_bytes)")
        return form.read(body)

    def decide(self, facts: CallFacts) -> RouteDecision:
        """Raises UnknownModelAsked; Unavailable where residency leaves no target."""
        try:
            decision = self.routing.decide(facts)
        except LookupError as error:
            raise UnknownModelAsked(str(error)) from None
        if not decision.targets:
            closed = "; ".join(f"{name}: {why}" for name, why in decision.rejected)
            raise Unavailable(
                f"route {decision.route} has no target left ({closed}); see its residency in routing.yaml"
            )
        return decision

    # ── what was lost ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _settled_late(self) -> None:
        self.queue.notify()
        self.circuits.written()

    async def _sweep(self) -> None:
        for turn in itertools.count():
            await asyncio.sleep(SWEEP_EVERY_S)
            try:
                await self.lost_calls.sweep()
                await wake_topped_up(self.store)
                if turn % COSTS_EVERY == 0:
                    await self.cost_alerts.poll()
            except StoreUnavailable as error:
                log.warning("recovery of lost calls failed, will retry: %s", error)
            except Exception:
                log.exception("internal error in the recovery of lost calls, will retry")

    async def settle_lost(self, job: JobRow) -> int:
        """Settle the calls that older leases of this job left in flight as lost; how many there were."""
        return await self.lost_calls.settle_lost(job)

    async def settle_owner(self, owner: str) -> int:
        """Settle what a process that is known to be dead left in flight; how many calls there were."""
        return await self.lost_calls.settle_owner(owner)


async def _each(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
