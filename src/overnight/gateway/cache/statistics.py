"""Daily sums of cache hits and misses, written with their events, so that no report scans the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from overnight.domain import day_of
from overnight.store import Store, Unit, records_of

from .rows import SQL

_DAY = SQL["add_cache_day"]
SHARED = "single_flight"


class Tally(msgspec.Struct, frozen=True):
    """The counts to add: lookups, hits, and the comparison of answers in shadow mode. Money in micro-dollars: `saved` is the
    original cost of the hits, `spent` the cost of embeddings."""

    asked: int = 0
    hits: int = 0
    same: int = 0
    agreed: int = 0
    overlap_permille: int = 0
    saved_microusd: int = 0
    spent_microusd: int = 0


def count(unit: Unit, tenant_id: str, agent_id: str | None, kind: str, tally: Tally) -> None:
    key = (tenant_id, day_of(unit.now), agent_id or "", kind, unit.stripe)
    unit.add(_DAY, key, msgspec.structs.astuple(tally))


class CacheUsage(msgspec.Struct, frozen=True):
    """The use of one kind of cache by one agent of a tenant. In `shadow` mode, hits are counted and not returned."""

    tenant_id: str
    agent_id: str
    kind: str
    asked: int
    hits: int
    same: int
    agreed: int
    overlap_permille: int
    saved_microusd: int
    spent_microusd: int

    @property
    def hit_rate(self) -> float | None:
        return round(self.hits / self.asked, 4) if self.asked else None

    @property
    def agreement_rate(self) -> float | None:
        """The share of answers compared in shadow that agree with the model's."""
        return round(self.agreed / self.hits, 4) if self.kind == "shadow" and self.hits else None

    @property
    def mean_overlap(self) -> float | None:
        return round(self.overlap_permille / self.hits / 1000, 3) if self.kind == "shadow" and self.hits else None


async def cache_usage(store: Store, tenant_id: str, first: int, last: int) -> Sequence[CacheUsage]:
    """The sums from day to day (YYYYMMDD, both included), by tenant, agent and kind; an empty tenant reads all."""
    values: dict[str, Any] = {"tenant_id": tenant_id, "first": first, "last": last}
    found = records_of(CacheUsage, await store.read(SQL["sum_cache_days"], values))
    exact = {(each.tenant_id, each.agent_id): each.asked for each in found if each.kind == "exact"}
    # A call that followed another one had consulted the exact cache first.
    return [
        msgspec.structs.replace(each, asked=exact.get((each.tenant_id, each.agent_id), 0))
        if each.kind == SHARED
        else each
        for each in found
    ]
