"""Shared by the cache tests: a served gateway with a cache, and the facts of a call."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from overnight.domain import new_id
from overnight.gateway.cache.rows import SQL
from overnight.store import Statement, Store
from overnight.testing import SpawnedProvider
from serving import Served, routed, serving

EXACT = "cache: {exact: {ttl_s: 3600}}\n"
SEMANTIC = "cache: {semantic: {model: text-embedding-3-small, threshold: 0.8, mode: on}}\n"


class Told(NamedTuple):
    """What was answered, and what the header says the caches had to do with it."""

    text: str
    cache: str | None


class Caching:
    """A served gateway, asked for one job after the other."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.provider, self.store = served.provider, served.store

    async def ask(self, text: str, job: str | None = None, *, tenant: str = "default", **more: Any) -> Told:
        """One call that must succeed, in a new job unless one is named."""
        headers = {"x-job-id": job or new_id("run"), "x-tenant-id": tenant} | more.pop("headers", {})
        answer = await self.served.ask(text, headers=headers, **more)
        assert answer.status_code == 200, answer.text
        message = answer.json()["choices"][0]["message"]
        return Told(message["content"] or message["tool_calls"][0]["function"]["name"], answer.headers.get(CACHE))

    @property
    def paid(self) -> int:
        return self.provider.stats()["paid_calls"]

    async def facts(self, job: str, event: str, tenant: str = "default") -> list[Any]:
        return [each.facts for each in await self.served.events(job, tenant) if each.facts.event == event]

    async def sums(self) -> dict[str, tuple[int, int]]:
        """Kind → (asked, hits)."""
        rows = await self.store.read(SQL["sum_cache_days"], {"tenant_id": "", "first": 0, "last": 99999999})
        return {row[2]: (row[3], row[4]) for row in rows}


CACHE = "x-overnight-cache"


@asynccontextmanager
async def caching(
    store: Store, provider: SpawnedProvider, routing: str = EXACT, **options: Any
) -> AsyncIterator[Caching]:
    async with serving(store, provider, routed(routing), **options) as served:
        yield Caching(served)


class Change:
    """Something done to the database from outside, as an erasure does."""

    def __init__(self, sql: str, **values: Any) -> None:
        self.statement, self.values = Statement("change", {"sqlite": sql, "postgres": sql}), values

    def locks(self) -> list[Any]:
        return []

    def decide(self, unit: Any) -> None:
        unit.query(self.statement, self.values)


async def gathered(*calls: Any) -> list[Any]:
    return await asyncio.gather(*calls)
