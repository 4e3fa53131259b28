"""Calls whose process died: their reservations are settled as lost by any process that survives."""

from __future__ import annotations

import time
from collections.abc import Callable

from overnight.budgets import BUDGET_SQL
from overnight.ledger import is_dead
from overnight.store import Store

SILENT_AFTER_S = 15.0
"""Three beats of a registration."""

LONGEST_GAP_S = 3.0
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
        if now - self._read_at > LONGEST_GAP_S:
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
