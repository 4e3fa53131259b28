"""The event log as JSON Lines: each event once, in order, rotated, by tenant, without content."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from event_logs import all_written, feed_of, lines, owner_and_beat
from machine_parts import Open, make_job, newjob
from overnight.domain import ErrorFacts, Event, Fenced, StoreUnavailable
from overnight.ledger import START, Append, Feed, FeedEvent, FeedPosition, SinkConsumer, sink_lags
from overnight.ledger.event_sinks import ClaimSink
from overnight.store import Store
from overnight.telemetry import JsonLinesSink, LogFiles, json_lines, log_mark

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
    """A process that writes the log is killed while events are written; then the log is complete."""
    folder, jobs = tmp_path / "log", [make_job(store) for _ in range(3)]
    points = ("log_written:2", "log_rotated:1", "sink_delivered:3")
    for turn, point in enumerate(points):
        command = [sys.executable, "-c", SERVE, store_url, str(folder), f"sink-{turn}"]
        environment = os.environ | {"OVERNIGHT_CRASH_AT": point}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "serving\n"
            async with asyncio.timeout(20):
                while process.poll() is None:
                    await store.commit(Append(jobs[turn], Event("value_recorded")))
                    await asyncio.sleep(0.005)
        assert process.returncode == -signal.SIGKILL
        # The process that died is not in `worker`, so only its silence tells; here it is taken over at once.
        following = f"sink-{turn + 1}" if turn + 1 < len(points) else "here"
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


async def test_a_sink_without_owner_has_no_lag(store: Store, tmp_path: Path) -> None:
    async with serving(store, JsonLinesSink(LogFiles(tmp_path))):
        await store.commit(Open(newjob()))
        await all_written(store)
        assert await sink_lags(store) == {"json_lines": 0}
    await store.commit(Open(newjob()))
    assert await sink_lags(store) == {}


async def page_of(store: Store, count: int) -> list[FeedEvent]:
    for _ in range(count):
        await store.commit(Open(newjob()))
    return list((await Feed(store).read(START, 10_000)).events)


def moved(events: list[FeedEvent], job_id: str | None = None, later_us: int = 0) -> list[FeedEvent]:
    """The events as ones of another history: at the same positions, of another job or time."""
    return [
        FeedEvent(
            each.place._replace(job_id=job_id or each.place.job_id),
            msgspec.structs.replace(each.event, job_id=job_id or each.event.job_id, at=each.event.at + later_us),
        )
        for each in events
    ]


async def test_events_of_a_restored_database_are_written(store: Store, tmp_path: Path) -> None:
    events = await page_of(store, 6)
    for history in (events, moved(events[:3], "job_other"), moved(events[:3], later_us=5_000)):
        sink = JsonLinesSink(LogFiles(tmp_path))
        for _ in range(2):  # delivered twice, written once
            await sink.opened()
            await sink.deliver(history, START)
        sink.close()
    found = [(*line["feed"], line["ts"]) for line in lines(tmp_path)]
    assert len(found) == len(set(found)) == 12


async def test_replaced_database_starts_its_log_anew(store: Store, tmp_path: Path) -> None:
    """A file of another database is in the folder, whose places are higher than all of this one."""
    other = {"feed": [1 << 50, "job_z", 1], "ts": "2026-01-31T02:10:09.412Z", "event": "created"}
    (tmp_path / "events.jsonl").write_text(json.dumps(other) + "\nno event\n[1]\n")
    async with serving(store, JsonLinesSink(LogFiles(tmp_path))):
        await store.commit(Open(newjob()))
        await all_written(store)
    written = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["feed"] for line in written[3:]] == await feed_of(store)


async def test_lines_before_several_rotations_are_not_repeated(store: Store, tmp_path: Path) -> None:
    events = await page_of(store, 9)
    for count in (2, 4, 6, 9):
        sink = JsonLinesSink(LogFiles(tmp_path, most_bytes=100))
        await sink.deliver(events[:count], START)
        sink.close()
    assert len(list(tmp_path.glob("events-*.jsonl"))) == 3
    assert [line["feed"] for line in lines(tmp_path)] == [list(each.place) for each in events]


async def test_only_the_last_lines_are_read_back(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "READ_BACK", 3)
    events = await page_of(store, 5)
    for _ in range(2):
        sink = JsonLinesSink(LogFiles(tmp_path))
        await sink.deliver(events, START)
        sink.close()
    assert [line["feed"] for line in lines(tmp_path)][5:] == [list(each.place) for each in events[:2]]


async def test_rotated_files_of_a_restored_database_are_kept(store: Store, tmp_path: Path) -> None:
    """Positions go back at a restore; the files that are removed are still the oldest."""
    for position in (900, 901):
        old = tmp_path / f"events-{position:016d}-20260131T021009.412Z.jsonl"
        old.write_text("")
        os.utime(old, (position, position))
    sink = JsonLinesSink(LogFiles(tmp_path, most_bytes=1, kept=2))
    for each in await page_of(store, 3):
        await sink.deliver([each], START)
    sink.close()
    assert [line["seq"] for line in lines(tmp_path)] == [1, 1, 1]


async def test_stalled_process_repeats_nothing(store: Store, tmp_path: Path) -> None:
    """It read a page and then stalled; another one wrote it and, by tenant, files that this one had not opened."""
    events = await page_of(store, 4)
    for by_tenant in (False, True):
        files = LogFiles(tmp_path / str(by_tenant), by_tenant=by_tenant)
        stalled, current = JsonLinesSink(files), JsonLinesSink(files)
        await stalled.opened()
        await stalled.deliver(events[:1], START)
        await current.opened()
        for each in events:  # more than what is read back would do as well
            await current.deliver([each], START)
        with pytest.raises(Fenced):
            await stalled.deliver(events, START)
        for sink in (stalled, current):
            sink.close()
        (file,) = (tmp_path / str(by_tenant)).glob("**/events.jsonl")
        assert [line["feed"] for line in lines(file.parent)] == [list(each.place) for each in events]


async def test_process_waits_for_the_one_that_writes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_mark, "MAX_WAIT_S", 0.05)
    events = await page_of(store, 2)
    writing, waiting = JsonLinesSink(LogFiles(tmp_path)), JsonLinesSink(LogFiles(tmp_path))
    with writing._writing(taken=False):
        with pytest.raises(StoreUnavailable, match="another process"):
            await waiting.opened()
        writing._file("").append(events[:1])
    await waiting.opened()
    await waiting.deliver(events, START)
    for sink in (writing, waiting):
        sink.close()
    assert [line["feed"] for line in lines(tmp_path)] == [list(each.place) for each in events]


async def test_file_replaced_from_outside_is_opened_again(store: Store, tmp_path: Path) -> None:
    first, second, third = await page_of(store, 3)
    sink = JsonLinesSink(LogFiles(tmp_path))
    await sink.deliver([first], START)
    (tmp_path / "events.jsonl").rename(tmp_path / "moved")
    await sink.deliver([second], first.place)
    (tmp_path / "events.jsonl").open("ab").write(b'{"cut')
    await sink.deliver([second, third], first.place)
    sink.close()
    assert [line["feed"] for line in lines(tmp_path)] == [list(second.place), list(third.place)]


async def test_after_a_takeover_the_old_owner_closes_and_the_new_one_continues(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.ledger.event_sinks.RETRY_S", 0.05)
    first, second = JsonLinesSink(LogFiles(tmp_path)), JsonLinesSink(LogFiles(tmp_path))
    job_id = make_job(store)
    async with serving(store, first):
        await all_written(store)
        assert await store.commit(ClaimSink("json_lines", "new", await owner_and_beat(store))) is not None
        task = asyncio.create_task(SinkConsumer(store, second, "new").run())
        for _ in range(5):
            await store.commit(Append(job_id, Event("value_recorded")))
            await asyncio.sleep(0.05)
        await all_written(store)
        async with asyncio.timeout(10):
            while first._mark is not None:
                await asyncio.sleep(0.02)
        assert not first._open
        task.cancel()
        await asyncio.wait([task])
    assert [line["feed"] for line in lines(tmp_path)] == await feed_of(store)


async def test_at_most_64_files_are_open(store: Store, tmp_path: Path) -> None:
    sink = JsonLinesSink(LogFiles(tmp_path, by_tenant=True))
    for number in range(70):
        await store.commit(Open(newjob(f"tenant-{number}")))
    events = list((await Feed(store).read()).events)
    before = len(os.listdir("/dev/fd"))
    for _ in range(2):
        await sink.deliver(events, START)
        assert len(sink._open) == 64
    assert len(os.listdir("/dev/fd")) - before <= 64 + 1
    sink.close()
    assert len(os.listdir("/dev/fd")) <= before
    assert [len(lines(tmp_path / f"tenant-{number}")) for number in range(70)] == [1] * 70


async def test_process_that_stalled_after_its_claim_does_not_serve(store: Store, tmp_path: Path) -> None:
    stalled = SinkConsumer(store, JsonLinesSink(LogFiles(tmp_path)), "stalled")
    current = JsonLinesSink(LogFiles(tmp_path))
    place = await stalled.claim()
    assert place == START
    assert await store.commit(ClaimSink("json_lines", "current", await owner_and_beat(store))) == START
    await current.opened()
    with pytest.raises(Fenced):
        await stalled._open(place)
    with pytest.raises(Fenced):  # it took the log before it found out: the owner opens its log again
        await current.deliver(await page_of(store, 1), START)
    current.close()
    stalled._sink.close()
