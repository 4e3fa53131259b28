"""A provider with two models whose circuits open after three failures."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, serving

LONG = "cool_down_ms: 60000, max_cool_down_ms: 60000"


def routing(cool_down: str = LONG, route: str = "", more: str = "") -> str:
    """Models a and b of a house provider; a falls back to b. Three failures open a circuit."""
    return f"""
default_model: a
routes: {{r: {{model: a, fallbacks: [b]{route}}}, alone: {{model: a, fallbacks: []{route}}}}}
retries: {{max_attempts: 1, backoff_ms: 1}}
deadlines: {{default_ms: 5000}}
breakers: {{failures: 3, window_ms: 60000, {cool_down}}}
providers: {{house: {{base_url: 'HERE', models: [a, b]}}}}
prices: {{a: {{input_usd_per_mtok: 1, output_usd_per_mtok: 1}}, b: {{input_usd_per_mtok: 1, output_usd_per_mtok: 1}}}}
{more}"""


@asynccontextmanager
async def house(store: Store, provider: SpawnedProvider, text: str) -> AsyncIterator[Served]:
    async with serving(store, provider, text.replace("HERE", provider.base_url)) as served:
        yield served


def broken(provider: SpawnedProvider, models: str = "a", fault: str = "status: 500", more: str = "") -> None:
    provider.set_rules(f"rules: [{{match: {{model: '{models}'{more}}}, fault: {{{fault}}}}}]")


async def fail_three(served: Served, route: str = "r", job: str = "before") -> None:
    for _ in range(3):
        await served.ask(model=route, headers={"x-job-id": job})
