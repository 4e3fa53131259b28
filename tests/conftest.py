"""Both stores for every test that asks for `store_url`; PostgreSQL is a throw-away server of the test run's own."""

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from overnight.store import Store, open_store

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
    """A DSN of a running server; databases are made per test."""
    from postgres import running

    with running(max_connections="200") as server:
        yield server.dsn


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    name = f"t_{os.urandom(6).hex()}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    parts = psycopg.conninfo.conninfo_to_dict(postgres_server)
    host, port, user = parts["host"], parts.get("port", 5432), parts.get("user", "postgres")
    yield f"postgresql://{user}@/{name}?host={host}&port={port}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, once for each dialect."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with open_store(store_url) as opened:
        yield opened
