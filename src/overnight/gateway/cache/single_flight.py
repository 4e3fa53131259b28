"""Identical questions under way at the same time: one is asked, the others wait for its durable record.

In a process one call per question is the *head*: the others wait for it in memory, and only it talks to the store. Between
processes a claim in the table decides who leads. A head whose call fails makes room, and the next one takes its place.
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


class Head:
    """The call that asks a question for all others of this process that ask it now."""

    __slots__ = ("_followers", "done", "found", "job", "kept", "key", "leader", "leads", "lost_store")

    def __init__(self, key: Key, job: str) -> None:
        self.key, self.job, self.leader = key, job, new_id("lead")
        self.leads = self.done = self.lost_store = False
        self.kept = True
        self.found: Candidate | None = None
        self._followers: list[asyncio.Future[None]] = []

    async def follow(self, until: float) -> None:
        """Return when the head has come to its end. Raises TimeoutError at `until`, a time of the loop."""
        if self.done:
            return
        landing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._followers.append(landing)
        async with asyncio.timeout_at(until):
            await landing

    def end(self) -> None:
        self.done = True
        followers, self._followers = self._followers, []
        for each in followers:
            if not each.done():
                each.set_result(None)


class SingleFlight:
    """The questions that calls of this process are asking."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._heads: dict[Key, Head] = {}
        self._beat: asyncio.Task[None] | None = None

    async def join(
        self,
        key: Key,
        job: str,
        until: float,
        deadlines: CallDeadlines,
        look_up: Callable[[], Awaitable[Candidate | None]],
    ) -> tuple[Head | None, Candidate | None]:
        """What became of joining those who ask this question: the caller leads (its head), or it has their answer, or neither:
        then it asks for itself. Raises TimeoutError at `until`, a time of the loop, and StoreUnavailable when the store does not
        answer within the `deadlines` of the call."""
        while (head := self._heads.get(key)) is not None:
            if head.job == job:
                return None, None
            with deadlines.asking_store():
                await head.follow(until)
                if head.lost_store:
                    raise StoreUnavailable("the store did not answer in time")
            if head.found is not None:
                return None, _waited_for(head.found)
            if not head.kept:
                return None, None  # its answer is of no use to others, so all of them ask at once
        head = self._heads[key] = Head(key, job)
        with self._ending(head):
            try:
                claimed, waited = await self._claim(head, until, deadlines)
            except StoreUnavailable:
                head.lost_store = True  # else each of those who wait would wait for the store in turn
                raise
            if claimed is ClaimOutcome.LEADS:
                head.leads = True
                self._stay_alive()
                return head, None
            if claimed is ClaimOutcome.ANSWERED:
                head.found = await look_up()
            head.kept = head.found is not None
        return None, _waited_for(head.found) if waited and head.found is not None else head.found

    async def _claim(self, head: Head, until: float, deadlines: CallDeadlines) -> tuple[ClaimOutcome, bool]:
        """Until this head leads or need not; and whether it waited for another process."""
        loop, waited = asyncio.get_running_loop(), False
        while True:
            claim, left = ClaimQuestion(head.key, head.leader, head.job), partial(self._claimed_late, head)
            with deadlines.asking_store():
                claimed = await self._store.commit(claim, until=deadlines.store_deadline(), left=left)
            if claimed is not ClaimOutcome.FOLLOWS:
                return claimed, waited
            waited = True
            while await self._is_led(head.key, deadlines):
                if loop.time() + ASK_AGAIN_S > until:
                    raise TimeoutError
                await asyncio.sleep(ASK_AGAIN_S)

    def _claimed_late(self, head: Head, claimed: ClaimOutcome) -> None:
        """The claim was committed after its call had given up."""
        if claimed is ClaimOutcome.LEADS:
            self.ride(ReleaseQuestion(head.key, head.leader))

    async def _is_led(self, key: Key, deadlines: CallDeadlines) -> bool:
        values = {"tenant_id": key[0], "key": key[1]}
        with deadlines.asking_store():
            rows = await self._store.read(SQL["read_claim"], values, until=deadlines.store_deadline())
        now = self._store.clock()
        return bool(rows) and rows[0][0] <= now < rows[0][1]

    @contextmanager
    def _ending(self, head: Head) -> Generator[None]:
        try:
            yield
        finally:
            if not head.leads:
                self._end(head)

    def _end(self, head: Head) -> None:
        if self._heads.get(head.key) is head:
            del self._heads[head.key]
        head.end()

    # ── the end of a leader ─────────────────────────────────────────────────────────────────────────────────────────

    def answered(self, head: Head | None, key: Key, found: Candidate, ttl_us: int) -> None:
        """The answer is durable: it may be given to those who wait, and to others for the time of `ttl_us`."""
        answer: Recorded = found.answer
        leader = head.leader if head is not None else ""
        self.ride(KeepAnswer(key, leader, answer.job_id, answer.seq, answer.at, ttl_us))
        if head is not None:
            head.found = found if ttl_us else None
            self._end(head)

    def gave_up(self, head: Head, *, kept: bool) -> None:
        """The leader has no answer for the others: it failed, or (`kept` is False) its answer is not one to be given again."""
        if head.done:
            return
        head.kept = kept
        self.ride(ReleaseQuestion(head.key, head.leader))
        self._end(head)

    def ride(self, command: Command[None]) -> None:
        try:
            self._store.ride(command).add_done_callback(_heard)
        except StoreUnavailable as error:
            log.warning("a response could not be stored in the cache: %s", error)

    # ── signs of life ───────────────────────────────────────────────────────────────────────────────────────────────

    def _stay_alive(self) -> None:
        if self._beat is None or self._beat.done():
            self._beat = asyncio.get_running_loop().create_task(self._beats())

    async def _beats(self) -> None:
        while True:
            await asyncio.sleep(SIGN_OF_LIFE_S)
            leads = tuple((head.key, head.leader) for head in self._heads.values() if head.leads)
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
