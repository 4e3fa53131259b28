"""Whether a store accepts writes, cached so that frequent checks write seldom."""

import asyncio
import time
from typing import TYPE_CHECKING, Any

from overnight.domain import OvernightError

from .statements import Statement
from .unit import Unit

if TYPE_CHECKING:
    from .store import Store

REUSE_S = 2.0
"""How long a result is reused, so that any number of checks causes one write per period."""
WRITE_TIMEOUT_S = 2.0
FAILURE_TTL_S = 5.0
"""How long a failed write of a caller counts. A small probe may fit on a full disk where callers' writes do not."""
_TOUCH = Statement(
    "touch_schema",
    dict.fromkeys(("sqlite", "postgres"), "UPDATE schema_migration SET applied_at = applied_at WHERE version = 1"),
)


class NoOpWrite:
    """A write that changes nothing."""

    def locks(self) -> list[Any]:
        return []

    def decide(self, unit: Unit) -> None:
        unit.append(_TOUCH, None)


class Readiness:
    """A readiness check for each request. It writes at most once in two seconds; concurrent checks share the write."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._looked_at = float("-inf")
        self._found: str | None = None
        self._look: asyncio.Task[None] | None = None

    async def problem(self) -> str | None:
        """Why the store cannot be written, or None."""
        if time.monotonic() - self._looked_at > REUSE_S:
            if self._look is None or self._look.done():
                self._look = asyncio.get_running_loop().create_task(self._check_store())
            await asyncio.shield(self._look)
        return self._found

    async def _check_store(self) -> None:
        self._found = await self._find()
        self._looked_at = time.monotonic()

    async def _find(self) -> str | None:
        if self._store.is_disk_full():
            return "the disk is full"
        try:
            await self._store.commit(NoOpWrite(), until=asyncio.get_running_loop().time() + WRITE_TIMEOUT_S)
        except OvernightError as error:
            return str(error)
        failed_at, failure = self._store.writer.last_failure
        return failure if time.monotonic() - failed_at < FAILURE_TTL_S else None
