"""Audit entries: changes of keys, budgets, circuits and the brain, which are in no job's log. Each is written in the
transaction of its change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from overnight.domain import iso_utc, new_id
from overnight.store import Store, Unit, records_of

from .rows import SQL


class AuditEntry(msgspec.Struct, frozen=True):
    """One change. `at` is microseconds UTC; `key_id` is the API key of the request, None for the command line.

    `action` is a past fact such as key.created; `subject` is the id of what was changed. `detail` is JSON:
    `{"before": {…}, "after": {…}}` with the changed fields, without secrets.
    """

    audit_id: str
    tenant_id: str
    at: int
    actor: str
    key_id: str | None
    action: str
    subject: str
    detail: str

    def public(self) -> dict[str, Any]:
        """In public JSON names."""
        return {
            "audit_id": self.audit_id,
            "tenant_id": self.tenant_id,
            "at": iso_utc(self.at),
            "actor": self.actor,
            "key_id": self.key_id,
            "action": self.action,
            "subject": self.subject,
            **msgspec.json.decode(self.detail),
        }


def write_audit(
    unit: Unit,
    action: str,
    subject: str,
    *,
    tenant_id: str,
    actor: str,
    key_id: str | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Write the entry of a change. Of `before` and `after`, the fields that differ are kept."""
    old, new = before or {}, after or {}
    changed = [name for name in (*old, *(name for name in new if name not in old)) if old.get(name) != new.get(name)]
    detail = {
        "before": {name: old[name] for name in changed if name in old},
        "after": {name: new[name] for name in changed if name in new},
    }
    entry = AuditEntry(
        audit_id=new_id("audit"),
        tenant_id=tenant_id,
        at=unit.now,
        actor=actor,
        key_id=key_id,
        action=action,
        subject=subject,
        detail=msgspec.json.encode(detail).decode(),
    )
    unit.append(SQL["insert_audit_entry"], entry)


async def list_audit(
    store: Store, tenant_id: str = "", since: int = 0, limit: int = 50, *, instance: bool = False
) -> list[AuditEntry]:
    """The newest entries since a time in microseconds, newest first. An empty tenant lists all tenants'.

    `instance` adds the changes of the whole instance, such as those of the brain and of master keys.
    """
    values = {"tenant_id": tenant_id, "since": since, "most": limit, "instance": "" if instance else tenant_id}
    return records_of(AuditEntry, await store.read(SQL["list_audit_entries"], values))
