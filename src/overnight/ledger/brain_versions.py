"""The files of brain versions: written once, before the first job that names the version, and read by any process."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from overnight.domain import BadInput, NotFound
from overnight.store import Store, Unit

from .audit import write_audit
from .processes import this_host
from .rows import SQL

MAX_LISTED = 1000
_HEX = frozenset("0123456789abcdef")


class BrainVersion(msgspec.Struct, frozen=True):
    """A stored version: its number of files, when it was stored and last activated (microseconds UTC), and the number of jobs
    that name it."""

    version: str
    files: int
    stored_at: int
    activated_at: int
    jobs: int


class ReloadRequest(NamedTuple):
    """The latest request to change to a version. `number` rises with each request."""

    version: str
    number: int


class _File(msgspec.Struct, frozen=True):
    version: str
    path: str
    body: bytes


class KeepBrain(msgspec.Struct):
    """Store the files of a version, unless it is stored, and note that it is active. With `reload_by`, the name of a
    person, ask all processes of this ledger to change to it.

    An audit entry records each reload, and each start of a process with another version than the active one."""

    version: str
    files: Mapping[str, bytes]
    reload_by: str | None = None

    def locks(self) -> list[tuple[Any, Any]]:
        return []

    def decide(self, unit: Unit) -> None:
        if not _is_complete(unit.query(SQL["read_brain_version"], {"version": self.version})):
            for path, body in self.files.items():
                unit.append(SQL["insert_brain_file"], _File(self.version, path, body))
        active = unit.query(SQL["read_active_version"], {})
        row = _Activation(self.version, len(self.files), unit.now)
        unit.append(SQL["upsert_brain_version"], row)
        if self.reload_by is not None:
            unit.append(SQL["request_reload"], row)
        before = {"version": active[0][0]} if active else {}
        if self.reload_by is not None or before != {"version": self.version}:
            action = "brain.activated" if self.reload_by is None else "brain.reloaded"
            # No person is known at the start of a process.
            actor = self.reload_by or f"host {this_host().partition('/')[0]}"
            after = {"version": self.version}
            write_audit(unit, action, self.version, tenant_id="", actor=actor, before=before, after=after)


def _is_complete(rows: Sequence[Sequence[Any]]) -> bool:
    """Whether `read_brain_version` found a version with all of its files."""
    return bool(rows) and rows[0][1] == rows[0][2]


class _Activation(msgspec.Struct, frozen=True):
    version: str
    files: int
    at: int


async def read_reload(store: Store) -> ReloadRequest | None:
    """The latest reload request; None if there was none."""
    rows = await store.read(SQL["read_reload"], {})
    return ReloadRequest(*rows[0]) if rows else None


async def read_brain_files(store: Store, version: str) -> dict[str, bytes]:
    """The files of a stored version by path. Raises NotFound, also if some of them are gone."""
    if not _is_complete(await store.read(SQL["read_brain_version"], {"version": version})):
        raise NotFound(f"brain version {version[:80]}. `overnight brain history` lists the versions of this ledger")
    return {path: bytes(body) for path, body in await store.read(SQL["read_brain_files"], {"version": version})}


async def read_brain_file(store: Store, version: str, path: str) -> bytes:
    """One file of a stored version. Raises NotFound."""
    rows = await store.read(SQL["read_brain_file"], {"version": version, "path": path})
    if not rows:
        raise NotFound(f"file {path[:200]} in brain version {version[:12]}")
    return bytes(rows[0][0])


async def find_brain_version(store: Store, prefix: str) -> str:
    """The stored version that begins with `prefix`; the active one for an empty prefix. Raises NotFound, BadInput."""
    if not prefix:
        rows = await store.read(SQL["read_active_version"], {})
    elif len(prefix) > 64 or not _HEX.issuperset(prefix):
        raise BadInput(f"version: {prefix[:80]!r} is not a brain version; expected up to 64 hexadecimal digits")
    else:
        rows = await store.read(SQL["list_versions_of_prefix"], {"pattern": f"{prefix}%"})
    if not rows:
        raise NotFound(f"brain version {prefix}. `overnight brain history` lists the versions of this ledger")
    if len(rows) > 1:
        raise BadInput(f"version: several brain versions begin with {prefix}; give more digits")
    return rows[0][0]


async def list_brain_versions(store: Store, most: int) -> list[BrainVersion]:
    """The stored versions, latest first; at most `most` of them."""
    rows = await store.read(SQL["list_brain_versions"], {"most": min(most, MAX_LISTED)})
    return [BrainVersion(*row) for row in rows]


async def list_changed_files(store: Store, before: str, after: str) -> list[str]:
    """The paths that differ between two stored versions."""
    return [path for (path,) in await store.read(SQL["list_changed_files"], {"before": before, "after": after})]
