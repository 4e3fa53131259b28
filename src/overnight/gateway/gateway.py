"""The gateway: one path for all model calls."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from typing import Any

from overnight.brain import Brain, Routing
from overnight.budgets import Policy
from overnight.circuit_breakers import CircuitBreakers
from overnight.domain import (
    Attribution,
    BadInput,
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
from overnight.providers.targets import Targets, Unavailable, UnknownModelName
from overnight.store import Store
from overnight.wire_formats import COMPACT, RESPONSES, Codec, client_body
from overnight.wire_formats.request import Request

from .admission.admission_outcomes import CacheHit, Replayed
from .admission.admission_queue import AdmissionQueue
from .admission.cost_alerts import CostAlerts, UsageWarnings
from .admission.due_settlements import Settlements
from .admission.in_flight import InFlightCalls
from .admission.key_permissions import permitted_decision
from .admission.loop_guard import LoopGuard
from .admission.services import AdmissionServices
from .cache import Caches, Embedded, LookupServices
from .call.embedding_call import embed
from .call.pipeline import CallPipeline
from .call.result import CallResult, DegradedAnswer
from .call.services import CallServices
from .call.streaming import StreamedCall
from .call_context import CallContext, new_context
from .call_deadlines import store_timeout_s
from .call_facts import routing_facts
from .effects import HttpEffects
from .error_responses import (
    JSON,
    BodyTooLarge,
    HttpResponse,
    UnknownRequestedModel,
    error_response,
    internal_error_response,
)
from .housekeeping import Housekeeping
from .identity import METADATA_NAMES, Subject, with_cache_key, with_client_metadata, with_metadata
from .job_ancestry import JobAncestry
from .job_starts import start_job
from .live_settings import updated_services
from .orphaned_calls import OrphanedCalls
from .prompts_versions import PromptsVersions
from .response_headers import answer_of, call_headers
from .stored_responses import StoredResponses

log = logging.getLogger("overnight.gateway")
GRACE_S = 5.0
"""The time that streams have to end when the gateway closes."""

_STREAM = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))


class Gateway:
    """The model calls of this process. Call `start` before the first call and `close` after the last.

    Args:
        owner: the name of this process in its reservations and in the table `worker`.
        registers: whether the gateway registers the process; False where the caller does so under the same name.
        environment: holds the providers' keys; by default the environment of the process.
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
        self.keys.read_timeout_s = store_timeout_s(self.routing.time_limits)
        self._offline = (offline_base_url, offline_was_asked_for)
        self.targets, self._retired = self._new_targets(environment), list[Targets]()
        self.ledger = Ledger(store)
        self.responses = StoredResponses(self.ledger)
        self.known_content = KnownContent()
        self.queue = AdmissionQueue(lambda: self.lost_calls.has_peers)
        self.settlements = Settlements(store, self._settled_late)
        self.lost_calls = OrphanedCalls(store, self.owner, self.settlements, self.queue.notify)
        self._registration = Registration(store, self.owner, "gateway") if registers else None
        self.policy = Policy(routing.budgets, routing.rate_limits)
        self.cost_alerts = CostAlerts(store, routing.alarms)
        self.jobs = JobAncestry(self.ledger, brain_version)
        self.circuits = CircuitBreakers(store, routing.breakers)
        self.caches = Caches(store, self.ledger)
        self.prompts = PromptsVersions(store, brain_version)
        self._prompts_version = prompts_version or brain_version or ""
        self.effects = HttpEffects(store, self.jobs, self.policy, lambda: store_timeout_s(self.routing.time_limits))
        self._services: CallServices | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

    def _new_targets(self, environment: Mapping[str, str] | None) -> Targets:
        base, asked = self._offline
        return Targets(self.routing, self.prices, environment, base, self.keys, was_asked_for=asked)

    async def reload(self, brain: Brain, environment: Mapping[str, str]) -> None:
        """Change to another version of the brain. Calls in flight keep their targets. `environment` has the keys of all."""
        await asyncio.to_thread((prices := PriceBook(brain.routing.prices)).load)
        if (routing := brain.routing).cache.semantic is not None:
            await self.caches.vectors()
        self._retired.append(self.targets)
        self.routing, self.prices, self.brain_version = routing, prices, brain.version
        self.jobs.brain_version = self.prompts.present = brain.version
        self.keys.read_timeout_s = store_timeout_s(self.routing.time_limits)
        self.targets = self._new_targets(environment)
        self._services = updated_services(self.services, self.circuits, routing, self.targets, brain.prompts_version)
        self.queue.notify()  # a raised limit may have room

    @property
    def services(self) -> CallServices:
        """The services of all calls. Created in the event loop of the first call; all calls share that loop."""
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
            breakers_written=self.circuits.refresh_soon,
        )
        caches, known, version = self.caches, self.known_content, self._prompts_version
        lookup = LookupServices(caches=caches, known_content=known, embed=self._embed, prompts_version=version)
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
        """Load the price data and start to settle lost calls."""
        await asyncio.to_thread(self.prices.load)
        if self._registration is not None:
            await self._registration.start()
        await self.circuits.start()
        hours = lambda: self.routing.limits.external_abandoned_hours  # noqa: E731
        sweeps = Housekeeping(self.store, self.lost_calls, self.cost_alerts, hours, self.effects.expire)
        self._sweeper = self.services.loop.create_task(sweeps.run())
        self._watcher = self.services.loop.create_task(self.lost_calls.watch())
        if self.routing.cache.semantic is not None:
            await self.caches.vectors()  # if they are missing, say so at once

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine to its end: a stream is read to its end, also after its client has disconnected."""
        task = self.services.loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Wait up to GRACE_S for streams to end. Calls still in flight then fail, and are settled as lost."""
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
        for targets in (*self._retired, self.targets):
            await targets.close()

    async def call(
        self,
        form: Codec,
        body: bytes,
        who: Attribution,
        headers: Iterable[tuple[bytes, bytes]] = (),
        disconnected: Callable[[], bool] | None = None,
    ) -> HttpResponse:
        """Make a model call for an HTTP client, in any client format. Returns the response with its headers.

        Args:
            form: the client's wire format.
            body: the body of the request.
            who: the attribution of the call.
            headers: the headers of the request. A target of the same format receives those that the format passes on.
            disconnected: whether the client has disconnected. A call that is still queued then is abandoned.

        Raises:
            OvernightError: see `CallPipeline.run`; also BadInput, UnknownRequestedModel, BodyTooLarge, Unavailable.
                `error_response` turns each into a response.
        """
        request = self.read(form, body)
        if form.forwarded_headers:
            request = request.with_pass_headers(each for each in headers if each[0] in form.forwarded_headers)
        if request.metadata is not None:
            who = with_metadata(who, request.metadata)
            request = request.without_metadata(METADATA_NAMES)
        if form is RESPONSES or form is COMPACT:
            request = await self.responses.prepend_history(
                request, who, self.routing.limits.max_body_bytes, self._store_deadline()
            )
        if who.session_id is None and (client_metadata := request.fields.get("client_metadata")) is not None:
            who = with_client_metadata(who, client_metadata)
        if who.session_id is None and (cache_key := request.fields.get("prompt_cache_key")) is not None:
            who = with_cache_key(who, cache_key)
        decision = permitted_decision(self.decide(routing_facts(who, request)), who)
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

    async def start_job(self, who: Attribution) -> tuple[str, bool]:
        """Start the named external job, unless it exists. Returns its id, and whether it is new. Raises NotFound, Conflict."""
        return await start_job(self.jobs, self.store, who, self._store_deadline())

    async def _answer(self, pipeline: CallPipeline, result: CallResult | None) -> HttpResponse:
        """The HTTP response of a call that has ended."""
        match result:
            case None:
                raise RuntimeError("a call ended without a result")
            case Replayed() | CacheHit() | DegradedAnswer():
                return await self._recorded_answer(pipeline, result.recorded)
            case _:
                return answer_of(pipeline, result)

    async def _recorded_answer(self, pipeline: CallPipeline, recorded: Recorded) -> HttpResponse:
        """A replayed, cached or degraded answer, whole or as a stream, as the present request asks."""
        body = await self.ledger.answer(recorded, until=pipeline.deadlines.store_deadline()) or b"{}"
        context, headers = pipeline.context, call_headers(pipeline)
        if not context.request.stream:
            return HttpResponse(200, [JSON, *headers], body)
        try:  # all chunks before the status: a malformed answer is an error, not a stream that is cut
            chunks = list(context.client.stream_events(body, 0.0 if context.request.wants_usage else None))
        except (TypeError, ValueError, KeyError, AttributeError):
            text = f"the recorded answer of call {recorded.facts.call_id} is malformed; request it without stream"
            raise OvernightError(text) from None
        return HttpResponse(200, [*_STREAM, *headers], pieces=_each(chunks))

    async def _streamed(self, context: CallContext) -> HttpResponse:
        call, loop = StreamedCall(self.services, context), self.services.loop
        opening = loop.create_task(call.open())
        try:
            while not opening.done():
                await asyncio.wait((opening,), timeout=call.keep_alive_due_s())
                if not opening.done() and call.is_silent():
                    self._run_in_background(self._open_late(call, opening))
                    return HttpResponse(200, [*_STREAM, *call_headers(call.pipeline, streams=True)], pieces=call.buffer)
        except BaseException:
            opening.cancel()
            raise
        if opening.result():
            return HttpResponse(200, [*_STREAM, *call_headers(call.pipeline, streams=True)], pieces=call.buffer)
        return await self._answer(call.pipeline, call.pipeline.result)

    async def _open_late(self, call: StreamedCall, opening: asyncio.Task[bool]) -> None:
        """Write the result into the stream: the provider was silent for long, so the client has received its status."""
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
            call.end_with_error(error_response(error, client).body)
        except asyncio.CancelledError:
            opening.cancel()
            raise
        except Exception:
            log.exception("internal error in a streamed call")
            call.end_with_error(internal_error_response(client).body)
        finally:
            if not (opening.done() and not opening.cancelled() and opening.exception() is None and opening.result()):
                buffer.end()

    def _store_deadline(self) -> float:
        return self.services.loop.time() + store_timeout_s(self.routing.time_limits)

    def count_tokens(self, form: Codec, body: bytes) -> int:
        """Estimate the input tokens of a request, without a provider. Raises BodyTooLarge, InvalidBody."""
        if form.estimate_tokens is None:
            raise BadInput(f"the format {form.name} does not count tokens")
        return form.estimate_tokens(client_body(self.read(form, body)))

    def read(self, form: Codec, body: bytes) -> Request:
        most = self.routing.limits.max_body_bytes
        if len(body) > most:
            raise BodyTooLarge(f"the body has {len(body):,} bytes; the maximum is {most:,} (limits.max_body_bytes)")
        return form.read(body)

    def check_model_name(self, model: str) -> None:
        """Raises UnknownModelName for a name that only a pattern matches and that has no price."""
        try:
            self.targets.target(model)
        except UnknownModelName:
            raise
        except Unavailable:
            pass  # it is a route, or it cannot be called now

    def decide(self, facts: CallFacts) -> RouteDecision:
        """Select the route and its targets. Raises UnknownRequestedModel; Unavailable where residency leaves no target."""
        try:
            decision = self.routing.decide(facts)
        except LookupError as error:
            raise UnknownRequestedModel(str(error)) from None
        if not decision.targets:
            closed = "; ".join(f"{name}: {why}" for name, why in decision.rejected)
            raise Unavailable(
                f"route {decision.route} has no target left ({closed}); see its residency in routing.yaml"
            )
        return decision

    def _settled_late(self) -> None:
        self.queue.notify()
        self.circuits.refresh_soon()

    async def settle_lost(self, job: JobRow) -> int:
        """Settle the calls that older leases of this job left in flight as lost. Returns their number."""
        return await self.lost_calls.settle_lost(job)

    async def settle_owner(self, owner: str) -> int:
        """Settle the calls that a dead process left in flight as lost. Returns their number."""
        return await self.lost_calls.settle_owner(owner)


async def _each(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
