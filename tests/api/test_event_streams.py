"""Live event streams: they end with the job, the client or the key, and are cheap while idle."""

import asyncio
import time
from contextlib import suppress

import pytest

from api_keys import key_for
from overnight.api import event_streams
from overnight.keys import Keys
from overnight.ledger import LEDGER_SQL
from serving import Served
from sqlite_statements import executed_statements

ALL = ("call", "read", "operate")
LIVE = {"accept": "text/event-stream"}


async def opened(served: Served, job: str, headers: dict[str, str]) -> tuple[asyncio.Task[str], asyncio.Event]:
    """A task that reads the stream to its end, and when its first bytes have come."""
    begun = asyncio.Event()

    async def read() -> str:
        said = ""
        async with served.http.stream("GET", f"/api/v1/jobs/{job}/events", headers={**LIVE, **headers}) as answer:
            assert answer.status_code == 200, answer.status_code
            async for piece in answer.aiter_text():
                said += piece
                begun.set()
        return said

    return asyncio.create_task(read()), begun


async def test_stream_ends_when_the_job_ends(served: Served) -> None:
    assert (await served.ask(headers={"x-job-id": "n1"})).status_code == 200
    reading, begun = await opened(served, "n1", {})
    await begun.wait()
    assert not reading.done()
    await served.http.post("/api/v1/jobs/n1/complete", json={})
    async with asyncio.timeout(20):
        said = await reading
    assert "event: model_succeeded" in said
    assert "event: completed" in said
    again = await served.http.get("/api/v1/jobs/n1/events", headers=LIVE)
    assert again.text == said


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_stream_ends_when_the_key_is_revoked(served: Served, how: str) -> None:
    reads = await key_for(served, name="reader", scopes=ALL, expires_in_ms=3_600_000)
    assert (await served.ask(headers={"x-job-id": "n1", **reads})).status_code == 200
    reading, begun = await opened(served, "n1", reads)
    await begun.wait()
    keys, clock = Keys(served.store), served.store.clock
    if how == "revoked":  # as another process does it
        await keys.revoke("reader", "acme", "ann")
    else:
        served.store.clock = lambda: clock() + 7_200_000_000
    async with asyncio.timeout(20):
        said = await reading
    served.store.clock = clock
    assert "unknown, expired or revoked" in said.rpartition(": stream closed")[2]
    assert (await served.ask(headers={"x-job-id": "n1", **reads})).status_code == (401 if how == "revoked" else 200)


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_stream_ends_and_stops_reading_on_disconnect(served: Served) -> None:
    assert (await served.ask(headers={"x-job-id": "n1"})).status_code == 200
    host, port = served.url.removeprefix("http://").split(":")
    for half in (True, False):
        clients: list[asyncio.StreamWriter] = []
        for _ in range(20):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /api/v1/jobs/n1/events HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/event-stream\r\n\r\n")
            assert b"200" in await reader.readuntil(b"id: 1\n")
            clients.append(writer)
        for writer in clients:
            if half:
                writer.write_eof()
            else:
                writer.transport.abort()
        async with asyncio.timeout(20):
            while any("/event_streams.py" in repr(task) for task in asyncio.all_tasks()):
                await asyncio.sleep(0.02)
    with executed_statements() as executed:
        await asyncio.sleep(0.5)
    assert executed.count(*(LEDGER_SQL[name] for name in ("list_job_heads", "read_events", "read_job"))) == 0


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_idle_streams_share_one_read(served: Served) -> None:
    assert (await served.ask(headers={"x-job-id": "n1"})).status_code == 200
    streams = [await opened(served, "n1", {}) for _ in range(20)]
    for _, begun in streams:
        await begun.wait()
    await asyncio.sleep(0.3)
    begun_at = time.monotonic()
    with executed_statements() as executed:
        await asyncio.sleep(1)
    passed = time.monotonic() - begun_at
    assert 0 < executed.count(LEDGER_SQL["list_job_heads"]) <= passed / event_streams.TICK_S + 1
    assert executed.count(LEDGER_SQL["read_events"]) == 0
    for reading, _ in streams:
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading


async def test_streams_are_limited_per_key(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_streams, "MAX_PER_KEY", 2)
    mine, others = [await key_for(served, scopes=ALL) for _ in range(2)]
    assert (await served.ask(headers={"x-job-id": "n1", **mine})).status_code == 200
    (first, begun), (second, begun_too) = [await opened(served, "n1", mine) for _ in range(2)]
    await asyncio.gather(begun.wait(), begun_too.wait())
    refused = await served.http.get("/api/v1/jobs/n1/events", headers={**LIVE, **mine})
    assert (refused.status_code, refused.json()["title"], refused.headers["retry-after"]) == (
        429,
        "Too many requests",
        "1",
    )
    third, begun = await opened(served, "n1", others)
    await begun.wait()
    first.cancel()
    async with asyncio.timeout(20):
        while True:
            async with served.http.stream("GET", "/api/v1/jobs/n1/events", headers={**LIVE, **mine}) as again:
                if again.status_code == 200:
                    break
            await asyncio.sleep(0.02)
    for reading in (second, third):
        reading.cancel()
