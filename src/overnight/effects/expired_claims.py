"""Claims whose time is over: their holders are silent, so their outcomes are unknown."""

from __future__ import annotations

from typing import Any

import msgspec

from overnight.ledger import JOB
from overnight.store import Store, Unit

from .quarantine import quarantine
from .rows import EFFECT, SQL
from .transitions import mark_expired

MAX_EXPIRED = 500
WHY = "its claim expired without a report"


class ExpireClaim(msgspec.Struct, frozen=True):
    """Make an expired claim unknown, and request its review. Outcome: whether it was, by this command."""

    tenant_id: str
    effect_key: str
    job_id: str

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.job_id), (EFFECT, (self.tenant_id, self.effect_key))]

    def decide(self, unit: Unit) -> bool:
        job, row = unit.get(JOB, self.job_id), unit.get(EFFECT, (self.tenant_id, self.effect_key))
        # Another job may have claimed it since it was listed.
        if job is None or row is None or row.job_id != self.job_id or not mark_expired(unit, job, row):
            return False
        quarantine(unit, job, row, WHY)
        return True


async def expire_claims(store: Store) -> list[str]:
    """Make all expired claims unknown; every gateway and worker calls it. Returns the ids of the effects that it changed.

    Raises StoreUnavailable.
    """
    ended: list[str] = []
    while True:
        values = {"now": store.clock(), "most": MAX_EXPIRED}
        found = await store.read(SQL["list_expired_claims"], values)
        # A page is one batch for the writer; another process may end the same ones.
        done = [(effect_id, store.submit(ExpireClaim(*row))) for effect_id, *row in found]
        changed = [effect_id for effect_id, outcome in done if await outcome]
        ended += changed
        if not changed or len(found) < MAX_EXPIRED:
            return ended
