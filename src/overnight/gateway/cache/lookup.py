"""One call's way past the caches: look before it is admitted, learn from its answer, make room however it ends.

A cache never fails a call: what goes wrong here is logged, told in the job as a miss, and the call is made.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from overnight.domain import (
    OvernightError,
    Recorded,
    StoreUnavailable,
    month_of,
)
from overnight.domain.policies import AgentCache, CachePolicy, RouteDecision, SemanticCache
from overnight.ledger import Ledger, parse_reference, recorded
from overnight.store import Store

from .answer_comparison import Said, compare, read_answer
from .cache_keys import (
    Caller,
    exact_key,
    mark_of,
    question_of,
    semantic_realm,
)
from .cache_result import Candidate, NoteShadow, Ticket
from .commands import Forget
from .question_embedding import embed
from .rows import SQL
from .single_flight import Head, SingleFlight
from .vectors import (
    ALREADY_KNOWN,
    AddVector,
    Near,
    nearest,
)

if TYPE_CHECKING:
    from ..admission.commands import Spent
    from ..call.pipeline import Flight
    from ..gateway import Gateway

log = logging.getLogger("overnight.gateway")
US = 1_000_000
SHARE_OF_A_WAIT = 2 / 3
"""Of a call's time, for following another: a leader that hangs must leave time for a call of one's own."""

SHARE_OF_AN_EMBEDDING = 1 / 4
MOST_ENTRIES, MOST_VECTORS = 100_000, 20_000
"""Per tenant. What is more goes by and by, the soonest to expire first."""

FORGET_EVERY_S = 60.0
COULD_NOT_ASK = "the cache could not be asked"
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
        """Has this call anything to do with a cache?"""
        policy, degraded = decision.cache, decision.degraded
        return policy.exact_ttl_s > 0 or policy.semantic is not None or (degraded is not None and degraded.cache)

    async def vectors(self) -> bool:
        """Can this store compare vectors? Found out once."""
        if self._vectors is None:
            try:
                await asyncio.to_thread(self.store.enable_vectors)
                self._vectors = True
            except StoreUnavailable as error:
                self._vectors = False
                log.warning("the semantic cache is off in this process, the exact one works: %s", error)
        return self._vectors

    async def look_up(
        self, tenant_id: str, key: bytes, statement: str = "look_up", *, until: float | None = None
    ) -> Candidate | None:
        values: dict[str, Any] = {"tenant_id": tenant_id, "key": key, "now": self.store.clock()}
        rows = await self.store.read(SQL[statement], values, until=until)
        if not rows:
            return None
        job_id, *answer = rows[0]
        return await self.candidate("exact", recorded(job_id, answer), until=until)

    async def candidate(
        self, kind: str, answer: Recorded, similarity: float | None = None, *, until: float | None = None
    ) -> Candidate | None:
        """The answer with its body; None when it was erased."""
        try:
            body = await self.ledger.answer(answer, until=until)
        except StoreUnavailable:
            raise
        except OvernightError:
            return None
        return None if body is None else Candidate(kind, answer, body, similarity)

    def keeps(self, tenant_id: str) -> None:
        """Something of this tenant was kept: see to it that it goes again."""
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
                    more = await self.store.commit(Forget(tenants, MOST_ENTRIES, MOST_VECTORS))
            except OvernightError as error:
                self._tenants.update(tenants)
                log.warning("what is over could not be dropped from the caches, trying again: %s", error)

    def close(self) -> None:
        self.single_flight.close()
        if self._sweeper is not None:
            self._sweeper.cancel()


class Visit:
    """One call and the caches. Ask `comes_again`, then `look`; tell it what came of the call."""

    def __init__(self, gateway: Gateway, flight: Flight) -> None:
        self._gateway, self._caches, self._flight = gateway, gateway.caches, flight
        policy: CachePolicy = flight.decision.cache
        subject, request, route = flight.subject, flight.request, flight.decision.route
        who = subject.who
        model = flight.decision.targets[0]
        self._caller = caller = Caller(who.tenant_id, who.key_id or "", who.agent_id or "")
        self._key = exact_key(caller, route, model, request)
        self._mark = mark_of(self._key)
        self._policy, self._model = policy, model
        degraded = flight.decision.degraded
        self._serves = policy.exact_ttl_s > 0
        self._keeps = self._serves or (degraded is not None and degraded.cache)
        self._asked = self._consulted = False
        self._head: Head | None = None
        self._semantic: SemanticCache | None = None
        self._realm = b""
        self._numbers: list[float] | None = None
        self._known = False
        self._spent = 0
        self._looked: list[str] = []
        self._trouble = ""
        self._would_be: Candidate | None = None
        self.ticket: Ticket | None = None

    # ── before the call ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def found(self) -> bool:
        """Did the look bring an answer?"""
        return self.ticket is not None and self.ticket.candidate is not None

    async def comes_again(self) -> bool:
        """May recorded answers of older attempts fit this call? They are given before any cache is asked."""
        try:
            with self._flight.asking_store():
                return await self._stands_again()
        except StoreUnavailable as error:
            log.warning("a cache could not be asked: %s", error)
            self._trouble = COULD_NOT_ASK
            return False

    async def _stands_again(self) -> bool:
        subject = self._flight.subject
        who = subject.who
        if not subject.known and subject.external_id is None:
            return False  # its job is still to be made
        by_name = not subject.known
        values = {"mark": self._mark, "tenant_id": who.tenant_id, "job_id": subject.job_id}
        statement = SQL["read_standing_external" if by_name else "read_standing"]
        values |= {"external_id": subject.external_id}
        rows = await self._caches.store.read(statement, values, until=self._flight.store_deadline())
        _, runtime, attempt, asked_at = rows[0] if rows else (None, "foreign", 1, None)
        self._asked = asked_at is not None
        again = max(attempt, who.attempt or 1) > 1
        return again and runtime == "foreign" and subject.fingerprint is not None and bool(rows)

    async def look(self) -> None:
        """Set `ticket`: what the call brings to its admission; None where no cache is for such calls."""
        found = None
        try:
            found = None if self._trouble else await self._look()
        except StoreUnavailable as error:
            log.warning("a cache could not be asked: %s", error)
            self._trouble = COULD_NOT_ASK
        self._consulted = bool(self._looked or self._trouble or self._asked)
        if self._consulted:
            self.ticket = Ticket(self._mark, tuple(self._looked), found, self._trouble, self._spent)

    async def _look(self) -> Candidate | None:
        if self._asked:
            return None
        found = await self._look_exact() if self._serves else None
        return found or await self._look_semantic()

    async def _look_exact(self) -> Candidate | None:
        self._looked.append("exact")
        caches, tenant_id, flight = self._caches, self._caller.tenant_id, self._flight

        async def look_up() -> Candidate | None:
            with flight.asking_store():
                return await caches.look_up(tenant_id, self._key, until=flight.store_deadline())

        found = await look_up()
        if found is not None:
            return found
        try:
            until = self._until(SHARE_OF_A_WAIT)
            joined = await caches.single_flight.join(
                (tenant_id, self._key), flight.subject.job_id, until, flight, look_up
            )
        except TimeoutError:
            self._trouble = "whoever asks the same just now took too long"
            return None
        self._head, found = joined
        return found

    async def _look_semantic(self) -> Candidate | None:
        semantic, question = self._policy.semantic, question_of(self._flight.request)
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
        until = self._flight.store_deadline()
        with self._flight.asking_store():
            found = await self._caches.candidate("semantic", near.answer, near.similarity, until=until)
        if own.mode == "on":
            return found
        self._would_be = found
        return None

    async def _nearest(self, semantic: SemanticCache, question: str) -> Near | None:
        flight, subject, request = self._flight, self._flight.subject, self._flight.request
        embedded = await embed(self._gateway, subject, semantic.model, question, self._until(SHARE_OF_AN_EMBEDDING))
        self._spent = embedded.cost_microusd
        if embedded.numbers is None:
            self._trouble = embedded.why
            return None
        prompts, route = self._gateway.prompts_version or "", flight.decision.route
        model = f"{semantic.model}/{len(embedded.numbers)}"
        self._realm = semantic_realm(self._caller, route, self._model, request, prompts, model)
        self._semantic, self._numbers = semantic, embedded.numbers
        tenant_id, until = self._caller.tenant_id, flight.store_deadline()
        with flight.asking_store():
            near = await nearest(
                self._caches.store, tenant_id, self._realm, embedded.numbers, subject.job_id, until=until
            )
        self._known = near is not None and near.similarity >= ALREADY_KNOWN
        return near

    def _until(self, share: float) -> float:
        now = self._flight.loop.time()
        return now + max(0.0, self._flight.deadline - now) * share

    # ── after the call ──────────────────────────────────────────────────────────────────────────────────────────────

    def given(self, hit: Recorded) -> None:
        """The hit is durable: the answer it names need not be written again this month."""
        digest = parse_reference(hit.facts.output_ref or "")[2]
        self._gateway.known_content.learn_hashes(self._caller.tenant_id, month_of(hit.at), [digest])

    def compare(self, spent: Spent) -> None:
        """Tell what the shadow would have answered, in the transaction that records what was answered."""
        would_be, body = self._would_be, spent.content
        if would_be is None or body is None or spent.event.event != "model_succeeded":
            return
        from ..admission.reservation import event_of

        form = self._flight.request.format
        one, other = read_answer(form, would_be.body), read_answer(form, body)
        if one is None or other is None:
            return
        event = event_of(self._flight, "cache_shadow")
        event.call_id = spent.call_id
        note = NoteShadow(
            self._flight.subject.job_id,
            event,
            would_be,
            compare(one, other),
            spent.cost_microusd or 0,
        )
        self._caches.single_flight.ride(note)

    def answered(self, answer: Recorded, body: bytes) -> None:
        """The call's answer is durable: keep where it stands, if it may be given again."""
        said = self._keepable(body)
        if said is None:
            if self._head is not None:
                self._caches.single_flight.gave_up(self._head, kept=False)
            return
        tenant_id = self._caller.tenant_id
        if self._keeps and (not said.tools or self._policy.exact_tool_turns):
            found = Candidate("exact", answer, body)
            ttl_us = self._policy.exact_ttl_s * US
            self._caches.single_flight.answered(self._head, (tenant_id, self._key), found, ttl_us)
            self._caches.keeps(tenant_id)
        elif self._head is not None:
            self._caches.single_flight.gave_up(self._head, kept=False)
        semantic, numbers = self._semantic, self._numbers
        if semantic is None or numbers is None or self._known or (said.tools and not semantic.tool_turns):
            return
        self._caches.single_flight.ride(AddVector(tenant_id, self._realm, numbers, answer, semantic.ttl_s * US))
        self._caches.keeps(tenant_id)

    def _keepable(self, body: bytes) -> Said | None:
        """The answer, if the first target gave it whole and as it was asked."""
        flight = self._flight
        if flight.target.model != self._model or flight.lowered:
            return None
        return read_answer(flight.request.format, body)

    def told(self, hit: Recorded | None) -> str | None:
        """How the answer's header tells what the caches had to do with it: exact, semantic, shadow or miss; None: nothing."""
        if not self._consulted:
            return None
        if hit is not None:
            return (hit.facts.detail or {})["cache"]["kind"]
        return "shadow" if self._would_be is not None else "miss"

    async def older(self) -> Candidate | None:
        """An answer whose time is over, for a chain that ends in one. None without one, or without the store."""
        try:
            until = self._flight.store_deadline()
            return await self._caches.look_up(self._caller.tenant_id, self._key, "look_up_older", until=until)
        except StoreUnavailable as error:
            log.warning("a cache could not be asked: %s", error)
            return None

    def left(self) -> None:
        """The call is over, whatever came of it: those who wait for it need not."""
        if self._head is not None:
            self._caches.single_flight.gave_up(self._head, kept=True)
