"""The processes that share a ledger. Each renews its row in `worker` every few seconds.

A row whose `seen_at` changes belongs to a live process. `seen_at` is compared only with its own earlier values,
because clocks of different machines cannot be compared.
"""

import logging
import os
import socket
import threading
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from overnight.domain import OvernightError
from overnight.store import Store, Unit

from .rows import SQL

RENEWAL_INTERVAL_S = 5.0
STALE_AFTER_US = 24 * 3600 * 1_000_000
log = logging.getLogger("overnight.ledger")


@cache
def this_host() -> str:
    """The scope in which a process id is unique: host name and, on Linux, boot id and process id namespace.

    Machines can share a name, and the first namespace has the same number on all of them, but boot ids are random.
    After a restart of the machine, earlier processes therefore count as processes of another host.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{socket.gethostname()}/{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except (OSError, ValueError):
        return socket.gethostname()


def is_dead(host: str, pid: int) -> bool:
    """Whether a process of this host has certainly ended. A process id that another program reused counts as alive."""
    if host != this_host():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


class RenewRegistration(msgspec.Struct):
    """Write the row of a process; `seen_at` becomes the time of the transaction."""

    worker_id: str
    role: str
    host: str
    pid: int
    started_at: int
    seen_at: int = 0

    def locks(self) -> list[tuple[Any, Any]]:
        return []

    def decide(self, unit: Unit) -> None:
        self.seen_at = unit.now
        unit.append(SQL["upsert_process"], self)


class DeleteRegistration(msgspec.Struct):
    """Delete the row of a process that shuts down."""

    worker_id: str

    def locks(self) -> list[tuple[Any, Any]]:
        return []

    def decide(self, unit: Unit) -> None:
        unit.append(SQL["delete_process"], self)


class DeleteStaleProcess(msgspec.Struct):
    """Delete the row of a process that was last seen before `before`, unless it owns a reservation or a lease."""

    worker_id: str
    before: int

    def locks(self) -> list[tuple[Any, Any]]:
        return []

    def decide(self, unit: Unit) -> None:
        unit.append(SQL["delete_old_process"], self)


async def delete_dead_processes(store: Store) -> None:
    """Delete the rows of crashed processes.

    A row is deleted if it was not renewed for a day and owns nothing; of this host, only if the process has ended. A
    suspended process of another host writes its row again. Raises StoreUnavailable.
    """
    before = store.clock() - STALE_AFTER_US
    for worker_id, host, pid in await store.read(SQL["list_old_processes"], {"before": before}):
        if host != this_host() or is_dead(host, pid):
            await store.commit(DeleteStaleProcess(worker_id, before))


class Registration:
    """The row of this process. A thread renews it, so that a blocked event loop does not look dead."""

    def __init__(self, store: Store, process_id: str, role: str) -> None:
        self._store, self._id, self._role = store, process_id, role
        self._ended = threading.Event()
        self._started_at = store.clock()

    async def start(self) -> None:
        """Register. Raises StoreUnavailable."""
        await self._store.commit(self._registration())
        threading.Thread(target=self._renew_periodically, name="overnight-registration", daemon=True).start()

    async def end(self) -> None:
        """Delete the row. Raises StoreUnavailable; other processes then recognise the row as dead."""
        self._ended.set()
        await self._store.commit(DeleteRegistration(self._id))

    def _registration(self) -> RenewRegistration:
        return RenewRegistration(self._id, self._role, this_host(), os.getpid(), self._started_at)

    def _renew_periodically(self) -> None:
        while not self._ended.wait(RENEWAL_INTERVAL_S):
            try:
                self._store.commit_blocking(self._registration())
            except OvernightError as error:
                if not self._ended.is_set():
                    log.warning("registration of this process could not be renewed, will retry: %s", error)
