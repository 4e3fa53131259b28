"""A gateway killed with many calls in flight, and a store blocked under load."""

import asyncio
from pathlib import Path

import pytest
from crash.in_flight import kill_beside_a_survivor
from crash.store_stops import stop_under_load

CALLS = 200


@pytest.mark.timeout(120)
async def test_a_survivor_has_room_soon_after_a_gateway_was_killed(store_url: str, tmp_path: Path) -> None:
    async with asyncio.timeout(30):  # each of the calls has ten minutes
        found = await kill_beside_a_survivor(store_url, tmp_path, CALLS)
    assert (found.status, found.lost, found.odd_ends) == (200, CALLS, 0)


@pytest.mark.parametrize("how", ["locked", "paused"])
async def test_a_store_that_stands_still_is_not_the_providers_failure(store_url: str, tmp_path: Path, how: str) -> None:
    if how == "paused" and not store_url.startswith("postgres"):
        pytest.skip("SQLite has no process that could be paused")
    assert await stop_under_load(store_url, tmp_path, how, 2.0, 1000) == []
