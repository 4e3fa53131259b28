"""Listeners of the feed. A sink gets the events of all jobs in order; its rows and its cursor commit together.

One process at a time serves a sink. It renews `feed_cursor.beat`; another takes the sink over when the owner is dead on this
host, or when the beat has not moved during 15 seconds of its own successful reads. Clocks of two machines are never compared.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from overnight.domain import Fenced, OvernightError
from overnight.store import Store, Table, Unit, crash_point

from .feed import START, Feed, FeedEvent, FeedIdentity, FeedMark, FeedPosition
from .processes import is_dead
from .rows import SQL

log = logging.getLogger("overnight.ledger")
PAGE = 500
IDLE_S, MAX_IDLE_S = 0.1, 1.0
"""Pause before a sink that has read everything looks again; it doubles while nothing comes."""
RENEWAL_INTERVAL_S, TAKE_OVER_S, MAX_GAP_S = 5.0, 15.0, 5.0
RETRY_S = 2.0


class EventSink(Protocol):
    """A listener of the feed. `name` is that of its cursor, for good.

    `deliver` is called first, outside of a transaction: for what goes elsewhere (a file, a request). After a crash it can get
    events once more that it has had; those behind `done` are certainly not delivered by a committed page. Then `write` adds the
    sink's rows to the transaction that moves the cursor, under the locks that `locks` names. Both raise OvernightError to be
    called again later.

    `check` is called before the process begins to serve sinks. Raises BadInput if the sink is not for this ledger.

    `opened` is called when this process begins to serve the sink: what another process did since is to be looked up.
    After it, `deliver` of a process that served the sink before raises Fenced, if the sink can tell. It returns the newest
    event that the sink has had, if that is known outside of the database: a database without it was restored from a backup.
    `close` is called when this process serves the sink no more.
    """

    name: str

    async def check(self, feed: FeedIdentity) -> None: ...

    async def opened(self, feed: FeedIdentity) -> FeedMark | None: ...

    def close(self) -> None: ...

    async def deliver(self, events: Sequence[FeedEvent], done: FeedPosition) -> None: ...

    def locks(self, events: Sequence[FeedEvent]) -> Iterable[tuple[Table[Any], Any]]: ...

    def write(self, unit: Unit, events: Sequence[FeedEvent]) -> None: ...


class CursorRow(msgspec.Struct):
    """How far a sink has read, and the process that serves it."""

    sink: str
    position: int
    job_id: str
    seq: int
    owner: str | None
    beat: int

    @property
    def place(self) -> FeedPosition:
        return FeedPosition(self.position, self.job_id, self.seq)

    def move(self, place: FeedPosition) -> None:
        self.position, self.job_id, self.seq = place


def _sink_name(row: CursorRow) -> str:
    return row.sink


CURSOR: Table[CursorRow] = Table(
    90, CursorRow, _sink_name, lock=SQL["lock_cursor"], insert=SQL["insert_cursor"], update=SQL["update_cursor"]
)


class ClaimSink(msgspec.Struct, frozen=True):
    """Serve a sink without owner, or that of `seen`, an owner whose beat stood still. Outcome: its cursor, or None."""

    sink: str
    owner: str
    seen: tuple[str | None, int] | None = None

    def locks(self) -> list[tuple[Any, Any]]:
        return [(CURSOR, self.sink)]

    def decide(self, unit: Unit) -> FeedPosition | None:
        row = unit.get(CURSOR, self.sink)
        if row is None:
            unit.insert(CURSOR, CursorRow(self.sink, START.position, START.job_id, START.seq, owner=self.owner, beat=1))
            return START
        if row.owner is not None and row.owner != self.owner and (row.owner, row.beat) != self.seen:
            return None
        row.owner, row.beat = self.owner, row.beat + 1
        unit.change(CURSOR, row)
        return row.place


class AdvanceSink(msgspec.Struct, frozen=True):
    """Write a sink's rows for a page and move its cursor behind it; without events, only renew it. Raises Fenced."""

    sink: EventSink
    owner: str
    after: FeedPosition
    end: FeedPosition
    events: Sequence[FeedEvent] = ()

    def locks(self) -> list[tuple[Any, Any]]:
        return [*(self.sink.locks(self.events) if self.events else ()), (CURSOR, self.sink.name)]

    def decide(self, unit: Unit) -> None:
        row = unit.get(CURSOR, self.sink.name)
        if row is None or row.owner != self.owner or row.place != self.after:
            raise Fenced(f"{self.sink.name}: another process serves this sink")
        if self.events:
            self.sink.write(unit, self.events)
        row.move(self.end)
        row.beat += 1
        unit.change(CURSOR, row)


class ReleaseSink(msgspec.Struct, frozen=True):
    """Leave a sink to other processes at once."""

    sink: str
    owner: str

    def locks(self) -> list[tuple[Any, Any]]:
        return [(CURSOR, self.sink)]

    def decide(self, unit: Unit) -> None:
        row = unit.get(CURSOR, self.sink)
        if row is not None and row.owner == self.owner:
            row.owner = None
            unit.change(CURSOR, row)


class SinkConsumer:
    """Serves one sink in this process for as long as no other does. `owner` names this process; `monotonic` gives seconds."""

    def __init__(
        self, store: Store, sink: EventSink, owner: str, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._sink, self._owner, self._monotonic = store, sink, owner, monotonic
        self._feed = Feed(store)
        self._seen: tuple[str | None, int] | None = None
        self._since = self._read_at = 0.0

    async def run(self) -> None:
        """Serve the sink, or wait until it can be taken over; until cancelled. Troubles are logged and tried again."""
        trouble = ""
        try:
            while True:
                try:
                    place = await self.claim()
                    if place is not None:
                        await self._open(place)
                        trouble = ""
                        await self._serve(place)
                except Fenced:
                    self._seen = None
                except OvernightError as error:
                    if str(error) != trouble:
                        trouble = str(error)
                        log.warning("sink %s: %s; trying again", self._sink.name, trouble)
                except Exception:
                    log.exception("sink %s failed by a fault of its own; trying again", self._sink.name)
                finally:
                    self._sink.close()
                await asyncio.sleep(RETRY_S)
        finally:
            await self._release()

    async def claim(self) -> FeedPosition | None:
        """The cursor of the sink if this process serves it now. Raises StoreUnavailable."""
        rows = await self._store.read(SQL["read_cursor_owner"], {"sink": self._sink.name})
        now = self._monotonic()
        if not rows or rows[0][0] in (None, self._owner):
            return await self._store.commit(ClaimSink(self._sink.name, self._owner))
        owner, beat, host, pid = rows[0]
        if (owner, beat) != self._seen or now - self._read_at > MAX_GAP_S:
            self._seen, self._since = (owner, beat), now
        self._read_at = now
        if now - self._since >= TAKE_OVER_S or (host is not None and is_dead(host, pid)):
            return await self._store.commit(ClaimSink(self._sink.name, self._owner, self._seen))
        return None

    async def _open(self, place: FeedPosition) -> None:
        """Open the sink. Raises Fenced if another process took it over meanwhile, which then opens it once more."""
        newest = await self._sink.opened(await self._feed.identity())
        if newest is not None and await self._feed.is_lost(newest):
            log.warning("sink %s: it had events that the database lost by a restore; new ones follow", self._sink.name)
            await self._feed.raise_epoch(newest)
            await self._sink.opened(await self._feed.identity())
        await self._store.commit(AdvanceSink(self._sink, self._owner, place, place))

    async def _serve(self, place: FeedPosition) -> None:
        idle, beaten = IDLE_S, self._monotonic()
        while True:
            page = await self._feed.read(place, PAGE)
            if page.events:
                await self._sink.deliver(page.events, place)
                crash_point("sink_delivered")
                await self._store.commit(AdvanceSink(self._sink, self._owner, place, page.end, page.events))
                crash_point("sink_committed")
                place, idle, beaten = page.end, IDLE_S, self._monotonic()
            elif self._monotonic() - beaten >= RENEWAL_INTERVAL_S:
                await self._store.commit(AdvanceSink(self._sink, self._owner, place, place))
                beaten = self._monotonic()
            if page.is_last:
                await asyncio.sleep(idle)
                idle = min(idle * 2, MAX_IDLE_S)

    async def _release(self) -> None:
        try:
            await asyncio.wait_for(self._store.commit(ReleaseSink(self._sink.name, self._owner)), RETRY_S)
        except (OvernightError, TimeoutError) as error:
            log.warning("sink %s was not released: %s", self._sink.name, error)


async def serve_sink(store: Store, sink: EventSink, owner: str) -> "asyncio.Task[None]":
    """Serve a sink in a task of this process, which is named `owner`. Raises BadInput if the sink is not for this ledger."""
    await sink.check(await Feed(store).identity())
    return asyncio.create_task(SinkConsumer(store, sink, owner).run())


async def sink_lags(store: Store) -> dict[str, int]:
    """How far each served sink is behind, in milliseconds: the age of the oldest event that it has not had.

    A sink without owner is switched off, or between two owners. Raises StoreUnavailable.
    """
    lags: dict[str, int] = {}
    for sink, position, job_id, seq in await store.read(SQL["list_cursors"], {}):
        owners = await store.read(SQL["read_cursor_owner"], {"sink": sink})
        if not owners or owners[0][0] is None:
            continue
        values = {"position": position, "job_id": job_id, "seq": seq}
        rows = await store.read(SQL["read_feed_next"], values)
        lags[sink] = max(0, (store.clock() - rows[0][0]) // 1000) if rows else 0
    return lags
