"""A process that writes the event log, or one that writes events, dies at each named point: the log has each event once."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from event_logs import all_written, feed_of, lines, owner_and_beat
from machine_parts import make_job
from overnight.domain import Event
from overnight.ledger import Append, SinkConsumer, event_sinks
from overnight.ledger.event_sinks import ClaimSink
from overnight.store import Store
from overnight.telemetry import JsonLinesSink, LogFiles, json_lines

POINTS = ["log_opened", "log_written", "log_flushed", "log_rotated", "sink_delivered", "sink_committed"]
WRITE = """
import sys
from machine_parts import make_job
from overnight.domain import Event
from overnight.ledger import Append
from overnight.store import open_store
with open_store(sys.argv[1]) as store:
    job_id = make_job(store)
    while True:
        store.commit_blocking(Append(job_id, Event("value_recorded")))
"""


class Killed(BaseException):
    """The process is dead: nothing after this point is done."""


async def serve(store: Store, folder: Path, owner: str) -> None:
    consumer = SinkConsumer(store, JsonLinesSink(LogFiles(folder, most_bytes=600, kept=1000)), owner)
    place = await consumer.claim()
    assert place is not None
    await consumer._open(place)
    await consumer._serve(place)


async def recover(store: Store, folder: Path) -> None:
    """A process takes the sink over, writes what is missing, and what comes then."""
    assert await store.commit(ClaimSink("json_lines", "second", await owner_and_beat(store))) is not None
    task = asyncio.create_task(serve(store, folder, "second"))
    await all_written(store)
    make_job(store)
    await all_written(store)
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize(("point", "lost"), [*((point, 0) for point in POINTS), ("log_written", 5)])
async def test_log_has_each_event_once_after_its_writer_died(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, lost: int
) -> None:
    """At the first and at a later pass; with `lost`, the machine died too, and the end of what was not flushed is gone."""
    monkeypatch.setattr(event_sinks, "PAGE", 3)
    job_id = make_job(store)
    for turn, die_at in enumerate((1, 3)):
        passes = Counter[str]()

        def die(name: str, passes: Counter[str] = passes, die_at: int = die_at) -> None:
            passes[name] += 1
            if name == point and passes[name] == die_at:
                raise Killed

        for module in (event_sinks, json_lines):
            monkeypatch.setattr(module, "crash_point", die)
        for _ in range(14):
            await store.commit(Append(job_id, Event("value_recorded")))
        if turn:
            assert await store.commit(ClaimSink("json_lines", "first", await owner_and_beat(store))) is not None
        with pytest.raises(Killed):
            async with asyncio.timeout(10):
                await serve(store, tmp_path, "first")
        if lost:
            os.truncate(tmp_path / "events.jsonl", (tmp_path / "events.jsonl").stat().st_size - lost)
        passes.subtract({point: 1000})
        await recover(store, tmp_path)
        assert [line["feed"] for line in lines(tmp_path)] == await feed_of(store)


@pytest.mark.parametrize(("point", "committed"), [("batch_written", 3), ("batch_committed", 4)])
async def test_log_has_what_a_killed_writer_committed(
    store: Store, store_url: str, tmp_path: Path, point: str, committed: int
) -> None:
    """kill -9 of a process in its fourth transaction, before or after COMMIT."""
    environment = os.environ | {"OVERNIGHT_CRASH_AT": f"{point}:4", "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", WRITE, store_url], env=environment, check=False, timeout=30)
    assert killed.returncode == -signal.SIGKILL
    await store.commit(ClaimSink("json_lines", "first"))
    await recover(store, tmp_path)
    found = lines(tmp_path)
    assert [line["feed"] for line in found] == await feed_of(store)
    assert [line["seq"] for line in found] == [*range(1, committed + 1), 1]
