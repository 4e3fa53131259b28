"""Cache lookup and store for one call.

A cache never fails a call: an error is logged and recorded in the job as a miss, and the call is made.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from overnight.domain import (
    OvernightError,
    Recorded,
    StoreUnavailable,
    month_of,
)
from overnight.domain.policies import AgentCache, CachePolicy, RouteDecision, SemanticCache
from overnight.ledger import KnownContent, Ledger, parse_reference, recorded
from overnight.providers.targets import Target
from overnight.store import Store

from ..admission.attempt_result import AttemptResult
from ..attempt import Attempt
from ..call_context import CallContext, call_event
from ..call_deadlines import CallDeadlines
from ..identity import Subject
from .answer_comparison import ReadAnswer, compare, read_answer
from .cache_keys import (
    CacheCaller,
    event_fingerprint,
    exact_key,
    question_of,
    semantic_realm,
)
from .cache_result import CacheResult, Candidate, RecordShadowComparison
from .commands import ForgetExpired
from .question_embedding import Embed
from .rows import SQL
from .single_flight import LeadingCall, SingleFlight
from .vectors import (
    ALREADY_KNOWN,
    AddVector,
    NearestEntry,
    nearest,
)

log = logging.getLogger("overnight.gateway")
US = 1_000_000
WAIT_SHARE = 2 / 3
"""Share of a call's time for the wait for the leading call. If that one hangs, time must be left for the provider."""

EMBEDDING_SHARE = 1 / 4
MAX_ENTRIES, MAX_VECTORS = 100_000, 20_000
"""Maximum entries per tenant. Entries beyond it are deleted, in the order of their expiry."""

FORGET_EVERY_S = 60.0
COULD_NOT_ASK = "cache lookup failed"
NO_VECTORS = "vectors cannot be compared here"


class Caches:
    """The caches of one gateway."""

    def __init__(self, store: Store, ledger: Ledger) -> None:
        self.store, self.ledger = store, ledger
        self.single_flight = SingleFlight(store)
        self._vectors: bool | None = None
        self._tenants: set[str] = set()
        self._sweeper: asyncio.Task[None] | None = None

    @staticmethod
    def serve(decision: RouteDecision) -> bool:
        """Whether calls of this decision use a cache."""
        policy, degraded = decision.cache, decision.degraded
        return policy.exact_ttl_s > 0 or policy.semantic is not None or (degraded is not None and degraded.cache)

    async def vectors(self) -> bool:
        """Whether this store can compare vectors. Determined once."""
        if self._vectors is None:
            try:
                await asyncio.to_thread(self.store.enable_vectors)
                self._vectors = True
            except StoreUnavailable as error:
                self._vectors = False
                log.warning("semantic cache disabled in this process (the exact cache works): %s", error)
        return self._vectors

    async def look_up(
        self, tenant_id: str, key: bytes, statement: str = "look_up", *, until: float | None = None
    ) -> Candidate | None:
        """The answer to a question; None without one. Raises StoreUnavailable at `until`, a time of the loop."""
        values: dict[str, Any] = {"tenant_id": tenant_id, "key": key, "now": self.store.clock()}
        rows = await self.store.read(SQL[statement], values, until=until)
        if not rows:
            return None
        job_id, *answer = rows[0]
        return await self.candidate("exact", recorded(job_id, answer), until=until)

    async def candidate(
        self, kind: str, answer: Recorded, similarity: float | None = None, *, until: float | None = None
    ) -> Candidate | None:
        """The answer with its body; None if it was erased."""
        try:
            body = await self.ledger.answer(answer, until=until)
        except StoreUnavailable:
            raise
        except OvernightError:
            return None
        return None if body is None else Candidate(kind, answer, body, similarity)

    def keeps(self, tenant_id: str) -> None:
        """Start to delete expired entries of a tenant whose answer was stored."""
        self._tenants.add(tenant_id)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._forget())

    async def _forget(self) -> None:
        while True:
            await asyncio.sleep(FORGET_EVERY_S)
            tenants, self._tenants = tuple(self._tenants), set()
            try:
                more = True
                while more:
                    more = await self.store.commit(ForgetExpired(tenants, MAX_ENTRIES, MAX_VECTORS))
            except OvernightError as error:
                self._tenants.update(tenants)
                log.warning("expired cache entries could not be deleted, will retry: %s", error)

    def close(self) -> None:
        self.single_flight.close()
        if self._sweeper is not None:
            self._sweeper.cancel()


class LookupServices(msgspec.Struct, frozen=True, kw_only=True):
    """The services that the cache lookups of one gateway use.

    Fields:
        caches: the caches.
        known_content: content that need not be written again.
        embed: computes the vector of a question.
        prompts_version: the present version of the prompts. Each version has its own semantic entries; a call of job code uses
            those of the version with which its job began.
    """

    caches: Caches
    known_content: KnownContent
    embed: Embed
    prompts_version: str


class CacheLookup:
    """The cache lookup of one call. Call `may_replay`, then `look_up`, then `store_answer` or `release`.

    Attributes:
        result: the result of the lookup; None if no cache applies.
        subject: the job of the call, updated by the lookup.
    """

    def __init__(self, services: LookupServices, context: CallContext, deadlines: CallDeadlines) -> None:
        self._services, self._caches, self._context, self._deadlines = services, services.caches, context, deadlines
        decision, who = context.decision, context.subject.who
        policy: CachePolicy = decision.cache
        model = decision.targets[0]
        self._caller = caller = CacheCaller(who.tenant_id, who.key_id or "", who.agent_id or "")
        self._key = exact_key(caller, decision.route, model, context.request)
        self._mark = event_fingerprint(self._key)
        self._policy, self._model = policy, model
        degraded = decision.degraded
        self._serves = policy.exact_ttl_s > 0
        self._keeps = self._serves or (degraded is not None and degraded.cache)
        self._asked = self._consulted = False
        self._leading_call: LeadingCall | None = None
        self._vector: _Vector | None = None
        self._spent_microusd = 0
        self._looked: list[str] = []
        self._trouble = ""
        self._would_be: Candidate | None = None
        self.result: CacheResult | None = None
        self.subject: Subject = context.subject

    # ── before the call ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_hit(self) -> bool:
        """Whether the lookup found an answer."""
        return self.result is not None and self.result.candidate is not None

    async def may_replay(self) -> bool:
        """Whether recorded answers of older attempts may match this call. They are replayed before a cache is consulted."""
        try:
            with self._deadlines.asking_store():
                return await self._is_repeated()
        except StoreUnavailable as error:
            log.warning("cache lookup failed: %s", error)
            self._trouble = COULD_NOT_ASK
            return False

    async def _is_repeated(self) -> bool:
        subject = self.subject
        who = subject.who
        if not subject.known and subject.external_id is None:
            return False  # its job does not exist yet
        by_name = not subject.known
        values = {"mark": self._mark, "tenant_id": who.tenant_id, "job_id": subject.job_id}
        statement = SQL["read_standing_external" if by_name else "read_standing"]
        values |= {"external_id": subject.external_id}
        rows = await self._caches.store.read(statement, values, until=self._deadlines.store_deadline())
        _, runtime, attempt, asked_at = rows[0] if rows else (None, "foreign", 1, None)
        self._asked = asked_at is not None
        again = max(attempt, who.attempt or 1) > 1
        return again and runtime == "foreign" and subject.fingerprint is not None and bool(rows)

    async def look_up(self, subject: Subject) -> None:
        """Consult the caches, and set `result` and `subject`."""
        self.subject = subject
        found = None
        try:
            found = None if self._trouble else await self._look_up()
        except StoreUnavailable as error:
            log.warning("cache lookup failed: %s", error)
            self._trouble = COULD_NOT_ASK
        self._consulted = bool(self._looked or self._trouble or self._asked)
        if self._consulted:
            self.result = CacheResult(
                mark=self._mark,
                looked=tuple(self._looked),
                candidate=found,
                trouble=self._trouble,
                spent_microusd=self._spent_microusd,
            )

    async def _look_up(self) -> Candidate | None:
        if self._asked:
            return None
        found = await self._look_up_exact() if self._serves else None
        return found or await self._look_up_semantic()

    async def _look_up_exact(self) -> Candidate | None:
        self._looked.append("exact")
        caches, tenant_id, deadlines = self._caches, self._caller.tenant_id, self._deadlines

        async def look_up() -> Candidate | None:
            with deadlines.asking_store():
                return await caches.look_up(tenant_id, self._key, until=deadlines.store_deadline())

        found = await look_up()
        if found is not None:
            return found
        try:
            until = self._until(WAIT_SHARE)
            joined = await caches.single_flight.join(
                (tenant_id, self._key), self.subject.job_id, until, deadlines, look_up
            )
        except TimeoutError:
            self._trouble = "the identical call in flight took too long"
            return None
        self._leading_call, found = joined
        return found

    async def _look_up_semantic(self) -> Candidate | None:
        semantic, question = self._policy.semantic, question_of(self._context.request)
        own: AgentCache | None = semantic.of(self._caller.agent_id or None) if semantic is not None else None
        if semantic is None or own is None or own.mode == "off" or question is None:
            return None
        if not await self._caches.vectors():
            self._trouble = NO_VECTORS
            return None
        near = await self._nearest(semantic, question)
        self._looked.append("semantic" if own.mode == "on" else "shadow")
        if near is None or near.similarity < own.threshold:
            return None
        until = self._deadlines.store_deadline()
        with self._deadlines.asking_store():
            found = await self._caches.candidate("semantic", near.answer, near.similarity, until=until)
        if own.mode == "on":
            return found
        self._would_be = found
        return None

    async def _nearest(self, semantic: SemanticCache, question: str) -> NearestEntry | None:
        services, context = self._services, self._context
        embedded = await services.embed(self.subject, semantic.model, question, self._until(EMBEDDING_SHARE))
        self._spent_microusd, self.subject = embedded.cost_microusd, embedded.subject
        if embedded.numbers is None:
            self._trouble = embedded.why
            return None
        model = f"{semantic.model}/{len(embedded.numbers)}"
        prompts = context.subject.prompts_version or services.prompts_version
        realm = semantic_realm(self._caller, context.decision.route, self._model, context.request, prompts, model)
        self._vector = _Vector(semantic, realm, embedded.numbers)
        store, until = self._caches.store, self._deadlines.store_deadline()
        with self._deadlines.asking_store():
            near = await nearest(
                store, self._caller.tenant_id, realm, embedded.numbers, self.subject.job_id, until=until
            )
        if near is not None and near.similarity >= ALREADY_KNOWN:
            self._vector = None
        return near

    def _until(self, share: float) -> float:
        return self._deadlines.loop.time() + max(0.0, self._deadlines.remaining_s()) * share

    # ── after the call ──────────────────────────────────────────────────────────────────────────────────────────────

    def admitted(self) -> None:
        """Note that the call is admitted: the result of the lookup is recorded."""
        self.result = None

    def hit_recorded(self, hit: Recorded) -> None:
        """Note a durable hit: its answer need not be written again this month."""
        digest = parse_reference(hit.facts.output_ref or "")[2]
        self._services.known_content.add_hashes(self._caller.tenant_id, month_of(hit.at), [digest])

    def compare(self, subject: Subject, target: Target, result: AttemptResult) -> None:
        """Record the comparison with the answer of the shadow mode, in the batch that records the actual answer."""
        would_be, body = self._would_be, result.content
        if would_be is None or body is None or result.event.event != "model_succeeded":
            return
        form = self._context.request.format
        one, other = read_answer(form, would_be.body), read_answer(form, body)
        if one is None or other is None:
            return
        event = call_event(self._context, target, "cache_shadow", result.call_id)
        event.call_id = result.call_id
        note = RecordShadowComparison(subject.job_id, event, would_be, compare(one, other), result.cost_microusd or 0)
        self._caches.single_flight.write_later(note)

    def store_answer(self, attempt: Attempt, answer: Recorded, body: bytes) -> None:
        """Store the place of a durable answer in the ledger, if the answer may be reused."""
        read = self._keepable(attempt, body)
        if read is None:
            if self._leading_call is not None:
                self._caches.single_flight.abandon(self._leading_call, kept=False)
            return
        tenant_id = self._caller.tenant_id
        if self._keeps and (not read.tools or self._policy.exact_tool_turns):
            found = Candidate("exact", answer, body)
            ttl_us = self._policy.exact_ttl_s * US
            self._caches.single_flight.answered(self._leading_call, (tenant_id, self._key), found, ttl_us)
            self._caches.keeps(tenant_id)
        elif self._leading_call is not None:
            self._caches.single_flight.abandon(self._leading_call, kept=False)
        vector = self._vector
        if vector is None or (read.tools and not vector.policy.tool_turns):
            return
        row = AddVector(tenant_id, vector.realm, vector.numbers, answer, vector.policy.ttl_s * US)
        self._caches.single_flight.write_later(row)
        self._caches.keeps(tenant_id)

    def _keepable(self, attempt: Attempt, body: bytes) -> ReadAnswer | None:
        """The answer, if it is complete, from the first target, and with the requested output cap."""
        if attempt.target.model != self._model or attempt.grant.lowered:
            return None
        return read_answer(self._context.request.format, body)

    def kind(self, hit: Recorded | None) -> str | None:
        """The value of the cache header: exact, semantic, shadow or miss; None if no cache was consulted."""
        if not self._consulted:
            return None
        if hit is not None:
            return (hit.facts.detail or {})["cache"]["kind"]
        return "shadow" if self._would_be is not None else "miss"

    async def expired(self) -> Candidate | None:
        """An expired answer, for a call without a target. None without one, or without the store."""
        try:
            return await self._caches.look_up(
                self._caller.tenant_id, self._key, "look_up_older", until=self._deadlines.store_deadline()
            )
        except StoreUnavailable as error:
            log.warning("cache lookup failed: %s", error)
            return None

    def release(self) -> None:
        """End the lookup, whatever the result of the call: calls that wait for it continue."""
        if self._leading_call is not None:
            self._caches.single_flight.abandon(self._leading_call, kept=True)


class _Vector(msgspec.Struct, frozen=True):
    """The vector of a question without an entry, and its realm."""

    policy: SemanticCache
    realm: bytes
    numbers: list[float]
