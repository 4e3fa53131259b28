"""A worker is killed around a delivery. Another one repeats it with the same id, or leaves it unknown where it must not."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from machine_parts import Open
from overnight.domain import new_id
from overnight.ledger import NewJob
from overnight.store import Store
from receivers import add, ask, deliveries, ended, receiver


@asynccontextmanager
async def worker(store_url: str, folder: Path, crash_at: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    env = {key: value for key, value in os.environ.items() if not key.endswith("_API_KEY")}
    env |= {"OVERNIGHT_HOME": str(folder), "DATABASE_URL": store_url, "OVERNIGHT_CRASH_AT": crash_at}
    env |= {"OVERNIGHT_OUTGOING_ALLOW": "127.0.0.0/8"}
    command = [sys.executable, "-P", "-m", "overnight", "worker"]
    process = await asyncio.create_subprocess_exec(
        *command, env=env, cwd=folder, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize(
    ("point", "repeat_safe", "arrivals", "state"),
    [
        ("notification_claimed", True, 1, "delivered"),
        ("notification_sent", True, 2, "delivered"),
        ("notification_claimed", False, 0, "unknown"),
        ("notification_sent", False, 1, "unknown"),
    ],
)
async def test_killed_worker(
    store_url: str, store: Store, tmp_path: Path, point: str, repeat_safe: bool, arrivals: int, state: str
) -> None:
    if store_url.startswith("postgres") != (point == "notification_sent"):
        pytest.skip("one store for each point: processes start slowly")
    async with receiver() as hook:
        await add(store, tmp_path, name="ops", kind="webhook", url=hook.url, repeat_safe=repeat_safe)
        new = NewJob(new_id("job"), "default", "foreign", "no worker runs it", state="running")
        await ask(store, job_id=store.commit_blocking(Open(new))[0])
        async with worker(store_url, tmp_path, point) as first:
            assert await asyncio.wait_for(first.wait(), 30) == -signal.SIGKILL
        assert [row.state for row in await deliveries(store, tmp_path)] == ["sending"]
        async with worker(store_url, tmp_path):
            [row] = await ended(store, tmp_path)
        assert row.state == state
        assert [each.headers["webhook-id"] for each in hook.arrivals] == [row.delivery_id] * arrivals
