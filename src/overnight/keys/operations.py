"""Operations on keys by people and by the API, within one tenant. Only the command line may select all tenants ("")."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Protocol

import msgspec

from overnight.domain import (
    ALL_JOBS,
    ROLES,
    SCOPES,
    BadInput,
    KeyScope,
    NotFound,
    check_identifier,
    expand_scopes,
    new_id,
    ordered_scopes,
)
from overnight.store import Store, records_of

from .commands import (
    UNLIMITED_SCOPES,
    Create,
    DropProviderKey,
    RecordRotation,
    Reencrypt,
    Revoke,
    Rotate,
    SetAllowance,
    SetProviderKey,
)
from .master_keys import MasterKeys
from .rows import SQL, KeyRow, ProviderKeyRow, virtual_key
from .tokens import PREFIX, handle_of, mint

DAY_MS = 86_400_000
MAX_LIFETIME_MS = 3650 * DAY_MS
_PLAIN = ("tools", "jobs")
MAX_GLOBS, MAX_GLOB_LENGTH, MAX_SECRET_LENGTH = 100, 256, 4096
Span = Annotated[int, msgspec.Meta(ge=1, le=MAX_LIFETIME_MS)]


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The properties of a new key. `models`, `routes`, `tools` and `jobs` are names or globs; empty: all allowed.

    `expires_in_ms` is the lifetime in milliseconds; None: no expiry.
    """

    name: str
    scopes: tuple[str, ...] = ("calls",)
    agent_id: str | None = None
    workflow: str | None = None
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    expires_in_ms: Span | None = None


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a rotation, in milliseconds.

    `overlap_ms`: how long the old secret stays valid (0: it expires at once). `expires_in_ms`: the lifetime of the key from now
    (None: unchanged).
    """

    overlap_ms: Annotated[int, msgspec.Meta(ge=0, le=90 * DAY_MS)] = DAY_MS
    expires_in_ms: Span | None = None


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """The tools and jobs that a key may use, as names or globs; empty: all allowed, None: unchanged."""

    tools: tuple[str, ...] | None = None
    jobs: tuple[str, ...] | None = None


class SealedSecrets(Protocol):
    """Secrets of another package that master keys encrypt."""

    async def used_masters(self) -> set[str]:
        """The ids of their master keys."""
        ...

    async def reseal(self, actor: str) -> int:
        """Encrypt them again with the first master key. Returns how many changed."""
        ...


class Keys:
    """The keys of a store. Only `create` and `rotate` return a secret.

    `key_id` is always the API key of the request, for the audit entry; None for the command line. Every method can raise
    StoreUnavailable.
    """

    def __init__(self, store: Store, masters: MasterKeys | None = None) -> None:
        self._store, self.masters = store, masters or MasterKeys()

    async def create(self, tenant_id: str, new: NewKey, actor: str, key_id: str | None = None) -> tuple[KeyRow, str]:
        """Create a key. Returns the key and its secret. Raises BadInput; Conflict if the name is in use."""
        check_identifier(tenant_id, "the tenant")
        _check(new)
        minted = mint()
        row = KeyRow(
            key_id=new_id("key"),
            tenant_id=tenant_id,
            name=new.name,
            handle=minted.handle,
            digest=minted.digest,
            previous_handle=None,
            previous_digest=None,
            previous_until=None,
            scopes=_json(ordered_scopes(new.scopes)),
            agent_id=new.agent_id,
            workflow=new.workflow,
            models=_json(new.models),
            routes=_json(new.routes),
            created_by=actor,
            created_at=0,
            expires_at=None,
            rotated_by=None,
            rotated_at=None,
            revoked_by=None,
            revoked_at=None,
            last_used_at=None,
            changed=0,
            tools=_json(new.tools),
            jobs=_json(new.jobs),
        )
        return await self._store.commit(Create(row, _us(new.expires_in_ms), key_id)), minted.token

    async def rotate(
        self, name: str, tenant_id: str, how: Rotation, actor: str, key_id: str | None = None
    ) -> tuple[KeyRow, str]:
        """Replace the secret of a key. Returns the key and its new secret. Raises NotFound; Conflict if revoked or expired."""
        rotated, minted = (await self.one(name, tenant_id)).key_id, mint()
        command = Rotate(
            key_id=rotated,
            minted=minted,
            overlap_us=how.overlap_ms * 1000,
            expires_in_us=_us(how.expires_in_ms),
            actor=actor,
            caller_key_id=key_id,
        )
        return await self._store.commit(command), minted.token

    async def revoke(self, name: str, tenant_id: str, actor: str, key_id: str | None = None) -> KeyRow:
        """Revoke a key permanently. Raises NotFound."""
        return await self._store.commit(Revoke((await self.one(name, tenant_id)).key_id, actor, key_id))

    async def allow(self, name: str, tenant_id: str, new: Allowance, actor: str, key_id: str | None = None) -> KeyRow:
        """Replace the tools or jobs that a key may use. Raises NotFound, BadInput; Conflict if it cannot be limited."""
        tools, jobs = (None if globs is None else _json(globs) for globs in (new.tools, new.jobs))
        for field in ("tools", "jobs"):
            _check_globs(field, getattr(new, field) or ())
        row = await self.one(name, tenant_id)
        return await self._store.commit(SetAllowance(row.key_id, tools, jobs, actor, key_id))

    async def list(self, tenant_id: str = "", before: str = "", limit: int = 200) -> list[KeyRow]:
        """A page of at most `limit` keys, newest first. `before` is the last key id of the previous page. Raises BadInput."""
        if before:
            check_identifier(before, "before")
        values = {"tenant_id": tenant_id, "before": before, "most": limit}
        return records_of(KeyRow, await self._store.read(SQL["list_keys"], values))

    async def one(self, name: str, tenant_id: str = "") -> KeyRow:
        """The key with this id, name, secret or visible prefix of its secret. An active key takes precedence over revoked ones.

        Raises NotFound; BadInput for an invalid name, or if keys of several tenants have this name.
        """
        name = handle_of(name) or check_identifier(name, "the key's name")
        values = {"tenant_id": tenant_id, "name": name, "most": 50}
        rows = await self._store.read(SQL["read_key"], values)
        found = records_of(KeyRow, rows or await self._store.read(SQL["read_named_keys"], values))
        found = [row for row in found if row.revoked_at is None] or found[:1]
        if not found:
            raise NotFound(f"key {name}. `overnight keys list` lists keys")
        if len(found) > 1:
            raise BadInput(f"{name}: keys of several tenants have this name; give the key id, or select a tenant")
        return found[0]

    # ── provider keys ───────────────────────────────────────────────────────────────────────────────────────────────

    async def set_provider_key(
        self, tenant_id: str, provider: str, secret: str, actor: str, key_id: str | None = None
    ) -> ProviderKeyRow:
        """Store the encrypted provider key of a tenant; it replaces the previous one. Raises BadInput."""
        check_identifier(tenant_id, "the tenant")
        check_identifier(provider, "the provider")
        secret = secret.strip()
        if not secret:
            raise BadInput("the provider key is empty; pass it on standard input as one line")
        if len(secret) > MAX_SECRET_LENGTH or not (secret.isascii() and secret.isprintable()) or " " in secret:
            raise BadInput(
                f"invalid provider key: expected one line of up to {MAX_SECRET_LENGTH} visible ASCII characters"
            )
        master_id, sealed = self.masters.encrypt(secret, (tenant_id, provider))
        return await self._store.commit(
            SetProviderKey(
                tenant_id=tenant_id,
                provider=provider,
                master_id=master_id,
                sealed=sealed,
                actor=actor,
                caller_key_id=key_id,
            )
        )

    async def provider_keys(self, tenant_id: str = "") -> list[ProviderKeyRow]:
        """The encrypted provider keys of a tenant; "" lists all tenants."""
        values = {"tenant_id": tenant_id}
        return records_of(ProviderKeyRow, await self._store.read(SQL["list_provider_keys"], values))

    async def drop_provider_key(self, tenant_id: str, provider: str, actor: str, key_id: str | None = None) -> None:
        """Delete the provider key of a tenant. Raises NotFound, BadInput."""
        check_identifier(provider, "the provider")
        await self._store.commit(DropProviderKey(tenant_id, provider, actor, key_id))

    async def rotate_master(self, actor: str, others: SealedSecrets | None = None) -> tuple[str, int, int]:
        """Encrypt all provider keys again with a new master key. Returns its id, and how many provider keys and other secrets
        changed.

        `others` are the secrets of another package that the same master keys encrypt. Raises BadInput, DecryptionFailed.
        """
        used = {row.master_id for row in await self.provider_keys()}
        if others is not None:
            used |= await others.used_masters()
        count, before = 0, self.masters.first().master_id
        with self.masters.rotation(used) as master:
            # Where the environment gives the keys, the first one was put there before.
            old = ({before} if before != master.master_id else used) - {master.master_id}
            if old:
                await self._store.commit(RecordRotation(master.master_id, tuple(sorted(old)), actor))
            for row in await self.provider_keys():
                count += await self._store.commit(Reencrypt(row.tenant_id, row.provider, self.masters, actor))
            return master.master_id, count, await others.reseal(actor) if others is not None else 0


def bound_to(store: Store, token: str) -> KeyScope:
    """The agent and jobs that the key of this secret is limited to; no limits for another secret. Blocks the thread."""
    handle = handle_of(token)
    rows = store.read_blocking(SQL["read_key"], {"tenant_id": "", "name": handle}) if handle else []
    return virtual_key(records_of(KeyRow, rows)[0]).key_scope if rows else ALL_JOBS


def check_provider(name: str, known: Sequence[str]) -> None:
    """Raises BadInput for an unknown provider, whose key no call would use."""
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise BadInput(f"unknown provider {name[:40]!r}; {hint}")


def _check(new: NewKey) -> None:
    """Check the fields of a new key. Raises BadInput with the name of the field."""
    check_identifier(new.name, "name")
    if new.name.startswith((PREFIX, "key_")):
        raise BadInput(f"name: the prefixes {PREFIX} and key_ are reserved for secrets and ids; choose another name")
    for field in ("agent_id", "workflow"):
        value: str | None = getattr(new, field)
        if value is not None:
            check_identifier(value, field)
    unknown = [scope for scope in new.scopes if scope not in SCOPES and scope not in ROLES]
    if unknown or not new.scopes:
        what = f"unknown scope {unknown[0][:40]!r}" if unknown else "at least one is required"
        raise BadInput(f"scopes: {what}; known: {', '.join(SCOPES)}")
    for field in ("models", "routes", "tools", "jobs"):
        _check_globs(field, getattr(new, field))
    if new.agent_id and "reviews.decide" in new.scopes:
        raise BadInput(
            "scopes: a key that is limited to an agent cannot decide reviews; omit agent_id or reviews.decide"
        )
    limited = new.agent_id or new.workflow or new.models or new.routes or new.tools or new.jobs
    if limited and (unlimited := expand_scopes(new.scopes) & UNLIMITED_SCOPES):
        raise BadInput(
            f"scopes: {min(unlimited)} grants access to the whole tenant, so the key cannot be limited; omit the limits"
        )


def _check_globs(field: str, globs: Sequence[str]) -> None:
    if len(globs) > MAX_GLOBS:
        raise BadInput(f"{field}: {len(globs)} names; the maximum is {MAX_GLOBS}. Use globs such as gpt-*")
    for glob in globs:
        if not glob or len(glob) > MAX_GLOB_LENGTH or not (glob.isascii() and glob.isprintable()) or " " in glob:
            raise BadInput(f"{field}: {glob[:40]!r} is not a name or a glob such as gpt-*")
        if field in _PLAIN and "[" in glob:
            raise BadInput(f"{field}: {glob[:40]!r}: only * and ? are wildcards; names have no brackets")


def _json(words: Sequence[str]) -> str:
    return msgspec.json.encode(words).decode()


def _us(span_ms: int | None) -> int | None:
    return span_ms * 1000 if span_ms is not None else None
