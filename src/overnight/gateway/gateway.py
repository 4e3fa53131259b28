"""The gateway: one path for all model calls, whoever makes them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping

from overnight.brain import Routing
from overnight.budgets import Kin, Policy, wake_topped_up
from overnight.circuit_breakers import Circuits
from overnight.domain import (
    EVERYWHERE,
    Attribution,
    CallFacts,
    OvernightError,
    Reach,
    Recorded,
    StoreUnavailable,
    new_id,
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

from .admission.admission_queue import Lines
from .admission.commands import Outcome
from .admission.cost_alerts import Costs, Untenable
from .admission.due_settlements import Settlements
from .admission.in_flight import Flying
from .admission.key_permissions import permitted
from .admission.loop_guard import LoopGuard
from .cache import Caches
from .call.deadlines import LEAST_STORE_S, store_answers_by
from .call.pipeline import Flight
from .call.streaming import StreamedFlight
from .error_responses import (
    JSON,
    Answer,
    BodyTooLarge,
    UnknownModelAsked,
    fault,
    refusal,
)
from .identity import METADATA_NAMES, Subject, session_name, with_cache_key, with_metadata
from .orphaned_calls import OrphanedCalls
from .response_headers import answer_of, call_headers
from .routing_facts import facts_of
from .stored_responses import Responses

log = logging.getLogger("overnight.gateway")
KinKey = tuple[str, str, Reach]
"""Tenant, a job's name, and a reach that it is within."""
MOST_KNOWN_JOBS = 50_000
SWEEP_EVERY_S = 1.0
COSTS_EVERY = 20
GRACE_S = 5.0
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
        self.owner = owner or f"gateway-{os.getpid()}-{os.urandom(3).hex()}"
        self.brain_version = brain_version
        self.keys = keys or Keyring(store)
        self.keys.patience_s = self._patience_s
        self.targets = Targets(
            routing, prices, environment, offline_base_url, self.keys, was_asked_for=offline_was_asked_for
        )
        self.ledger = Ledger(store)
        self.responses = Responses(self.ledger)
        self.known_content = KnownContent()
        self.lines = Lines()
        self.settlements = Settlements(store, self._settled_late)
        self.lost_calls = OrphanedCalls(store, self.owner, self.settlements, self.lines.stir)
        self._registration = Registration(store, self.owner, "gateway") if registers else None
        self.policy = Policy(routing.budgets, routing.rate_limits)
        self.fees = {**FEES, **routing.hosted_tools}
        self.loops = LoopGuard(store, routing.guards)
        self.costs = Costs(store, routing.alarms)
        self.untenable = Untenable()
        self.lineage: OrderedDict[str, Kin] = OrderedDict()
        self.flying = Flying()
        self.circuits = Circuits(store, routing.breakers)
        self.caches = Caches(store, self.ledger)
        self.prompts_version = prompts_version or brain_version
        self._kin: OrderedDict[KinKey, tuple[str, ...]] = OrderedDict()
        self._sweeper: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._pumps: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Load the price data and begin to settle what was lost."""
        await asyncio.to_thread(self.prices.load)
        if self._registration is not None:
            await self._registration.start()
        await self.circuits.start()
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        self._watcher = asyncio.get_running_loop().create_task(self.lost_calls.watch())
        if self.routing.cache.semantic is not None:
            await self.caches.vectors()  # if they are missing, say so at once

    def keep(self, pump: asyncio.Task[None]) -> None:
        """Streams are read to their end whether or not their client stays."""
        self._pumps.add(pump)
        pump.add_done_callback(self._pumps.discard)

    async def close(self) -> None:
        """Give streams a moment to end. What is under way then fails, and is settled as lost."""
        if self._pumps:
            await asyncio.wait(self._pumps, timeout=GRACE_S)
            for pump in list(self._pumps):
                pump.cancel()
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
            log.warning("calls under way are settled by the next process that starts: %s", error)
        await self.targets.close()

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def call(
        self,
        form: Codec,
        body: bytes,
        who: Attribution,
        headers: Iterable[tuple[bytes, bytes]] = (),
        gone: Callable[[], bool] | None = None,
    ) -> Answer:
        """A model call of a foreign runtime, in any client format; the answer with its headers, the last failure included.

        Of `headers`, the request's, a target of the same format gets those that the format has for it. `gone` tells whether
        the client has left: a call that is still queued then is given up.
        Raises the errors of `Flight.run`, and BadInput, UnknownModelAsked, BodyTooLarge, Unavailable (see `refusal`).
        """
        request = self.read(form, body)
        if form.passes:
            request.pass_headers = tuple(each for each in headers if each[0] in form.passes)
        if request.metadata is not None:
            who = with_metadata(who, request.metadata)
            request.forget_metadata(METADATA_NAMES)
        if form is RESPONSES:
            await self.responses.go_on(request, who, self.routing.limits.max_body_bytes, self._store_deadline())
        if who.session_id is None and (cache_key := request.fields.get("prompt_cache_key")) is not None:
            who = with_cache_key(who, cache_key)
        decision = permitted(self.decide(facts_of(who, request)), who)
        subject = await self.subject(who, request)
        flight = (StreamedFlight if request.stream else Flight)(self, subject, request, decision)
        if gone is not None:
            flight.gone = gone
        if isinstance(flight, StreamedFlight):
            return await self._streamed(flight)
        try:
            await flight.run()
        finally:
            flight.landed()
        given = flight.given
        if given is not None:
            return await self._given(flight, given)
        return answer_of(flight)

    async def _streamed(self, flight: StreamedFlight) -> Answer:
        opening = asyncio.get_running_loop().create_task(flight.open())
        try:
            while not opening.done():
                await asyncio.wait((opening,), timeout=flight.keep_alive_due())
                if not opening.done() and flight.is_silent():
                    self.keep(asyncio.get_running_loop().create_task(self._open_late(flight, opening)))
                    return Answer(200, [*_STREAM, *call_headers(flight, streams=True)], pieces=flight.feed)
        except BaseException:
            opening.cancel()
            raise
        if opening.result():
            return Answer(200, [*_STREAM, *call_headers(flight, streams=True)], pieces=flight.feed)
        given = flight.given
        if given is not None:
            return await self._given(flight, given)
        return answer_of(flight)

    async def _open_late(self, flight: StreamedFlight, opening: asyncio.Task[bool]) -> None:
        """The client has had its status, since its provider was silent for long: what comes of the call is in the stream."""
        client = flight.wire.client
        flight.keep_alive()
        try:
            if await opening:
                return
            given = flight.given
            answer = answer_of(flight) if given is None else await self._given(flight, given)
            if answer.pieces is None:
                flight.feed.push([client.error_event(answer.body)])
            else:
                flight.feed.push([piece async for piece in answer.pieces])
        except OvernightError as error:
            flight.feed.push([client.error_event(refusal(error, client).body)])
        except asyncio.CancelledError:
            opening.cancel()
            raise
        except Exception:
            log.exception("a streamed call failed by a fault of the gateway")
            flight.feed.push([client.error_event(fault(client).body)])
        finally:
            if not (opening.done() and not opening.cancelled() and opening.exception() is None and opening.result()):
                flight.feed.end()

    async def _given(self, flight: Flight, answer: Recorded) -> Answer:
        """A recorded answer, an older attempt's, from a cache or degraded, in the form that is asked for now."""
        body = await self.ledger.answer(answer, until=flight.store_deadline()) or b"{}"
        headers = call_headers(flight)
        if not flight.request.stream:
            return Answer(200, [JSON, *headers], body)
        pieces = flight.wire.client.taken_apart(body, 0.0 if flight.request.wants_usage else None)
        return Answer(200, [*_STREAM, *headers], pieces=_each(pieces))

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

    async def subject(self, who: Attribution, request: Request) -> Subject:
        """Whose call this is: the job named, the session, or a job of its own."""
        external_id, job_id = who.external_id, who.job_id
        if job_id is None and external_id is None and who.session_id is not None and not who.only_marks:
            external_id = session_name(who)
        name = job_id or external_id
        kin = self._kin.get((who.tenant_id, name, who.reach)) if name is not None else None
        if kin is None and job_id is not None:
            async with store_answers_by(self._store_deadline()):
                found = await self._ancestors(job_id, who.tenant_id, who.reach)
            kin = self._remember((who.tenant_id, job_id, who.reach), found)
        fresh = new_id("job") if kin is None else kin[-1]
        return Subject(
            who,
            fresh,
            kin or (fresh,),
            kin is not None,
            label=who.task_id or request.model or "default",
            external_id=external_id,
            unattributed=name is None,
            brain_version=self.brain_version,
            attempt=who.attempt or 1,
            lineage=self.lineage,
            fingerprint=request.fingerprint(who.task_id),
        )

    @property
    def _patience_s(self) -> float:
        """How long a call whose route is not known yet may wait for the store."""
        return max(self.routing.time_limits.queue_ms / 1000, LEAST_STORE_S)

    def _store_deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._patience_s

    async def find_kin(self, subject: Subject, job_id: str) -> None:
        """The job exists and has a parent: its budgets are its ancestors' too."""
        kin = await self._ancestors(job_id, subject.who.tenant_id, subject.who.reach)
        subject.job_id, subject.ancestors, subject.known = job_id, kin, True

    def learn(self, subject: Subject, outcome: Outcome) -> None:
        """Keep what an admission found out: immutable facts only."""
        subject.attempt = outcome.attempt
        if not subject.known:
            if outcome.job_id != subject.job_id:
                subject.job_id, subject.ancestors = outcome.job_id, (outcome.job_id,)
            subject.known = True
            if subject.external_id is not None:
                self._remember((subject.who.tenant_id, subject.external_id, subject.who.reach), subject.ancestors)

    def _remember(self, key: KinKey, kin: tuple[str, ...]) -> tuple[str, ...]:
        self._kin[key] = kin
        if len(self._kin) > MOST_KNOWN_JOBS:
            self._kin.popitem(last=False)
        return kin

    async def ancestors(self, job: JobRow) -> tuple[str, ...]:
        """The job's ancestors and itself, root first."""
        if job.parent_job_id is None:
            return (job.job_id,)
        if job.parent_job_id == job.root_job_id and job.root_job_id in self.lineage:
            return (job.root_job_id, job.job_id)
        key = (job.tenant_id, job.job_id, EVERYWHERE)
        return self._kin.get(key) or self._remember(key, await self._ancestors(job.job_id, job.tenant_id))

    async def _ancestors(self, job_id: str, tenant_id: str, reach: Reach = EVERYWHERE) -> tuple[str, ...]:
        job = await self.ledger.job(job_id, tenant_id, reach)
        found = [job.job_id]
        while job.parent_job_id is not None:
            job = await self.ledger.job(job.parent_job_id, tenant_id)
            found.append(job.job_id)
            self.lineage[job.job_id] = Kin(job.job_id, job.workflow or job.name, job.started_at)
        while len(self.lineage) > MOST_KNOWN_JOBS:
            self.lineage.popitem(last=False)
        return tuple(reversed(found))

    # ── what was lost ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _settled_late(self) -> None:
        self.lines.stir()
        self.circuits.written()

    async def _sweep(self) -> None:
        for turn in itertools.count():
            await asyncio.sleep(SWEEP_EVERY_S)
            try:
                await self.lost_calls.sweep()
                await wake_topped_up(self.store)
                if turn % COSTS_EVERY == 0:
                    await self.costs.look()
            except StoreUnavailable as error:
                log.warning("lost calls and topped-up jobs could not be looked after, trying again: %s", error)
            except Exception:
                log.exception("the sweep failed by a fault of ours, trying again")

    async def settle_lost(self, job: JobRow) -> int:
        """Settle the calls that older leases of this job left in flight as lost; how many there were."""
        return await self.lost_calls.settle_lost(job)

    async def settle_owner(self, owner: str) -> int:
        """Settle what a process that is known to be dead left in flight; how many calls there were."""
        return await self.lost_calls.settle_owner(owner)


async def _each(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
