"""A copy of all keys in memory, so that no call waits for the store and guessed keys cause no load on it.

The copy is at most STALE_S seconds old when it is used, so revoked keys and replaced provider keys are invalid in every
process after that time. A copy older than FRESH_S is refreshed in the background; without changes, a refresh reads one
number. While the store is unavailable, a stale copy rejects all keys.
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

from .commands import RecordUses
from .master_keys import DecryptionFailed, MasterKeys
from .rows import SQL, KeyRow, ProviderKeyRow, VirtualKey, virtual_key
from .tokens import digest_of, handle_of

log = logging.getLogger("overnight.keys")
FRESH_S, STALE_S = 1.0, 2.0
MIN_PAUSE_S = 0.05
"""Minimum time between two reads of the store, regardless of the number of unknown keys."""

RECORD_USES_EVERY_S = 30.0
PAGE = 2000


class _CachedKey(NamedTuple):
    digest: bytes
    until: int | None
    key: VirtualKey


class Keyring:
    """The keys of a store, for one event loop. Without `masters`, provider keys cannot be decrypted."""

    def __init__(self, store: Store, masters: MasterKeys | None = None) -> None:
        self.exist = False
        """Whether any key was ever created."""
        self.owners: dict[str, dict[str, ProviderKeyRow]] = {}
        """The provider keys of tenants, by tenant and provider."""
        self.version = 0
        """A counter that increases with every change of provider keys."""
        self.masters = masters or MasterKeys()
        self.read_timeout_s: float | None = None
        """Maximum time that a caller waits for a new copy; None: until the read itself times out."""
        self._store = store
        self._held: dict[str, _CachedKey] = {}
        self._handles: dict[str, tuple[str, ...]] = {}
        self._decrypted: dict[tuple[str, str], str] = {}
        self._number = -1
        self._as_of = float("-inf")
        self._next: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading = asyncio.Lock()
        self._used: dict[str, int] = {}
        self._recorded_at = time.monotonic()

    @property
    def is_aged(self) -> bool:
        """Whether `refresh` must be awaited before the copy is used."""
        return time.monotonic() - self._as_of > FRESH_S

    async def refresh(self) -> None:
        """Ensure that the copy is not stale. Raises StoreUnavailable."""
        age = time.monotonic() - self._as_of
        if age > STALE_S:
            await self._read_now()
        elif age > FRESH_S:
            self._schedule()

    def expire(self) -> None:
        """Mark the copy as stale after a change by this process: the next caller waits for a new copy."""
        self._as_of = min(self._as_of, time.monotonic() - STALE_S - MIN_PAUSE_S)

    async def find(self, token: str) -> VirtualKey | None:
        """The key with this secret; None if it is unknown, expired or revoked. Raises StoreUnavailable."""
        handle = handle_of(token)
        if handle is None:
            return None
        if self.is_aged:
            await self.refresh()
        held = self._held.get(handle)
        if held is None:
            await self._read_now()  # another process may have created it just now
            held = self._held.get(handle)
        if held is None or not compare_digest(held.digest, digest_of(token)):
            return None
        now = self._store.clock()
        if held.until is not None and held.until <= now:
            return None
        self._used[held.key.key_id] = now
        return held.key

    def provider_key(self, tenant_id: str, provider: str) -> str | None:
        """The tenant's own key of a provider; None if it has none.

        Raises DecryptionFailed. The key of the operator must not replace it, because the operator would then pay.
        """
        row = self.owners.get(tenant_id, {}).get(provider)
        if row is None or row.sealed is None:
            return None
        row_key = (tenant_id, provider)
        secret = self._decrypted.get(row_key)
        if secret is None:
            try:
                secret = self._decrypted[row_key] = self.masters.decrypt(row.master_id, row.sealed, row_key)
            except DecryptionFailed:
                raise
            except OvernightError as error:
                raise DecryptionFailed(str(error)) from None
        return secret

    async def close(self) -> None:
        """Record the last uses. Raises StoreUnavailable."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._record_uses()

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _schedule(self) -> asyncio.Task[None]:
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._read_after_pause())
            self._tasks.add(self._next)
            self._next.add_done_callback(self._log_failed_read)
        return self._next

    async def _read_now(self) -> None:
        """Read the keys again; concurrent callers share one read. Raises StoreUnavailable after `read_timeout_s`."""
        try:
            async with asyncio.timeout(self.read_timeout_s):
                await asyncio.shield(self._schedule())
        except TimeoutError:
            raise StoreUnavailable("the store did not answer in time") from None

    async def _read_after_pause(self) -> None:
        async with self._reading:
            pause = self._as_of + MIN_PAUSE_S - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            self._next = None  # later callers need a later read
            as_of = time.monotonic()
            await self._read()
            self._as_of = as_of
        if as_of - self._recorded_at > RECORD_USES_EVERY_S:
            self._recorded_at = as_of
            recording = asyncio.get_running_loop().create_task(self._record_uses())
            self._tasks.add(recording)
            recording.add_done_callback(self._log_failed_record)

    async def _read(self) -> None:
        ((number,),) = await self._store.read(SQL["read_key_change"], {})
        if number == self._number:
            return
        after = self._number
        while rows := await self._store.read(SQL["list_changed_keys"], {"changed": after, "most": PAGE}):
            found = records_of(KeyRow, rows)
            self._update_keys(found)
            after = found[-1].changed
        after = self._number
        while rows := await self._store.read(SQL["list_changed_provider_keys"], {"changed": after, "most": PAGE}):
            self._update_provider_keys(records_of(ProviderKeyRow, rows))
            after = rows[-1][-1]
        self._number = number

    def _update_keys(self, rows: Iterable[KeyRow]) -> None:
        self.exist = True
        now = self._store.clock()
        for row in rows:
            for handle in self._handles.pop(row.key_id, ()):
                self._held.pop(handle, None)
            if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
                continue
            key = virtual_key(row)
            handles = {row.handle: _CachedKey(bytes(row.digest), row.expires_at, key)}
            if row.previous_handle and row.previous_digest and row.previous_until and row.previous_until > now:
                handles[row.previous_handle] = _CachedKey(bytes(row.previous_digest), row.previous_until, key)
            self._held |= handles
            self._handles[row.key_id] = tuple(handles)

    def _update_provider_keys(self, rows: Iterable[ProviderKeyRow]) -> None:
        self.version += 1
        for row in rows:
            self._decrypted.pop((row.tenant_id, row.provider), None)
            own = self.owners.setdefault(row.tenant_id, {})
            if row.sealed is not None:
                own[row.provider] = row
            else:
                own.pop(row.provider, None)
            if not own:
                del self.owners[row.tenant_id]

    def _log_failed_read(self, reading: asyncio.Task[None]) -> None:
        """Log the failure of a read, which may have no waiting caller."""
        self._tasks.discard(reading)
        if not reading.cancelled() and (error := reading.exception()) is not None:
            log.warning("keys could not be refreshed: %s", error)

    def _log_failed_record(self, recording: asyncio.Task[None]) -> None:
        self._tasks.discard(recording)
        if not recording.cancelled() and (error := recording.exception()) is not None:
            log.warning("the last uses of keys could not be recorded: %s", error)

    async def _record_uses(self) -> None:
        used, self._used = self._used, {}
        if used:
            await self._store.commit(RecordUses(used))
