"""`/readyz` reports a store that cannot be written; `/healthz` reports that the process runs."""

import asyncio
from pathlib import Path

import apsw
import pytest

from machine_parts import make_job, note
from overnight.domain import StoreUnavailable
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from serving import Served, serving
from store_locks import kept_from_answering


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.store.readiness.REUSE_S", 0.05)
    monkeypatch.setattr("overnight.store.readiness.WRITE_TIMEOUT_S", 0.3)
    monkeypatch.setattr("overnight.store.readiness.FAILURE_TTL_S", 0.5)


async def becomes(served: Served, status: int) -> None:
    async with asyncio.timeout(20):
        while (await served.http.get("/readyz")).status_code != status:
            await asyncio.sleep(0.05)


async def test_ready_while_store_takes_writes(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider) as served:
        answers = await asyncio.gather(*(served.http.get("/readyz") for _ in range(30)))
        assert [answer.json() for answer in answers] == [{"status": "ok"}] * 30


@pytest.mark.parametrize("trouble", ["write lock", "file lock", "stopped server", "locked schema_migration"])
async def test_not_ready_while_store_is_locked(
    trouble: str, provider: SpawnedProvider, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = trouble in {"write lock", "file lock"}
    url = str(tmp_path / "ledger.db") if file else request.getfixturevalue("postgres_url")
    with open_store(url) as store:
        async with serving(store, provider) as served:
            await becomes(served, 200)
            with kept_from_answering(trouble, url):
                await becomes(served, 503)
                answer = await served.http.get("/readyz")
                assert answer.json() == {"status": "unavailable", "store": "cannot be written"}
                assert (await served.http.get("/healthz")).json() == {"status": "ok"}
            await becomes(served, 200)


async def test_not_ready_while_disk_is_full(tmp_path: Path, provider: SpawnedProvider) -> None:
    opened: list[apsw.Connection] = []
    apsw.connection_hooks.append(opened.append)  # type: ignore[arg-type]

    def allow(pages: int) -> None:
        for connection in opened:
            if connection.filename:
                connection.execute(f"PRAGMA max_page_count={pages}").fetchall()

    try:
        with open_store(str(tmp_path / "ledger.db")) as store:
            async with serving(store, provider) as served:
                job_id = make_job(store)
                await becomes(served, 200)
                opened[:] = [each for each in opened if _is_open(each)]
                allow(1)
                with pytest.raises(StoreUnavailable, match="full"):
                    await store.commit(note(job_id, "big", content=b'"' + b"x" * 500_000 + b'"'))
                await becomes(served, 503)
                allow(1_000_000)
                await becomes(served, 200)
    finally:
        apsw.connection_hooks.remove(opened.append)  # type: ignore[arg-type]


def _is_open(connection: apsw.Connection) -> bool:
    try:
        return bool(connection.filename)
    except apsw.ConnectionClosedError:
        return False


async def test_not_ready_with_little_room(
    store: Store, provider: SpawnedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    if store.dialect == "postgres":
        pytest.skip("the disk is the server's")
    async with serving(store, provider) as served:
        monkeypatch.setattr("overnight.store.sqlite.MIN_FREE_BYTES", 1 << 80)
        await becomes(served, 503)
