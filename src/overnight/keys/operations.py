"""What people and the API do to keys. Everything is within one tenant; only the command line may leave the tenant open ("")."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated

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
    NoteMaster,
    Reseal,
    Revoke,
    Rotate,
    SetAllowance,
    SetProviderKey,
)
from .master_keys import Masters
from .rows import SQL, KeyRow, ProviderKeyRow, virtual_key
from .tokens import PREFIX, handle_of, mint

DAY_MS = 86_400_000
LONGEST_MS = 3650 * DAY_MS
_PLAIN = ("tools", "jobs")
MOST_GLOBS, LONGEST_GLOB, LONGEST_SECRET = 100, 256, 4096
Span = Annotated[int, msgspec.Meta(ge=1, le=LONGEST_MS)]


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key is to be. `models`, `routes`, `tools` and `jobs` are names or globs; empty allow all.
    `expires_in_ms` None: never."""

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
    """How long the old secret stays valid (0: not at all), and how long the key lives from now (None: as long as before)."""

    overlap_ms: Annotated[int, msgspec.Meta(ge=0, le=90 * DAY_MS)] = DAY_MS
    expires_in_ms: Span | None = None


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """The tools and jobs that a key may use, as names or globs; empty allow all, None leaves what it may."""

    tools: tuple[str, ...] | None = None
    jobs: tuple[str, ...] | None = None


class Keys:
    """The keys of a store. A secret is given back once, by `create` and `rotate`. `key_id`: the API key of the request, for the
    audit entry; None for the command line."""

    def __init__(self, store: Store, masters: Masters | None = None) -> None:
        self._store, self._masters = store, masters or Masters()

    async def create(self, tenant_id: str, new: NewKey, actor: str, key_id: str | None = None) -> tuple[KeyRow, str]:
        """(the key, its secret). Raises BadInput, Conflict where the name is taken."""
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
        """(the key, its new secret). Raises NotFound, Conflict where it is revoked or expired."""
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
        """Raises NotFound."""
        return await self._store.commit(Revoke((await self.one(name, tenant_id)).key_id, actor, key_id))

    async def allow(self, name: str, tenant_id: str, new: Allowance, actor: str) -> KeyRow:
        """Replace the tools or jobs that a key may use. Raises NotFound, BadInput, Conflict where it cannot be limited."""
        tools, jobs = (None if globs is None else _json(globs) for globs in (new.tools, new.jobs))
        for field in ("tools", "jobs"):
            _check_globs(field, getattr(new, field) or ())
        return await self._store.commit(SetAllowance((await self.one(name, tenant_id)).key_id, tools, jobs, actor))

    async def list(self, tenant_id: str = "", before: str = "", most: int = 200) -> list[KeyRow]:
        """Newest first; `before` is the key_id that the page before ended with. Raises BadInput."""
        if before:
            check_identifier(before, "before")
        values = {"tenant_id": tenant_id, "before": before, "most": most}
        return records_of(KeyRow, await self._store.read(SQL["list_keys"], values))

    async def one(self, name: str, tenant_id: str = "") -> KeyRow:
        """By its id, its name, or the beginning that is shown of its secret; of equal names the one that is not revoked. Raises
        NotFound, BadInput where several tenants have one of that name, or it can be none."""
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

    # ── keys of providers ───────────────────────────────────────────────────────────────────────────────────────────

    async def set_provider_key(
        self, tenant_id: str, provider: str, secret: str, actor: str, key_id: str | None = None
    ) -> ProviderKeyRow:
        """Keep it sealed, in place of the one before. Raises BadInput."""
        check_identifier(tenant_id, "the tenant")
        check_identifier(provider, "the provider")
        secret = secret.strip()
        if not secret:
            raise BadInput("the provider key is empty; send it on standard input, on one line")
        if len(secret) > LONGEST_SECRET or not (secret.isascii() and secret.isprintable()) or " " in secret:
            raise BadInput(
                f"invalid provider key: expected one line of up to {LONGEST_SECRET} visible ASCII characters"
            )
        master_id, sealed = self._masters.seal(secret, (tenant_id, provider))
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
        values = {"tenant_id": tenant_id}
        return records_of(ProviderKeyRow, await self._store.read(SQL["list_provider_keys"], values))

    async def drop_provider_key(self, tenant_id: str, provider: str, actor: str, key_id: str | None = None) -> None:
        """Raises NotFound, BadInput."""
        check_identifier(provider, "the provider")
        await self._store.commit(DropProviderKey(tenant_id, provider, actor, key_id))

    async def rotate_master(self, actor: str) -> tuple[str, int]:
        """(the id of the master key that seals now, how many secrets were sealed anew). Raises BadInput, SealedShut."""
        used = {row.master_id for row in await self.provider_keys()}
        count, before = 0, self._masters.first().master_id
        with self._masters.turning(used) as master:
            # Where the environment gives the keys, the first one was put there before.
            old = ({before} if before != master.master_id else used) - {master.master_id}
            if old:
                await self._store.commit(NoteMaster(master.master_id, tuple(sorted(old)), actor))
            for row in await self.provider_keys():
                count += await self._store.commit(Reseal(row.tenant_id, row.provider, self._masters, actor))
        return master.master_id, count


def bound_to(store: Store, token: str) -> KeyScope:
    """What the key of this secret is bound to; nothing, where it is no key of ours. Blocks: for threads without a loop."""
    handle = handle_of(token)
    rows = store.read_blocking(SQL["read_key"], {"tenant_id": "", "name": handle}) if handle else []
    return virtual_key(records_of(KeyRow, rows)[0]).key_scope if rows else ALL_JOBS


def known_provider(name: str, known: Sequence[str]) -> None:
    """Raises BadInput: a key of a provider that no call goes to would wait there for nobody."""
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise BadInput(f"unknown provider {name[:40]!r}; {hint}")


def _check(new: NewKey) -> None:
    """Raises BadInput, naming the field."""
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
        raise BadInput("scopes: a key that is bound to an agent decides no reviews; omit agent_id or reviews.decide")
    limited = new.agent_id or new.workflow or new.models or new.routes or new.tools or new.jobs
    if limited and (unlimited := expand_scopes(new.scopes) & UNLIMITED_SCOPES):
        raise BadInput(
            f"scopes: a key with {min(unlimited)} reaches all of its tenant, so it cannot be limited; omit the limits"
        )


def _check_globs(field: str, globs: Sequence[str]) -> None:
    if len(globs) > MOST_GLOBS:
        raise BadInput(f"{field}: {len(globs)} names; the maximum is {MOST_GLOBS}. Use globs such as gpt-*")
    for glob in globs:
        if not glob or len(glob) > LONGEST_GLOB or not (glob.isascii() and glob.isprintable()) or " " in glob:
            raise BadInput(f"{field}: {glob[:40]!r} is neither a name nor a glob such as gpt-*")
        if field in _PLAIN and "[" in glob:
            raise BadInput(f"{field}: {glob[:40]!r}: only * and ? are wildcards; names have no brackets")


def _json(words: Sequence[str]) -> str:
    return msgspec.json.encode(words).decode()


def _us(span_ms: int | None) -> int | None:
    return span_ms * 1000 if span_ms is not None else None
