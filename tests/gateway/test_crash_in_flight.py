"""A gateway killed with many calls in flight, and a store blocked under load."""

import asyncio
from pathlib import Path

import pytest
from crash.in_flight import kill_beside_a_survivor
from crash.store_stops import stop_under_load

CALLS = 200


@pytest.mark.timeout(120)
async def test_survivor_settles_calls_of_a_killed_gateway(store_url: str, tmp_path: Path) -> None:
    async with asyncio.timeout(30):  # each of the calls has ten minutes
        found = await kill_beside_a_survivor(store_url, tmp_path, CALLS)
    assert (found.status, found.lost, found.odd_ends) == (200, CALLS, 0)


@pytest.mark.parametrize("how", ["locked", "paused"])
async def test_blocked_store_is_no_provider_failure(store_url: str, tmp_path: Path, how: str) -> None:
    if how == "paused" and not store_url.startswith("postgres"):
        pytest.skip("SQLite has no process that could be paused")
    assert await stop_under_load(store_url, tmp_path, how, 2.0, 1000) == []
