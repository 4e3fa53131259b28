"""The calls of external jobs in flight in this process: a new attempt waits for the same call of an older attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from overnight.budgets import BUDGET_SQL
from overnight.store import Store

from ..call_deadlines import MIN_STORE_S, store_answers_by
from ..identity import Subject

Key = tuple[str, str | None]
POLL_S = (0.05, 0.5)
"""How often the call of another process is polled, in seconds: at first, and later."""


class InFlightCalls:
    """Calls by (job, fingerprint), and one lock per job that is being replayed."""

    def __init__(self) -> None:
        self._calls: dict[Key, list[Subject]] = {}
        self._waiters: dict[Key, list[asyncio.Future[None]]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def enter(self, subject: Subject) -> None:
        if subject.fingerprint is not None:
            self._calls.setdefault((subject.job_id, subject.fingerprint), []).append(subject)

    def update(self, subject: Subject, learned: Subject) -> None:
        """Replace the subject of a call in flight by the one that an admission returned."""
        calls = self._calls.get((subject.job_id, subject.fingerprint or ""), [])
        calls[:] = [learned if call is subject else call for call in calls]

    def leave(self, subject: Subject) -> None:
        """End a call, whatever its result. A call that was never entered is ignored."""
        key = (subject.job_id, subject.fingerprint)
        calls = self._calls.get(key)
        if calls is None or not any(call is subject for call in calls):
            return
        calls[:] = [call for call in calls if call is not subject]
        if not calls:
            del self._calls[key]
        for waiter in self._waiters.pop(key, ()):
            if not waiter.done():
                waiter.set_result(None)

    @asynccontextmanager
    async def alone(self, job_id: str, until: float) -> AsyncGenerator[None]:
        """Hold the job's lock while the block waits for the store. The lock exists while a call holds or awaits it.

        Raises StoreUnavailable at `until`, a time of the loop.
        """
        lock = self._locks.get(job_id)
        if lock is None:
            lock = self._locks[job_id] = asyncio.Lock()
        async with store_answers_by(until):
            await lock.acquire()
        try:
            yield
        finally:
            lock.release()

    async def older(self, subject: Subject, deadline: float) -> None:
        """Wait while this process has the same request of an older attempt in flight, until the deadline (a time of the loop)."""
        key = (subject.job_id, subject.fingerprint)
        while any(call.attempt < subject.attempt for call in self._calls.get(key, ())):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.setdefault(key, []).append(waiter)
            try:
                async with asyncio.timeout_at(deadline):
                    await waiter
            except TimeoutError:
                return

    async def older_ends(self, store: Store, subject: Subject, until: float) -> bool:
        """Wait while the same request of an older attempt is in flight in any process. Returns False if it is still in flight
        at `until`, a time of the loop."""
        loop, pause_s = asyncio.get_running_loop(), POLL_S[0]
        values = {"job_id": subject.job_id, "fingerprint": subject.fingerprint, "attempt": subject.attempt}
        while loop.time() < until:
            await self.older(subject, min(until, loop.time() + pause_s))
            by = max(until, loop.time() + MIN_STORE_S)
            if not (await store.read(BUDGET_SQL["count_in_flight"], values, until=by))[0][0]:
                return True
            pause_s = min(pause_s * 1.5, POLL_S[1])
        return False
