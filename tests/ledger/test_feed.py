"""The feed over all jobs: complete, in one order, and equal for every reader beside any writers."""

import asyncio
import random
import time
from collections import defaultdict
from typing import Any

import apsw
import msgspec
import psycopg
import pytest

from machine_parts import Open, make_job, newjob, rows
from overnight.domain import BadInput, Event
from overnight.ledger import JOB, START, Append, Feed, FeedPosition, append, locked_job
from overnight.store import Store, Unit, open_store


class SlowAppend(msgspec.Struct):
    """Append an event in a transaction that stays open for a while."""

    job_id: str
    seconds: float

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> int:
        seq = append(unit, locked_job(unit, self.job_id), Event("value_recorded"))
        time.sleep(self.seconds)
        return seq


async def everything(store: Store, after: FeedPosition = START, most: int = 7, tenant_id: str = "") -> list[Any]:
    feed, found = Feed(store), []
    while True:
        page = await feed.read(after, most, tenant_id)
        found += page.events
        after = page.end
        if page.is_last:
            return found


def places(found: list[Any]) -> list[tuple[str, int]]:
    return [(each.event.job_id, each.event.seq) for each in found]


def write_slowly(url: str, seed: int, count: int) -> None:
    """One writer: a process of its own as far as the database can tell."""
    chance = random.Random(seed)
    with open_store(url) as store:
        jobs = [make_job(store) for _ in range(2)]
        for _ in range(count):
            store.commit_blocking(SlowAppend(chance.choice(jobs), chance.choice([0, 0, 0.002, 0.02])))


async def test_slow_writers_cause_no_missed_events(store_url: str, store: Store) -> None:
    writers = [asyncio.create_task(asyncio.to_thread(write_slowly, store_url, seed, 12)) for seed in range(8)]
    feed, after, live = Feed(store), START, list[Any]()
    while True:
        over = all(each.done() for each in writers)
        page = await feed.read(after, random.randint(1, 9))
        live += page.events
        after = page.end
        if over and page.is_last:
            break
        await asyncio.sleep(0.001)
    await asyncio.gather(*writers)
    by_job = defaultdict[str, list[int]](list)
    for job_id, seq in places(live):
        by_job[job_id].append(seq)
    assert len(by_job) == 16
    assert all(seqs == list(range(1, len(seqs) + 1)) for seqs in by_job.values()), by_job
    assert sum(map(len, by_job.values())) == 16 + 8 * 12
    assert places(await everything(store)) == places(live)


async def test_a_tenant_reads_only_its_events(store: Store) -> None:
    for number in range(20):
        await store.commit(Open(newjob("acme" if number % 5 == 0 else "other")))
    found = await everything(store, most=3, tenant_id="acme")
    assert len(found) == 4
    assert {each.event.tenant_id for each in found} == {"acme"}
    assert await everything(store, most=3, tenant_id="none") == []


async def test_reading_from_the_end_returns_new_events(store: Store) -> None:
    assert await Feed(store).end() == START
    make_job_id = (await store.commit(Open(newjob())))[0]
    end = await Feed(store).end()
    assert await everything(store, end) == []
    await store.commit(Append(make_job_id, Event("value_recorded")))
    assert places(await everything(store, end)) == [(make_job_id, 2)]


async def test_cursor_is_bound_to_its_tenant(store: Store) -> None:
    await store.commit(Open(newjob("acme")))
    feed = Feed(store)
    end = await feed.end()
    cursor = await feed.cursor_of(end, "acme")
    assert await feed.place_of(cursor, "acme") == end
    assert cursor != await feed.cursor_of(end, "acme")
    assert end.job_id not in cursor
    for text, tenant in [
        (cursor, "other"),
        (cursor[:-2], "acme"),
        ("", "acme"),
        ("ä", "acme"),
        (f"{cursor}AAAA", "acme"),
    ]:
        with pytest.raises(BadInput):
            await feed.place_of(text, tenant)


async def test_cursor_from_before_a_restore_is_refused(store: Store, store_url: str) -> None:
    await store.commit(Open(newjob("acme")))
    cursor = await Feed(store).cursor_of(await Feed(store).end(), "acme")
    raise_epoch = "UPDATE feed_epoch SET epoch = epoch + 1"
    if store.dialect == "sqlite":
        apsw.Connection(store_url).execute(raise_epoch)
    else:
        with psycopg.connect(store_url) as connection:
            connection.execute(raise_epoch)
    with pytest.raises(BadInput, match="from before a restore of the database"):
        await Feed(store).place_of(cursor, "acme")


async def test_positions_are_not_reused_after_delete_and_vacuum(tmp_path: Any) -> None:
    path = str(tmp_path / "ledger.db")
    with open_store(path) as store:
        await store.commit(Open(newjob()))
        end = await Feed(store).end()
    raw = apsw.Connection(path)
    raw.execute("DELETE FROM event WHERE position = (SELECT max(position) FROM event)")
    raw.execute("VACUUM")
    raw.close()
    with open_store(path) as store:
        job_id = (await store.commit(Open(newjob())))[0]
        assert places(await everything(store, end)) == [(job_id, 1)]


async def test_events_of_an_earlier_release_get_a_position(store_url: str, store: Store) -> None:
    job_id = (await store.commit(Open(newjob())))[0]
    end = await Feed(store).end()
    insert = (
        "INSERT INTO event (job_id, seq, tenant_id, month, at, body)"
        f" SELECT job_id, seq + 1, tenant_id, month, at, body FROM event WHERE job_id = '{job_id}'"
    )
    if store.dialect == "sqlite":
        apsw.Connection(store_url).execute(insert)
    else:
        with psycopg.connect(store_url) as connection:
            connection.execute(insert)  # type: ignore[arg-type]
    assert places(await everything(store, end)) == [(job_id, 2)]


async def test_events_older_than_the_feed_come_first(store: Store, store_url: str) -> None:
    old = (await store.commit(Open(newjob())))[0]
    if store.dialect == "postgres":
        with psycopg.connect(store_url) as connection:
            connection.execute("UPDATE event SET position = 0")
    new = (await store.commit(Open(newjob())))[0]
    assert places(await everything(store)) == [(old, 1), (new, 1)]


async def test_new_events_of_a_restored_database_come_last(postgres_url: str) -> None:
    """A dump of a server with many transactions is read into a server with few."""
    with open_store(postgres_url) as store:
        old = (await store.commit(Open(newjob())))[0]
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE event SET position = 4000000000000")
    for _ in range(2):  # opened twice: the epoch rises once
        with open_store(postgres_url) as store:
            end = FeedPosition(4000000000000, old, 1)
            new = (await store.commit(Open(newjob())))[0]
            assert places(await everything(store, end))[-1] == (new, 1)
            assert places(await everything(store))[0] == (old, 1)
            assert rows(postgres_url, "SELECT epoch FROM feed_epoch") == [(2,)]
