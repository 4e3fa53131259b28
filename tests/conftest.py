"""Fixtures of all tests. `store_url` parametrizes a test over both stores."""

import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path

import httpcore2
import pytest
from hypothesis import HealthCheck, settings

from databases import ReusedDatabase, new_database
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider, spawn_scripted_provider
from serving import Served, serving

# Compiled files are kept: otherwise each process compiles the program and the tests again, which takes seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Tests kill processes, not the machine: a file system in memory keeps all that they must find again, and flushes cost nothing.
# TMPDIR names another folder.
MEMORY, NEEDED_BYTES = "/dev/shm", 4 << 30
if (
    "TMPDIR" not in os.environ
    and os.access(MEMORY, os.W_OK | os.X_OK)
    and shutil.disk_usage(MEMORY).free >= NEEDED_BYTES
):
    os.environ["TMPDIR"] = tempfile.tempdir = MEMORY

# Each client would read the system's certificate authorities again, which takes longer than most tests.
httpcore2.default_ssl_context = cache(httpcore2.default_ssl_context)

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

    quick = {
        "fsync": "off",
        "full_page_writes": "off",
        "autovacuum": "off",
        "wal_level": "minimal",
        "max_wal_senders": "0",
    }
    with running(max_connections="200", shared_buffers="64MB", **quick) as server:
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


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database with the schema and nothing else."""
    file = tmp_path_factory.mktemp("empty") / "ledger.db"
    with open_store(str(file)):
        pass
    return file


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store that has its schema, once for each dialect."""
    if request.param == "sqlite":
        return str(shutil.copy(request.getfixturevalue("empty_ledger"), tmp_path / "ledger.db"))
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
