"""Whether a store takes writes just now, asked often and looked at seldom."""

import asyncio
import time
from typing import TYPE_CHECKING, Any

from overnight.domain import OvernightError

from .statements import Statement
from .unit import Unit

if TYPE_CHECKING:
    from .store import Store

GOOD_FOR_S = 2.0
"""How long a finding holds: more often the store is not written to, whoever asks."""
WITHIN_S = 2.0
FAILED_FOR_S = 5.0
"""A small write may find room where those of callers do not, so their failures count for this long."""
_TOUCH = Statement(
    "touch_schema",
    dict.fromkeys(("sqlite", "postgres"), "UPDATE schema_migration SET applied_at = applied_at WHERE version = 1"),
)


class Touch:
    """A write that changes nothing."""

    def locks(self) -> list[Any]:
        return []

    def decide(self, unit: Unit) -> None:
        unit.append(_TOUCH, None)


class Readiness:
    """Ask it on every request: one write in two seconds at most, shared by all who ask meanwhile."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._looked_at = float("-inf")
        self._found: str | None = None
        self._look: asyncio.Task[None] | None = None

    async def trouble(self) -> str | None:
        """Why nothing can be written, or None."""
        if time.monotonic() - self._looked_at > GOOD_FOR_S:
            if self._look is None or self._look.done():
                self._look = asyncio.get_running_loop().create_task(self._look_at_store())
            await asyncio.shield(self._look)
        return self._found

    async def _look_at_store(self) -> None:
        self._found = await self._find()
        self._looked_at = time.monotonic()

    async def _find(self) -> str | None:
        if self._store.lacks_room():
            return "the disk is full"
        try:
            await self._store.commit(Touch(), until=asyncio.get_running_loop().time() + WITHIN_S)
        except OvernightError as error:
            return str(error)
        failed_at, failure = self._store.writer.last_failure
        return failure if time.monotonic() - failed_at < FAILED_FOR_S else None
