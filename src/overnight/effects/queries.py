"""Reads of effects, and their public form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from overnight.domain import ALL_JOBS, KeyScope, NotFound, iso_utc
from overnight.domain.json_text import decode_for_display
from overnight.store import Store, records_of

from .rows import SQL, EffectRow


class EffectFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which effects of a tenant to list. Empty fields match all. `before`: the last effect id of the previous page.
    `key_scope`: the jobs that the API key can access."""

    tenant_id: str
    job_id: str = ""
    state: str = ""
    tool: str = ""
    before: str = ""
    most: int = 50
    key_scope: KeyScope = ALL_JOBS


class EffectPlace(NamedTuple):
    """Where an effect is: the locks of the commands that change it."""

    tenant_id: str
    effect_key: str
    job_id: str


async def list_effects(store: Store, wanted: EffectFilter) -> list[EffectRow]:
    """A page of effects, newest first."""
    values = {name: getattr(wanted, name) for name in ("tenant_id", "job_id", "state", "tool", "before", "most")}
    scope = wanted.key_scope
    values |= {"agent_id": scope.agent_id or "", "workflow": scope.workflow or ""}
    values["names"] = msgspec.json.encode(scope.jobs).decode()
    return records_of(EffectRow, await store.read(SQL["list_effects"], values))


async def read_effect(
    store: Store, effect_id: str, tenant_id: str, key_scope: KeyScope = ALL_JOBS, *, until: float | None = None
) -> EffectRow:
    """One effect by its id. Raises NotFound if there is none in this tenant, or its job is outside of `key_scope`."""
    rows = await store.read(SQL["read_effect"], {"effect_id": effect_id, "tenant_id": tenant_id}, until=until)
    if rows:
        *columns, agent_id, workflow, name = rows[0]
        if key_scope.allows(agent_id, workflow, name):
            return records_of(EffectRow, [columns])[0]
    raise NotFound(f"effect {effect_id}")


async def read_effect_states(store: Store, effect_ids: Iterable[str]) -> dict[str, str]:
    """The states of effects by their ids, in one query."""
    values = {"effect_ids": msgspec.json.encode(list(effect_ids)).decode()}
    return dict(await store.read(SQL["list_effect_states"], values))


async def read_arguments(store: Store, row: EffectRow) -> Any:
    """The arguments of the last claim. None if there was none, or they are erased."""
    if row.called_seq is None:
        return None
    rows = await store.read(SQL["read_arguments"], {"job_id": row.job_id, "seq": row.called_seq})
    return decode_for_display(bytes(rows[0][0])) if rows and rows[0][0] is not None else None


def public_effect(row: EffectRow, *, with_content: bool = True) -> dict[str, Any]:
    """The effect as JSON with public names. Without content: no result, error or client's key.

    `found_by` says how its outcome is known; only a committed effect has it. `waits_for` is the review that it waits for.
    """
    shown: dict[str, Any] = {
        "effect_id": row.effect_id,
        "job_id": row.job_id,
        "tool": row.tool,
        "class": row.tool_class,
        "contract": row.contract,
        "state": row.state,
        "found_by": row.source if row.state == "committed" else None,
        "provider_id": row.provider_id if row.state == "committed" else None,
        "attempt": row.attempt,
        "arguments_sha256": row.done_sha256 or row.arguments_sha256,
        "waits_for": row.review_id,
        "claimed_at": None
        if row.called_seq is None and row.state in {"waiting", "expired"}
        else iso_utc(row.claimed_at),
        "expires_at": iso_utc(row.expires_at) if row.state == "claimed" and row.expires_at else None,
        "settled_at": iso_utc(row.settled_at) if row.settled_at else None,
    }
    if with_content:
        shown["key"], shown["error"] = row.client_key, row.error
    return shown
