"""Calls whose process died: their reservations are settled as lost by any process that survives."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from overnight.budgets import BUDGET_SQL
from overnight.ledger import JobRow, is_dead
from overnight.store import Store

from .admission.commands import Lose
from .admission.due_settlements import Settlements

log = logging.getLogger("overnight.gateway")
UNSERVED_EVERY = 5
"""Sweeps between two looks for reservations of this process that no call of it holds."""

SILENT_AFTER_S = 15.0
"""Three beats of a registration."""

MAX_GAP_S = 3.0
"""Between two reads. After a longer one this process was asleep or without its store, so it saw nobody being silent."""


class OrphanWatch:
    """Find owners of reservations that are dead.

    An owner is dead when its process is gone from this host, or when its row in `worker` has not changed (or is missing)
    during 15 seconds of this watch's own uninterrupted reads. `monotonic` gives seconds.
    """

    def __init__(self, store: Store, owner: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store, self._owner, self._monotonic = store, owner, monotonic
        self._watched: dict[str, tuple[int | None, float]] = {}
        self._read_at = 0.0

    async def dead_owners(self) -> list[str]:
        """Read once; call it about every second. Raises StoreUnavailable."""
        rows = await self._store.read(BUDGET_SQL["list_reservation_owners"], {"owner": self._owner})
        now = self._monotonic()
        if now - self._read_at > MAX_GAP_S:
            self._watched.clear()
        self._read_at = now
        before, self._watched = self._watched, {}
        dead: list[str] = []
        for owner, host, pid, seen_at in rows:
            last, since = before.get(owner, (seen_at, now))
            if last != seen_at:
                since = now
            self._watched[owner] = (seen_at, since)
            if now - since >= SILENT_AFTER_S or (host is not None and is_dead(host, pid)):
                dead.append(owner)
        return dead


class OrphanedCalls:
    """Settle calls as lost. `freed` is called after some were: others may have room now."""

    def __init__(self, store: Store, owner: str, settlements: Settlements, freed: Callable[[], None]) -> None:
        self._store, self._owner, self._settlements, self._freed = store, owner, settlements, freed
        self._watch = OrphanWatch(store, owner)
        self._unserved: set[str] = set()
        self._sweeps = 0

    async def sweep(self) -> None:
        """Write what is due, and settle the calls of dead processes; call it about every second. Raises StoreUnavailable."""
        await self._settlements.write_due()
        for owner in await self._watch.dead_owners():
            count = await self.settle_owner(owner)
            log.warning("%s has died; %d of its calls in flight were settled as lost", owner, count)
        if self._sweeps % UNSERVED_EVERY == 0:
            await self._lose_unserved()
        self._sweeps += 1

    async def settle_lost(self, job: JobRow) -> int:
        """Settle the calls that older leases of this job left in flight as lost; how many there were."""
        values = {"job_id": job.job_id, "lease_epoch": job.lease_epoch}
        rows = await self._store.read(BUDGET_SQL["list_reservations"], values)
        return await self._lose([tuple(row) for row in rows], "its worker was lost while the call was in flight")

    async def settle_owner(self, owner: str) -> int:
        """Settle what a process that is known to be dead left in flight; how many calls there were."""
        count = 0
        while rows := await self._store.read(BUDGET_SQL["list_owned_reservations"], {"owner": owner}):
            count += await self._lose([tuple(row) for row in rows], "its gateway died while the call was in flight")
        return count

    async def _lose(self, calls: list[tuple[str, ...]], why: str) -> int:
        lost = await asyncio.gather(*(self._store.commit(Lose(call_id, job_id, why)) for call_id, job_id in calls))
        if calls:
            self._freed()
        return sum(lost)

    async def _lose_unserved(self) -> None:
        """Settle reservations of this process that no call of it holds: seen twice, so that none is just being settled."""
        rows = await self._store.read(BUDGET_SQL["list_owned_reservations"], {"owner": self._owner})
        unserved = {row[0]: row for row in rows if not self._settlements.holds(row[0])}
        seen_twice = self._unserved & unserved.keys()
        await self._lose([tuple(unserved[each]) for each in seen_twice], "no call of its process held it")
        self._unserved = set(unserved) - seen_twice
