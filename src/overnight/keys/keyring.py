"""The keys as one process knows them: a copy in memory, so that no call waits for the store, and no flood of guesses reaches it.

A copy is never older than STALE_S when it is asked: a revoked key, and a changed provider's key, are out of use within that
time in every process. From FRESH_S on it is read again behind its callers' backs; one reading asks for a single number where
nothing changed. When the store cannot be reached, a copy that has grown stale answers nobody.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from hmac import compare_digest
from typing import NamedTuple

from overnight.domain import OvernightError, StoreUnavailable
from overnight.store import Store, records_of

from .commands import NoteUses
from .master_keys import Masters, SealedShut
from .rows import SQL, KeyRow, ProviderKeyRow, VirtualKey, virtual_key
from .tokens import digest_of, handle_of

log = logging.getLogger("overnight.keys")
FRESH_S, STALE_S = 1.0, 2.0
LEAST_PAUSE_S = 0.05
"""Between two readings, however many unknown keys are tried."""

NOTE_USES_EVERY_S = 30.0
PAGE = 2000


class _CachedKey(NamedTuple):
    digest: bytes
    until: int | None
    key: VirtualKey


class Keyring:
    """Ask within one event loop. Without `masters`, providers' keys stay shut."""

    def __init__(self, store: Store, masters: Masters | None = None) -> None:
        self.exist = False
        """Whether a key was ever made."""
        self.owners: dict[str, dict[str, ProviderKeyRow]] = {}
        """Tenants with providers' keys of their own, by provider."""
        self.version = 0
        """Changes whenever a provider's key did."""
        self.masters = masters or Masters()
        self.patience_s: float | None = None
        """How long a caller waits for a new copy. A reading of the store ends in time by itself."""
        self._store = store
        self._held: dict[str, _CachedKey] = {}
        self._handles: dict[str, tuple[str, ...]] = {}
        self._opened: dict[tuple[str, str], str] = {}
        self._number = -1
        self._as_of = float("-inf")
        self._next: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading = asyncio.Lock()
        self._used: dict[str, int] = {}
        self._noted_at = time.monotonic()

    @property
    def aged(self) -> bool:
        """Await `refresh` before you ask."""
        return time.monotonic() - self._as_of > FRESH_S

    async def refresh(self) -> None:
        """See to it that the copy is not stale. Raises StoreUnavailable."""
        age = time.monotonic() - self._as_of
        if age > STALE_S:
            await self._read_anew()
        elif age > FRESH_S:
            self._schedule()

    def expire(self) -> None:
        """A key was changed by this process: whoever asks next waits for a new reading."""
        self._as_of = min(self._as_of, time.monotonic() - STALE_S - LEAST_PAUSE_S)

    async def find(self, token: str) -> VirtualKey | None:
        """The key that this is; None when it is unknown, expired or revoked. Raises StoreUnavailable."""
        handle = handle_of(token)
        if handle is None:
            return None
        if self.aged:
            await self.refresh()
        held = self._held.get(handle)
        if held is None:
            await self._read_anew()  # another process may have made it a moment ago
            held = self._held.get(handle)
        if held is None or not compare_digest(held.digest, digest_of(token)):
            return None
        now = self._store.clock()
        if held.until is not None and held.until <= now:
            return None
        self._used[held.key.key_id] = now
        return held.key

    def provider_key(self, tenant_id: str, provider: str) -> str | None:
        """The tenant's own key of a provider, if it has one. Raises SealedShut: a key that cannot be opened is not replaced by
        another, which somebody else would pay for."""
        row = self.owners.get(tenant_id, {}).get(provider)
        if row is None or row.sealed is None:
            return None
        place = (tenant_id, provider)
        secret = self._opened.get(place)
        if secret is None:
            try:
                secret = self._opened[place] = self.masters.open(row.master_id, row.sealed, place)
            except SealedShut:
                raise
            except OvernightError as error:
                raise SealedShut(str(error)) from None
        return secret

    async def close(self) -> None:
        """Note the last uses. Raises StoreUnavailable."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._note_uses()

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _schedule(self) -> asyncio.Task[None]:
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._read_soon())
            self._tasks.add(self._next)
            self._next.add_done_callback(self._heard)
        return self._next

    async def _read_anew(self) -> None:
        """A copy that is not older than this moment; all who want one meanwhile share a reading. Raises StoreUnavailable when
        the store does not answer within `patience_s`."""
        try:
            async with asyncio.timeout(self.patience_s):
                await asyncio.shield(self._schedule())
        except TimeoutError:
            raise StoreUnavailable("the store did not answer in time") from None

    async def _read_soon(self) -> None:
        async with self._reading:
            pause = self._as_of + LEAST_PAUSE_S - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            self._next = None  # whoever asks from now on wants a later one
            as_of = time.monotonic()
            await self._read()
            self._as_of = as_of
        if as_of - self._noted_at > NOTE_USES_EVERY_S:
            self._noted_at = as_of
            noting = asyncio.get_running_loop().create_task(self._note_uses())  # nobody waits for a write here
            self._tasks.add(noting)
            noting.add_done_callback(self._noted)

    async def _read(self) -> None:
        ((number,),) = await self._store.read(SQL["read_key_change"], {})
        if number == self._number:
            return
        after = self._number
        while rows := await self._store.read(SQL["list_changed_keys"], {"changed": after, "most": PAGE}):
            found = records_of(KeyRow, rows)
            self._take_keys(found)
            after = found[-1].changed
        after = self._number
        while rows := await self._store.read(SQL["list_changed_provider_keys"], {"changed": after, "most": PAGE}):
            self._take_provider_keys(records_of(ProviderKeyRow, rows))
            after = rows[-1][-1]
        self._number = number

    def _take_keys(self, rows: Iterable[KeyRow]) -> None:
        self.exist = True
        now = self._store.clock()
        for row in rows:
            for handle in self._handles.pop(row.key_id, ()):
                self._held.pop(handle, None)
            if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
                continue
            key = virtual_key(row)
            mine = {row.handle: _CachedKey(bytes(row.digest), row.expires_at, key)}
            if row.previous_handle and row.previous_digest and row.previous_until and row.previous_until > now:
                mine[row.previous_handle] = _CachedKey(bytes(row.previous_digest), row.previous_until, key)
            self._held |= mine
            self._handles[row.key_id] = tuple(mine)

    def _take_provider_keys(self, rows: Iterable[ProviderKeyRow]) -> None:
        self.version += 1
        for row in rows:
            self._opened.pop((row.tenant_id, row.provider), None)
            own = self.owners.setdefault(row.tenant_id, {})
            if row.sealed is not None:
                own[row.provider] = row
            else:
                own.pop(row.provider, None)
            if not own:
                del self.owners[row.tenant_id]

    def _heard(self, reading: asyncio.Task[None]) -> None:
        """A reading that perhaps nobody waited for tells the log when it failed."""
        self._tasks.discard(reading)
        if not reading.cancelled() and (error := reading.exception()) is not None:
            log.warning("keys could not be refreshed: %s", error)

    def _noted(self, noting: asyncio.Task[None]) -> None:
        self._tasks.discard(noting)
        if not noting.cancelled() and (error := noting.exception()) is not None:
            log.warning("the last uses of keys could not be noted: %s", error)

    async def _note_uses(self) -> None:
        used, self._used = self._used, {}
        if used:
            await self._store.commit(NoteUses(used))
