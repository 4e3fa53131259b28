"""The rows of API keys and provider keys, and their public form without secrets."""

from typing import Any

import msgspec

from overnight.domain import KeyScope, expand_scopes, iso_utc, ordered_scopes
from overnight.store import Table, statements

SQL = statements("overnight.keys")


class KeyRow(msgspec.Struct):
    """One API key with digests of its secrets. `scopes`, `models`, `routes`, `tools` and `jobs` are JSON lists;
    times are microseconds UTC.

    `changed` is the number of the last change that wrote the row. `tools` and `jobs` are in `key_allowance`.
    """

    key_id: str
    tenant_id: str
    name: str
    handle: str
    digest: bytes
    previous_handle: str | None
    previous_digest: bytes | None
    previous_until: int | None
    scopes: str
    agent_id: str | None
    workflow: str | None
    models: str
    routes: str
    created_by: str
    created_at: int
    expires_at: int | None
    rotated_by: str | None
    rotated_at: int | None
    revoked_by: str | None
    revoked_at: int | None
    last_used_at: int | None
    changed: int
    tools: str = "[]"
    jobs: str = "[]"


class ProviderKeyRow(msgspec.Struct):
    """An encrypted provider key of one tenant. `sealed` is None after its deletion."""

    tenant_id: str
    provider: str
    master_id: str
    sealed: bytes | None
    set_by: str
    set_at: int
    changed: int


class ChangeRow(msgspec.Struct):
    id: int
    number: int


class NameRow(msgspec.Struct):
    """The name of a key that is not revoked, read from the key's own row."""

    tenant_id: str
    name: str


class VirtualKey(msgspec.Struct, frozen=True):
    """An API key: the caller it identifies and its permissions. `scopes` are expanded. `models`, `routes`, `tools` and
    `jobs` are globs; empty allows all."""

    key_id: str
    tenant_id: str
    name: str
    scopes: frozenset[str]
    agent_id: str | None = None
    workflow: str | None = None
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()

    @property
    def key_scope(self) -> KeyScope:
        return KeyScope(self.agent_id, self.workflow, self.jobs)


_texts = msgspec.json.Decoder(tuple[str, ...]).decode


def virtual_key(row: KeyRow) -> VirtualKey:
    return VirtualKey(
        key_id=row.key_id,
        tenant_id=row.tenant_id,
        name=row.name,
        scopes=expand_scopes(_texts(row.scopes)),
        agent_id=row.agent_id,
        workflow=row.workflow,
        models=_texts(row.models),
        routes=_texts(row.routes),
        tools=_texts(row.tools),
        jobs=_texts(row.jobs),
    )


def state_of(row: KeyRow, now: int) -> str:
    """The state of a key: active, expired or revoked."""
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at is not None and row.expires_at <= now else "active"


def public_key(row: KeyRow, now: int) -> dict[str, Any]:
    """The public form of a key as JSON. It holds no secret; `starts_with` is the visible prefix of the secret."""
    times = ("created_at", "expires_at", "rotated_at", "revoked_at", "last_used_at")
    shown: dict[str, Any] = {
        "key_id": row.key_id,
        "name": row.name,
        "tenant_id": row.tenant_id,
        "state": state_of(row, now),
        "starts_with": row.handle,
        "scopes": ordered_scopes(_texts(row.scopes)),
        "agent_id": row.agent_id,
        "workflow": row.workflow,
        "models": _texts(row.models),
        "routes": _texts(row.routes),
        "tools": _texts(row.tools),
        "jobs": _texts(row.jobs),
        "created_by": row.created_by,
        "rotated_by": row.rotated_by,
        "revoked_by": row.revoked_by,
    }
    shown |= {name: _moment(getattr(row, name)) for name in times}
    old = row.previous_until if row.previous_until and row.previous_until > now and row.revoked_at is None else None
    return shown | {"previous_starts_with": row.previous_handle if old else None, "previous_expires_at": _moment(old)}


def audited_key(row: KeyRow) -> dict[str, Any]:
    """The facts of a key that audit entries compare, without secrets."""
    return {
        "name": row.name,
        "starts_with": row.handle,
        "scopes": ordered_scopes(_texts(row.scopes)),
        **{name: getattr(row, name) for name in ("agent_id", "workflow")},
        **{name: _texts(getattr(row, name)) for name in ("models", "routes", "tools", "jobs")},
        **{name: _moment(getattr(row, name)) for name in ("expires_at", "previous_until", "revoked_at")},
    }


def audited_provider_key(row: ProviderKeyRow | None) -> dict[str, Any]:
    """The facts of a provider key that audit entries compare; empty for a deleted one."""
    if row is None or row.sealed is None:
        return {}
    return {"set_by": row.set_by, "set_at": iso_utc(row.set_at), "master_id": row.master_id}


def public_provider_key(row: ProviderKeyRow) -> dict[str, Any]:
    """The public form of a tenant's provider key: when it was set and by which master key it is encrypted."""
    return {
        "provider": row.provider,
        "tenant_id": row.tenant_id,
        "set_by": row.set_by,
        "set_at": iso_utc(row.set_at),
        "master_id": row.master_id,
    }


def _moment(at: int | None) -> str | None:
    return iso_utc(at) if at is not None else None


def _key(row: KeyRow) -> str:
    return row.key_id


def _name(row: NameRow) -> tuple[str, str]:
    return (row.tenant_id, row.name)


def _provider_key(row: ProviderKeyRow) -> tuple[str, str]:
    return (row.tenant_id, row.provider)


def _change(row: ChangeRow) -> int:
    return row.id


CHANGE: Table[ChangeRow] = Table(
    60,
    ChangeRow,
    _change,
    lock=SQL["lock_key_change"],
    insert=SQL["update_key_change"],
    update=SQL["update_key_change"],
)
KEY: Table[KeyRow] = Table(
    61,
    KeyRow,
    _key,
    lock=SQL["lock_key"],
    insert=SQL["insert_key"],
    update=SQL["update_key"],
    touch=SQL["touch_key"],
)
PROVIDER_KEY: Table[ProviderKeyRow] = Table(
    62,
    ProviderKeyRow,
    _provider_key,
    lock=SQL["lock_provider_key"],
    insert=SQL["insert_provider_key"],
    update=SQL["update_provider_key"],
)
NAME: Table[NameRow] = Table(
    63, NameRow, _name, lock=SQL["lock_key_name"], insert=SQL["lock_key_name"], update=SQL["lock_key_name"]
)
