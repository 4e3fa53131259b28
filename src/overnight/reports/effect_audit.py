"""The audit of effects: every effect of tenants in the order of time, read one page at a time."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from overnight.effects import EffectRow
from overnight.ledger import Ledger
from overnight.store import records_of

from .entries import TreeJob, entry_of
from .public import public_effect
from .queries import PAGE, SQL
from .records import EffectEntry

_COLUMNS = len(EffectRow.__struct_fields__)


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which effects are listed; empty fields match all.

    `tenant_id`: "" is every tenant. `about`: the record. `person`: who decided one of its reviews. `since`: when the effect was
    claimed or asked for, in microseconds.
    """

    tenant_id: str = ""
    tool: str = ""
    about: str = ""
    person: str = ""
    agent_id: str = ""
    job_id: str = ""
    state: str = ""
    since: int = 0


class AuditedEffect(msgspec.Struct, kw_only=True):
    """One effect with what an auditor needs beside its receipt. `people` are those who decided its reviews."""

    entry: EffectEntry
    tenant_id: str
    agent_id: str | None
    workflow: str | None
    external_id: str | None
    key_id: str | None
    tool_class: str | None
    arguments_sha256: str
    people: list[str]

    def public(self) -> dict[str, Any]:
        """As JSON. It has no content: neither arguments nor reasons."""
        shown = public_effect(self.entry, with_content=False)
        for name in ("how", "error_class", "waits_for", "duplicates", "decided_by", "replayed"):
            del shown[name]  # only the log tells
        return shown | {
            "tenant_id": self.tenant_id,
            "agent_id": self.agent_id,
            "workflow": self.workflow,
            "external_id": self.external_id,
            "key_id": self.key_id,
            "tool_class": self.tool_class,
            "arguments_sha256": self.arguments_sha256,
            "people": self.people,
        }


async def audit_effects(ledger: Ledger, wanted: AuditFilter) -> AsyncIterator[AuditedEffect]:
    """The effects that fit, oldest first, one tenant after another. Holds one page of 500 in memory."""
    tenants = [wanted.tenant_id]
    if not wanted.tenant_id:
        tenants = [row[0] for row in await ledger.store.read(SQL["list_effect_tenants"], {})]
    for tenant_id in tenants:
        at, key = 0, ""
        while True:
            values = {"tenant_id": tenant_id, "since": wanted.since, "after_at": at, "after_key": key, "most": PAGE}
            rows = await ledger.store.read(SQL["list_audited_effects"], values)
            for row, effect in zip(rows, records_of(EffectRow, (row[:_COLUMNS] for row in rows)), strict=True):
                at, key = effect.claimed_at, effect.effect_key
                agent_id, workflow, external_id, runtime, people = row[_COLUMNS:]
                entry = entry_of(effect, TreeJob(effect.job_id, "", runtime, None))
                found = AuditedEffect(
                    entry=entry,
                    tenant_id=tenant_id,
                    agent_id=agent_id,
                    workflow=workflow,
                    external_id=external_id,
                    key_id=effect.key_id,
                    tool_class=effect.tool_class,
                    arguments_sha256=effect.arguments_sha256,
                    people=msgspec.json.decode(people, type=list[str]),
                )
                if _fits(found, wanted):
                    yield found
            if len(rows) < PAGE:
                break


def _fits(found: AuditedEffect, wanted: AuditFilter) -> bool:
    entry = found.entry
    return (
        wanted.tool in {"", entry.tool}
        and wanted.about in {"", entry.about}
        and wanted.state in {"", entry.state}
        and wanted.job_id in {"", entry.job_id}
        and wanted.agent_id in {"", found.agent_id}
        and (not wanted.person or wanted.person in found.people)
    )
