"""The event log as JSON Lines: each event once, in order, rotated, by tenant, without content."""

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from machine_parts import Open, make_job, newjob
from overnight.domain import ErrorFacts, Event, StoreUnavailable
from overnight.ledger import LEDGER_SQL, START, Append, Feed, FeedPosition, SinkConsumer, sink_lags
from overnight.ledger.event_sinks import ClaimSink
from overnight.store import Store
from overnight.telemetry import JsonLinesSink, LogFiles

SERVE = """
import asyncio, sys
from pathlib import Path
from overnight.ledger import SinkConsumer
from overnight.store import open_store
from overnight.telemetry import JsonLinesSink, LogFiles
async def main():
    sink = JsonLinesSink(LogFiles(Path(sys.argv[2]), most_bytes=4000, kept=1000))
    with open_store(sys.argv[1]) as store:
        consumer = SinkConsumer(store, sink, sys.argv[3])
        while (place := await consumer.claim()) is None:
            await asyncio.sleep(0.02)
        print("serving", flush=True)
        await consumer._serve(place)
asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def serving(store: Store, sink: JsonLinesSink) -> AsyncIterator[None]:
    task = asyncio.create_task(SinkConsumer(store, sink, "here").run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        sink.close()


def lines(folder: Path) -> list[dict[str, Any]]:
    files = [*sorted(folder.glob("events-*.jsonl")), folder / "events.jsonl"]
    return [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]


async def owner_and_beat(store: Store) -> tuple[str | None, int]:
    rows = await store.read(LEDGER_SQL["read_cursor_owner"], {"sink": "json_lines"})
    return rows[0][0], rows[0][1]


async def all_written(store: Store) -> None:
    """Wait until the sink has had everything."""
    async with asyncio.timeout(10):
        while True:
            rows = await store.read(LEDGER_SQL["list_cursors"], {})
            if [FeedPosition(*row[1:]) for row in rows] == [await Feed(store).end()]:
                return
            await asyncio.sleep(0.02)


async def feed_of(store: Store) -> list[list[Any]]:
    page = await Feed(store).read(START, 10_000)
    return [list(each.place) for each in page.events]


async def test_each_event_is_one_line_without_content(store: Store, tmp_path: Path) -> None:
    async with serving(store, JsonLinesSink(LogFiles(tmp_path / "log"))):
        job_id = (await store.commit(Open(newjob())))[0]
        error = ErrorFacts("ValueError", "secret words")
        await store.commit(Append(job_id, Event("step_failed", error=error), content=b'"secret words"'))
        await all_written(store)
    first, second = lines(tmp_path / "log")
    assert (first["event"], first["seq"], first["job_id"]) == ("created", 1, job_id)
    assert second["error"] == {"class": "ValueError"}
    assert "secret words" not in (tmp_path / "log" / "events.jsonl").read_text()
    assert (tmp_path / "log" / "events.jsonl").stat().st_mode & 0o077 == 0
    events = (await Feed(store).read()).events
    assert events[1].event.facts.error == error


async def test_each_tenant_has_its_folder(store: Store, tmp_path: Path) -> None:
    async with serving(store, JsonLinesSink(LogFiles(tmp_path, by_tenant=True))):
        for tenant in ("acme", "a/../b", "acme"):
            await store.commit(Open(newjob(tenant)))
        await all_written(store)
    assert {each.name for each in tmp_path.iterdir() if each.is_dir()} == {"acme", "a%2F..%2Fb"}
    assert [line["tenant_id"] for line in lines(tmp_path / "acme")] == ["acme", "acme"]


async def test_files_are_rotated_and_old_ones_removed(store: Store, tmp_path: Path) -> None:
    sink = JsonLinesSink(LogFiles(tmp_path / "log", most_bytes=500, kept=2))
    async with serving(store, sink):
        for _ in range(12):
            await store.commit(Open(newjob()))
            await all_written(store)
    assert len(list((tmp_path / "log").glob("events-*.jsonl"))) == 2
    found = [line["feed"] for line in lines(tmp_path / "log")]
    assert found == (await feed_of(store))[-len(found) :]


async def test_killed_sinks_lose_and_repeat_nothing(store_url: str, store: Store, tmp_path: Path) -> None:
    """A process that writes the log is killed at random moments while events are written; then the log is complete."""
    chance, folder, jobs = random.Random(7), tmp_path / "log", [make_job(store) for _ in range(3)]
    for turn in range(5):
        command = [sys.executable, "-c", SERVE, store_url, str(folder), f"sink-{turn}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "serving\n"
            for _ in range(20):
                await store.commit(Append(chance.choice(jobs), Event("value_recorded")))
            await asyncio.sleep(chance.random() / 5)
            process.kill()
        # The process that died is not in `worker`, so only its silence tells; here it is taken over at once.
        following = f"sink-{turn + 1}" if turn < 4 else "here"
        assert await store.commit(ClaimSink("json_lines", following, await owner_and_beat(store))) is not None
        with contextlib.suppress(FileNotFoundError), (folder / "events.jsonl").open("ab") as file:
            file.write(b'{"feed": [12, "job_cut')  # a line that was cut
    async with serving(store, JsonLinesSink(LogFiles(folder, most_bytes=4000, kept=1000))):
        await store.commit(Append(jobs[0], Event("value_recorded")))
        await all_written(store)
    assert [line["feed"] for line in lines(folder)] == await feed_of(store)


async def test_full_disk_stops_only_the_sink(store: Store, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    sink = JsonLinesSink(LogFiles(tmp_path / "log"))
    job_id = (await store.commit(Open(newjob())))[0]
    with pytest.raises(StoreUnavailable):
        await sink.deliver((await Feed(store).read()).events, START)
    async with serving(store, sink):
        await store.commit(Append(job_id, Event("value_recorded")))
        (tmp_path / "log").unlink()
        await all_written(store)
    assert [line["seq"] for line in lines(tmp_path / "log")] == [1, 2]


async def test_silent_owner_is_replaced_and_its_late_page_rejected(store: Store, tmp_path: Path) -> None:
    now = time.monotonic()
    old = SinkConsumer(store, JsonLinesSink(LogFiles(tmp_path)), "old", lambda: now)
    new = SinkConsumer(store, JsonLinesSink(LogFiles(tmp_path)), "new", lambda: now)
    assert await old.claim() == START
    taken: FeedPosition | None = None
    for _ in range(5):
        assert taken is None
        now += 4
        taken = await new.claim()
    assert taken == START
    assert await old.claim() is None


async def test_the_lag_is_the_age_of_the_oldest_missing_event(store: Store, tmp_path: Path) -> None:
    consumer = SinkConsumer(store, JsonLinesSink(LogFiles(tmp_path)), "here")
    assert await consumer.claim() == START
    assert await sink_lags(store) == {"json_lines": 0}
    await store.commit(Open(newjob()))
    clock = store.clock
    store.clock = lambda: clock() + 5_000_000
    [(name, lag)] = (await sink_lags(store)).items()
    assert (name, 5_000 <= lag < 60_000) == ("json_lines", True)
