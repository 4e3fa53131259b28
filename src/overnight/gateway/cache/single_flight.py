"""Single flight: of identical calls in flight at the same time one is made, and the others wait for its durable answer.

Within a process the other calls wait for the leading call in memory, and only the leading call uses the store. Between
processes a claim in the table selects the leader. When a leading call fails, one of the waiting calls leads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from functools import partial

import msgspec

from overnight.domain import (
    OvernightError,
    Recorded,
    StoreUnavailable,
    new_id,
)
from overnight.store import Command, Store

from ..call_deadlines import CallDeadlines
from .cache_result import Candidate
from .commands import (
    ClaimOutcome,
    ClaimQuestion,
    KeepAnswer,
    Key,
    ReleaseQuestion,
    RenewLeases,
)
from .rows import SQL

log = logging.getLogger("overnight.gateway")
SIGN_OF_LIFE_S = 1.0
ASK_AGAIN_S = 0.05


class LeadingCall:
    """The call that is made for all identical calls of this process."""

    __slots__ = ("_followers", "done", "found", "job", "kept", "key", "leader", "leads", "lost_store")

    def __init__(self, key: Key, job: str) -> None:
        self.key, self.job, self.leader = key, job, new_id("lead")
        self.leads = self.done = self.lost_store = False
        self.kept = True
        self.found: Candidate | None = None
        self._followers: list[asyncio.Future[None]] = []

    async def follow(self, until: float) -> None:
        """Return when the leading call has ended. Raises TimeoutError at `until`, a time of the loop."""
        if self.done:
            return
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._followers.append(ended)
        async with asyncio.timeout_at(until):
            await ended

    def end(self) -> None:
        self.done = True
        followers, self._followers = self._followers, []
        for each in followers:
            if not each.done():
                each.set_result(None)


class SingleFlight:
    """The leading calls of this process, by question."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._leading_calls: dict[Key, LeadingCall] = {}
        self._beat: asyncio.Task[None] | None = None

    async def join(
        self,
        key: Key,
        job: str,
        until: float,
        deadlines: CallDeadlines,
        look_up: Callable[[], Awaitable[Candidate | None]],
    ) -> tuple[LeadingCall | None, Candidate | None]:
        """Join the calls with the same question.

        Returns (leading call, None) if this call leads, (None, answer) if another call was answered, and (None, None)
        if this call must be made on its own.

        Raises TimeoutError at `until`, a time of the loop, and StoreUnavailable if the store does not answer within the
        `deadlines` of the call.
        """
        while (leading := self._leading_calls.get(key)) is not None:
            if leading.job == job:
                return None, None
            with deadlines.asking_store():
                await leading.follow(until)
                if leading.lost_store:
                    raise StoreUnavailable("the store did not answer in time")
            if leading.found is not None:
                return None, _waited_for(leading.found)
            if not leading.kept:
                return None, None  # its answer cannot be shared, so all waiting calls are made at once
        leading = self._leading_calls[key] = LeadingCall(key, job)
        with self._ending(leading):
            try:
                claimed, waited = await self._claim(leading, until, deadlines)
            except StoreUnavailable:
                leading.lost_store = True  # otherwise each waiting call would wait for the store in turn
                raise
            if claimed is ClaimOutcome.LEADS:
                leading.leads = True
                self._stay_alive()
                return leading, None
            if claimed is ClaimOutcome.ANSWERED:
                leading.found = await look_up()
            leading.kept = leading.found is not None
        return None, _waited_for(leading.found) if waited and leading.found is not None else leading.found

    async def _claim(self, leading: LeadingCall, until: float, deadlines: CallDeadlines) -> tuple[ClaimOutcome, bool]:
        """Claim the question. Returns the outcome, and whether it waited for another process."""
        loop, waited = asyncio.get_running_loop(), False
        while True:
            claim, left = ClaimQuestion(leading.key, leading.leader, leading.job), partial(self._claimed_late, leading)
            with deadlines.asking_store():
                claimed = await self._store.commit(claim, until=deadlines.store_deadline(), on_late_commit=left)
            if claimed is not ClaimOutcome.FOLLOWS:
                return claimed, waited
            waited = True
            while await self._is_led(leading.key, deadlines):
                if loop.time() + ASK_AGAIN_S > until:
                    raise TimeoutError
                await asyncio.sleep(ASK_AGAIN_S)

    def _claimed_late(self, leading: LeadingCall, claimed: ClaimOutcome) -> None:
        """Release a claim that was committed after its call was abandoned."""
        if claimed is ClaimOutcome.LEADS:
            self.write_later(ReleaseQuestion(leading.key, leading.leader))

    async def _is_led(self, key: Key, deadlines: CallDeadlines) -> bool:
        values = {"tenant_id": key[0], "key": key[1]}
        with deadlines.asking_store():
            rows = await self._store.read(SQL["read_claim"], values, until=deadlines.store_deadline())
        now = self._store.clock()
        return bool(rows) and rows[0][0] <= now < rows[0][1]

    @contextmanager
    def _ending(self, leading: LeadingCall) -> Generator[None]:
        try:
            yield
        finally:
            if not leading.leads:
                self._end(leading)

    def _end(self, leading: LeadingCall) -> None:
        if self._leading_calls.get(leading.key) is leading:
            del self._leading_calls[leading.key]
        leading.end()

    # ── the end of a leader ─────────────────────────────────────────────────────────────────────────────────────────

    def answered(self, leading: LeadingCall | None, key: Key, found: Candidate, ttl_us: int) -> None:
        """Share a durable answer with the waiting calls, and with other calls for `ttl_us` microseconds."""
        answer: Recorded = found.answer
        leader = leading.leader if leading is not None else ""
        self.write_later(
            KeepAnswer(
                key=key, leader=leader, job_id=answer.job_id, seq=answer.seq, answered_at=answer.at, ttl_us=ttl_us
            )
        )
        if leading is not None:
            leading.found = found if ttl_us else None
            self._end(leading)

    def abandon(self, leading: LeadingCall, *, kept: bool) -> None:
        """End the leading call without an answer for the others: it failed, or its answer cannot be shared (`kept` is False)."""
        if leading.done:
            return
        leading.kept = kept
        self.write_later(ReleaseQuestion(leading.key, leading.leader))
        self._end(leading)

    def write_later(self, command: Command[None]) -> None:
        try:
            self._store.defer(command).add_done_callback(_heard)
        except StoreUnavailable as error:
            log.warning("a response could not be stored in the cache: %s", error)

    # ── signs of life ───────────────────────────────────────────────────────────────────────────────────────────────

    def _stay_alive(self) -> None:
        if self._beat is None or self._beat.done():
            self._beat = asyncio.get_running_loop().create_task(self._beats())

    async def _beats(self) -> None:
        while True:
            await asyncio.sleep(SIGN_OF_LIFE_S)
            leads = tuple((leading.key, leading.leader) for leading in self._leading_calls.values() if leading.leads)
            if not leads:
                return
            try:
                await self._store.commit(RenewLeases(leads))
            except OvernightError as error:
                log.warning("leases of shared calls could not be renewed: %s", error)

    def close(self) -> None:
        if self._beat is not None:
            self._beat.cancel()


def _waited_for(found: Candidate) -> Candidate:
    return msgspec.structs.replace(found, single_flight=True)


def _heard(future: asyncio.Future[None]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.warning("a response could not be stored in the cache: %s", error)
