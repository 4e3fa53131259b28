"""An event log beside a database that was restored from a backup, or beside that of another ledger."""

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import psycopg
import pytest

import cli_runs
from event_logs import all_written, feed_of, lines
from machine_parts import Open, make_job, newjob, rows
from overnight.domain import BadInput
from overnight.ledger import Feed, FeedIdentity, FeedMark, SinkConsumer, serve_sink
from overnight.store import Store, open_store
from overnight.telemetry import JsonLinesSink, LogFiles


class Backup:
    """A backup of a database, which can be restored over it while nothing has it open."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._file = url, folder / "backup.db"
        if "://" in url:
            self._kept = rows(url, "SELECT job_id, last_seq FROM job")
            self._meta = rows(url, "SELECT epoch, shift FROM feed_epoch") + rows(
                url, "SELECT position, job_id, seq FROM feed_cursor"
            )
        else:
            connection = apsw.Connection(url)
            connection.execute("VACUUM INTO ?", (str(self._file),))
            connection.close()

    def restore(self) -> None:
        if "://" not in self._url:
            for beside in ("-wal", "-shm"):
                Path(self._url + beside).unlink(missing_ok=True)
            shutil.copy(self._file, self._url)
            return
        # As a dump that is read into a new database of the same server.
        (epoch, shift), *cursors = self._meta
        with psycopg.connect(self._url) as connection:
            kept = [job_id for job_id, _ in self._kept]
            for table in ("event", "job"):
                connection.execute(f"DELETE FROM {table} WHERE NOT job_id = ANY(%s)", (kept,))  # type: ignore[arg-type]
            connection.execute("UPDATE feed_epoch SET epoch = %s, shift = %s", (epoch, shift))
            for cursor in cursors:
                connection.execute("UPDATE feed_cursor SET position = %s, job_id = %s, seq = %s, owner = NULL", cursor)


class CountingSink(JsonLinesSink):
    tries = 0

    async def opened(self, feed: FeedIdentity | None = None) -> FeedMark | None:
        self.tries += 1
        return await super().opened(feed)


@contextlib.asynccontextmanager
async def serving(url: str, folder: Path) -> AsyncIterator[Store]:
    with open_store(url) as store:
        task = await serve_sink(store, JsonLinesSink(LogFiles(folder)), "here")
        try:
            yield store
            await all_written(store)
        finally:
            task.cancel()
            await asyncio.wait([task])


async def write(store: Store, count: int) -> None:
    for _ in range(count):
        await store.commit(Open(newjob("acme")))


def epoch_of(url: str) -> int:
    return rows(url, "SELECT epoch FROM feed_epoch")[0][0]


async def test_restored_database_is_noticed_and_no_position_is_given_again(store_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    async with serving(store_url, folder) as store:
        await write(store, 3)
        await all_written(store)
        early = await Feed(store).cursor_of(await Feed(store).end(), "acme")
    backup = Backup(store_url, tmp_path)
    for expected in (2, 3):  # restored a second time, to the same backup, which knows nothing of the first time
        async with serving(store_url, folder) as store:
            await write(store, 2)
            await all_written(store)
            late = await Feed(store).cursor_of(await Feed(store).end(), "acme")
        had = max(line["feed"][0] for line in lines(folder))
        backup.restore()
        async with serving(store_url, folder) as store:
            async with asyncio.timeout(10):
                while epoch_of(store_url) < expected:
                    await asyncio.sleep(0.01)
            await write(store, 2)
            await all_written(store)
            feed = await feed_of(store)
            assert all(position > had for position, *_ in feed[3:])
            for cursor in (early, late):
                with pytest.raises(BadInput, match="restore"):
                    await Feed(store).place_of(cursor, "acme")
        assert epoch_of(store_url) == expected
        found = [tuple(line["feed"]) for line in lines(folder)]
        assert len(found) == len(set(found))
        assert {tuple(place) for place in feed} <= set(found)
        async with serving(store_url, folder) as store:  # opened once more: nothing is missing now
            await write(store, 1)
            await all_written(store)
        assert epoch_of(store_url) == expected


async def test_cursor_of_lost_events_is_refused_without_a_log(tmp_path: Path, empty_ledger: Path) -> None:
    """No sink tells of the restore, and another event stands where the cursor points to."""
    url = str(shutil.copy(empty_ledger, tmp_path / "ledger.db"))
    with open_store(url) as store:
        await write(store, 2)
        kept = await Feed(store).end()
        early = await Feed(store).cursor_of(kept, "acme")
    backup = Backup(url, tmp_path)
    with open_store(url) as store:
        await write(store, 2)
        late = await Feed(store).cursor_of(await Feed(store).end(), "acme")
    backup.restore()
    with open_store(url) as store:
        await write(store, 3)
        assert await Feed(store).place_of(early, "acme") == kept
        with pytest.raises(BadInput, match="restore"):
            await Feed(store).place_of(late, "acme")


async def test_log_of_another_ledger_is_refused(
    tmp_path: Path, empty_ledger: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.ledger.event_sinks.RETRY_S", 0.02)
    first, folder = str(shutil.copy(empty_ledger, tmp_path / "first.db")), tmp_path / "log"
    second = str(tmp_path / "second.db")
    async with serving(first, folder) as store:
        make_job(store)
        await all_written(store)
        with open_store(second) as other:
            make_job(other)
            with pytest.raises(BadInput, match=r"event log of another ledger\. Set OVERNIGHT_EVENT_LOG"):
                await serve_sink(other, JsonLinesSink(LogFiles(folder)), "there")
            # A process that serves it already tells it once, and leaves the log to the other ledger.
            caplog.set_level(logging.WARNING, "overnight.ledger")
            sink = CountingSink(LogFiles(folder))
            task = asyncio.create_task(SinkConsumer(other, sink, "there").run())
            async with asyncio.timeout(10):
                while sink.tries < 4:
                    await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
        make_job(store)
        await all_written(store)
        feed = await feed_of(store)
    assert [record.getMessage().count("another ledger") for record in caplog.records] == [1]
    assert [line["feed"] for line in lines(folder)] == feed


def test_worker_refuses_the_log_of_another_ledger(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVERNIGHT_", "DATABASE_"))}
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "events.lock").write_text('{"process":"log_1","ledger":"another"}\n')
    environment = kept | {"OVERNIGHT_HOME": str(tmp_path / "home"), "OVERNIGHT_EVENT_LOG": str(folder)}
    ran = cli_runs.run(tmp_path, environment, "worker")
    assert ran.code == 1, ran
    assert ran.err.count("holds the event log of another ledger") == 1, ran
    assert "Traceback" not in ran.err
