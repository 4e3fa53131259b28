"""Overload: limits are used fully, no call is rejected needlessly, unanswered calls cost nothing."""

import asyncio

import pytest
from overload import Scenario, audit, run, scenarios, upstream_of

from overnight.store import Store
from serving import serving

LEAST_USED = 0.3
"""On a machine that runs other tests too; the benchmark asks for 90 %."""

CHOSEN = {
    "places: eager",
    "places: three times as many",
    "requests a minute",
    "budget",
    "budget: one try in four fails",
}


@pytest.mark.alone
@pytest.mark.timeout(120)
async def test_overload_is_queued_or_rejected(store: Store) -> None:
    """All at once: each limit has a model, tenants and a gateway of its own, and they share the store."""
    chosen = [each for each in scenarios(seconds=5.0, service_s=0.4, crowd=20) if each.name in CHOSEN]
    async with upstream_of(chosen) as upstream:

        async def one(scenario: Scenario) -> list[str]:
            async with serving(store, upstream, scenario.routing(upstream.base_url)) as served:  # type: ignore[arg-type]
                outcome = await audit(await run(scenario, [served.url], upstream), store)
            return [f"{scenario.name}: {fault}" for fault in outcome.faults(LEAST_USED)]

        found = [fault for faults in await asyncio.gather(*map(one, chosen)) for fault in faults]
        assert not found, "\n".join(found)
