"""The feed: the events of all jobs in one order, in which no event ever appears behind a reader.

The order is (position, job_id, seq). All events of a transaction share its position: the number of the transaction on SQLite,
its id on PostgreSQL, where a reader stops below the oldest transaction that is still under way.
"""

import asyncio
import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from overnight.domain import BadInput, Recorded
from overnight.store import Store

from .queries import recorded
from .rows import SQL

PAGE = 1000
NONCE_BYTES = 12


class FeedPosition(NamedTuple):
    """A place in the feed: that of an event, or START."""

    position: int
    job_id: str
    seq: int


START = FeedPosition(-1, "", 0)


class FeedEvent(msgspec.Struct, frozen=True):
    """An event and its place in the feed."""

    place: FeedPosition
    event: Recorded


class FeedIdentity(msgspec.Struct, frozen=True):
    """The ledger of a feed, by an id that its backups share, and its epoch, which rises when it is restored from one."""

    ledger_id: str
    epoch: int


class FeedMark(msgspec.Struct, frozen=True):
    """An event that something outside of the database has had: the epoch in which it was read, its place, and its time in
    microseconds."""

    epoch: int
    place: FeedPosition
    at: int


class FeedPage(msgspec.Struct, frozen=True):
    """A page of the feed. `end` is where the next page begins; `is_last` says that nothing more was visible."""

    events: Sequence[FeedEvent]
    end: FeedPosition
    is_last: bool


class Feed:
    """Reads the events of all jobs in order; writes nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cipher: AESGCM | None = None

    async def read(self, after: FeedPosition = START, most: int = PAGE, tenant_id: str = "") -> FeedPage:
        """The events behind `after`.

        Args:
            after: START, or the `end` of the page before.
            most: how many events are looked at, of all tenants; a page may have fewer.
            tenant_id: only the events of this tenant; empty for all.

        Raises:
            StoreUnavailable: the database did not answer in time.
        """
        values = {**after._asdict(), "tenant_id": tenant_id, "most": most}
        rows = await self._store.read(SQL["read_feed"], values)
        events = [
            FeedEvent(FeedPosition(position, job_id, row[0]), recorded(job_id, row))
            for position, job_id, is_wanted, *row in rows
            if is_wanted
        ]
        end = FeedPosition(rows[-1][0], rows[-1][1], rows[-1][3]) if rows else after
        return FeedPage(events, end, is_last=len(rows) < most)

    async def end(self) -> FeedPosition:
        """The place of the newest visible event: reading behind it gives only what is recorded from now on."""
        rows = await self._store.read(SQL["read_feed_end"], {})
        return FeedPosition(*rows[0]) if rows else START

    async def identity(self) -> FeedIdentity:
        """The ledger and its epoch."""
        [(epoch, key)] = await self._store.read(SQL["read_feed_epoch"], {})
        return FeedIdentity(hashlib.sha256(b"overnight ledger\0" + bytes(key)).hexdigest()[:32], epoch)

    async def is_lost(self, mark: FeedMark) -> bool:
        """Whether the database does not have the event of a mark: it was restored from a backup since."""
        epoch = (await self.identity()).epoch
        # In a later epoch, the restore has been noticed before.
        return mark.epoch > epoch or (mark.epoch == epoch and await self._time_of(mark.place) != mark.at)

    async def raise_epoch(self, mark: FeedMark) -> None:
        """Continue the feed behind the event that was lost. Cursors of before are refused from now on."""
        await asyncio.to_thread(self._store.raise_feed_epoch, mark.epoch, mark.place.position)

    async def _time_of(self, place: FeedPosition) -> int | None:
        """The time of the event at a place; None if there is none."""
        rows = await self._store.read(SQL["read_event_time"], place._asdict())
        return rows[0][0] if rows else None

    async def cursor_of(self, place: FeedPosition, tenant_id: str) -> str:
        """The place as an opaque text for this tenant. It tells nothing of other tenants: positions count all events."""
        cipher, epoch = await self._sealing()
        nonce = os.urandom(NONCE_BYTES)
        # With the time of its event: after a restore, another event may stand at the same position.
        value = [epoch, *place, await self._time_of(place)]
        sealed = cipher.encrypt(nonce, msgspec.json.encode(value), tenant_id.encode())
        return base64.urlsafe_b64encode(nonce + sealed).decode().rstrip("=")

    async def place_of(self, cursor: str, tenant_id: str) -> FeedPosition:
        """The place that `cursor_of` gave to this tenant. Raises BadInput for any other text, and after a restore."""
        cipher, epoch = await self._sealing()
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            opened = cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], tenant_id.encode())
            sealed_in, position, job_id, seq, at = msgspec.json.decode(
                opened, type=tuple[int, int, str, int, int | None]
            )
        except (InvalidTag, ValueError, binascii.Error, msgspec.ValidationError):
            raise BadInput("cursor: not one that was given out here. Leave it out to read from the start") from None
        place = FeedPosition(position, job_id, seq)
        if sealed_in != epoch or await self._time_of(place) != at:  # its place is one of another history
            raise BadInput("cursor: from before a restore of the database. Leave it out to read from the start")
        return place

    async def _sealing(self) -> tuple[AESGCM, int]:
        [(epoch, key)] = await self._store.read(SQL["read_feed_epoch"], {})
        if self._cipher is None:
            self._cipher = AESGCM(bytes(key))
        return self._cipher, epoch
