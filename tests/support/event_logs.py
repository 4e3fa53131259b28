"""The event log of a store, and what tests ask of it."""

import asyncio
import json
from pathlib import Path
from typing import Any

from overnight.ledger import LEDGER_SQL, START, Feed, FeedPosition
from overnight.store import Store


def lines(folder: Path) -> list[dict[str, Any]]:
    """All lines of a log, the rotated files first."""
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
    """The places of all events, as lines have them."""
    page = await Feed(store).read(START, 10_000)
    return [list(each.place) for each in page.events]
