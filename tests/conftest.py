"""Fixtures of all tests. `store_url` parametrizes a test over both stores."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from databases import ReusedDatabase, new_database
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider, spawn_scripted_provider
from serving import Served, serving

# A parallel run gives its processes the size of a terminal, which the commands under test would take for the user's wish.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

# An ordinary run tries the same examples each time, so that it fails only where something was changed. OVERNIGHT_EXPLORE=1
# looks for new ones, and for many more; what it finds becomes a plain example in the test.
settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None
)
settings.register_profile(
    "explore", settings.get_profile("default"), derandomize=False, max_examples=2000, print_blob=True
)
settings.load_profile("explore" if os.environ.get("OVERNIGHT_EXPLORE") else "default")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A DSN of a running server; databases are made per test. What is written survives its processes, not the machine."""
    from postgres import running

    with running(max_connections="200", fsync="off", full_page_writes="off") as server:
        yield server.dsn


@pytest.fixture(scope="session")
def reused_database(postgres_server: str) -> Iterator[ReusedDatabase]:
    database = ReusedDatabase(postgres_server)
    yield database
    database.close()


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of a database that has no schema yet."""
    with new_database(postgres_server) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, once for each dialect. PostgreSQL has its schema already."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    return request.getfixturevalue("reused_database").fresh()


@pytest.fixture(params=["sqlite", "postgres"])
def bare_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store that has no schema yet, once for each dialect."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with open_store(store_url) as opened:
        yield opened


@pytest.fixture(scope="session")
def spawned_provider() -> Iterator[SpawnedProvider]:
    """The scripted provider, with the rules and counts that earlier tests left."""
    with spawn_scripted_provider() as spawned:
        yield spawned


@pytest.fixture
def provider(spawned_provider: SpawnedProvider) -> SpawnedProvider:
    """The scripted provider without rules, its counts at zero. A module that needs rules overrides it."""
    spawned_provider.set_rules("rules: []")
    spawned_provider.reset()
    return spawned_provider


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    """A gateway with the usual routing, in front of the scripted provider."""
    async with serving(store, provider) as running:
        yield running
