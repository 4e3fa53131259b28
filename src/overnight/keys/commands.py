"""The transactions on keys. Each change takes the next number under the lock of one row, so that readers miss no change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from overnight.domain import INSTANCE_SCOPES, BadInput, Conflict, NotFound, ordered_scopes
from overnight.ledger import write_audit
from overnight.store import Unit

from .master_keys import MasterKeys
from .rows import (
    CHANGE,
    KEY,
    NAME,
    PROVIDER_KEY,
    SQL,
    KeyRow,
    NameRow,
    ProviderKeyRow,
    audited_key,
    audited_provider_key,
)
from .tokens import Minted

Locks = list[tuple[Any, Any]]
CHANGE_ROW_ID = 1
UNLIMITED_SCOPES = frozenset({"keys.admin", *INSTANCE_SCOPES})
"""A key with one of these scopes has access to all data of its tenant, so it cannot be limited."""


def _next_change(unit: Unit) -> int:
    row = unit.get(CHANGE, CHANGE_ROW_ID)
    if row is None:
        raise BadInput("the table key_change has no row; insert it with: INSERT INTO key_change VALUES (1, 0)")
    row.number += 1
    unit.change(CHANGE, row)
    return row.number


def _locked_key(unit: Unit, key_id: str) -> KeyRow:
    row = unit.get(KEY, key_id)
    if row is None:
        raise NotFound(f"key {key_id}")
    return row


def _write_audit(
    unit: Unit, action: str, row: KeyRow, actor: str, key_id: str | None, before: Mapping[str, Any] | None
) -> None:
    write_audit(
        unit,
        action,
        row.key_id,
        tenant_id=row.tenant_id,
        actor=actor,
        key_id=key_id,
        before=before,
        after=audited_key(row),
    )


class Create(msgspec.Struct):
    """Command: create a key. Raises Conflict if the tenant has another key of this name that is not revoked."""

    row: KeyRow
    expires_in_us: int | None
    caller_key_id: str | None = None

    def locks(self) -> Locks:
        return [(CHANGE, CHANGE_ROW_ID), (KEY, self.row.key_id), (NAME, (self.row.tenant_id, self.row.name))]

    def decide(self, unit: Unit) -> KeyRow:
        row = msgspec.structs.replace(self.row, created_at=unit.now)
        if unit.get(NAME, (row.tenant_id, row.name)) is not None:
            raise Conflict(
                f"key {row.name} of {row.tenant_id} already exists; rotate it, revoke it, or choose another name"
            )
        if self.expires_in_us is not None:
            row.expires_at = unit.now + self.expires_in_us
        row.changed = _next_change(unit)
        unit.insert(KEY, row)
        unit.cache(NAME, NameRow(row.tenant_id, row.name))
        if (row.tools, row.jobs) != ("[]", "[]"):
            unit.append(SQL["set_allowance"], row)
        _write_audit(unit, "key.created", row, row.created_by, self.caller_key_id, None)
        return row


class Rotate(msgspec.Struct):
    """Command: replace the secret of a key. Raises NotFound; Conflict for a revoked or expired key.

    The previous secret stays valid for `overlap_us`; any earlier secret expires at once. `expires_in_us` replaces the
    lifetime of the key, from now; None leaves it unchanged.
    """

    key_id: str
    minted: Minted
    overlap_us: int
    expires_in_us: int | None
    actor: str
    caller_key_id: str | None = None

    def locks(self) -> Locks:
        return [(CHANGE, CHANGE_ROW_ID), (KEY, self.key_id)]

    def decide(self, unit: Unit) -> KeyRow:
        row = _locked_key(unit, self.key_id)
        if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= unit.now):
            raise Conflict(f"{row.name} is {'revoked' if row.revoked_at else 'expired'}: create a new key instead")
        before = audited_key(row)
        row.previous_handle, row.previous_digest = row.handle, row.digest
        until = unit.now + self.overlap_us
        row.previous_until = until if row.expires_at is None else min(until, row.expires_at)
        row.handle, row.digest = self.minted.handle, self.minted.digest
        if self.expires_in_us is not None:
            row.expires_at = unit.now + self.expires_in_us
        row.rotated_at, row.rotated_by, row.changed = unit.now, self.actor, _next_change(unit)
        unit.change(KEY, row)
        _write_audit(unit, "key.rotated", row, self.actor, self.caller_key_id, before)
        return row


class Revoke(msgspec.Struct):
    """Command: revoke a key permanently. A revoked key stays unchanged. Raises NotFound."""

    key_id: str
    actor: str
    caller_key_id: str | None = None

    def locks(self) -> Locks:
        return [(CHANGE, CHANGE_ROW_ID), (KEY, self.key_id)]

    def decide(self, unit: Unit) -> KeyRow:
        row = _locked_key(unit, self.key_id)
        if row.revoked_at is None:
            before = audited_key(row)
            row.revoked_at, row.revoked_by, row.changed = unit.now, self.actor, _next_change(unit)
            unit.change(KEY, row)
            _write_audit(unit, "key.revoked", row, self.actor, self.caller_key_id, before)
        return row


class SetAllowance(msgspec.Struct):
    """Command: replace the globs of tools and jobs of a key; None leaves them unchanged.

    Raises Conflict for a revoked key, and for a key whose scopes allow no limits. The scopes are rewritten with their
    current names. Processes of earlier versions, which ignore these limits, do not know these names and grant nothing.
    """

    key_id: str
    tools: str | None
    jobs: str | None
    actor: str
    caller_key_id: str | None = None

    def locks(self) -> Locks:
        return [(CHANGE, CHANGE_ROW_ID), (KEY, self.key_id)]

    def decide(self, unit: Unit) -> KeyRow:
        row = _locked_key(unit, self.key_id)
        scopes = ordered_scopes(msgspec.json.decode(row.scopes, type=list[str]))
        if row.revoked_at is not None:
            raise Conflict(f"{row.name} is revoked: create a new key instead")
        if unlimited := UNLIMITED_SCOPES & set(scopes):
            raise Conflict(f"{row.name} has the scope {min(unlimited)}, so it cannot be limited")
        before = audited_key(row)
        row.tools, row.jobs = self.tools or row.tools, self.jobs or row.jobs
        row.scopes, row.changed = msgspec.json.encode(scopes).decode(), _next_change(unit)
        unit.change(KEY, row)
        unit.append(SQL["set_allowance"], row)
        _write_audit(unit, "key.allowance_changed", row, self.actor, self.caller_key_id, before)
        return row


class RecordUses(msgspec.Struct):
    """Command: record the times of last use by key id. It takes no change number, because other processes do not need it."""

    uses: Mapping[str, int]

    def locks(self) -> Locks:
        return [(KEY, key_id) for key_id in self.uses]

    def decide(self, unit: Unit) -> None:
        for key_id, at in self.uses.items():
            row = unit.get(KEY, key_id)
            if row is not None and at > (row.last_used_at or 0):
                row.last_used_at = at
                unit.touch(KEY, row)


class SetProviderKey(msgspec.Struct):
    """Command: store the encrypted provider key of a tenant. It replaces the previous one."""

    tenant_id: str
    provider: str
    master_id: str
    sealed: bytes
    actor: str
    caller_key_id: str | None = None

    def locks(self) -> Locks:
        return [(CHANGE, CHANGE_ROW_ID), (PROVIDER_KEY, (self.tenant_id, self.provider))]

    def decide(self, unit: Unit) -> ProviderKeyRow:
        number = _next_change(unit)
        row = unit.get(PROVIDER_KEY, (self.tenant_id, self.provider))
        fresh = ProviderKeyRow(
            tenant_id=self.tenant_id,
            provider=self.provider,
            master_id=self.master_id,
            sealed=self.sealed,
            set_by=self.actor,
            set_at=unit.now,
            changed=number,
        )
        _audit_provider(unit, "provider_key.set", self, row, fresh)
        if row is None:
            unit.insert(PROVIDER_KEY, fresh)
            return fresh
        row.master_id, row.sealed, row.set_by = fresh.master_id, fresh.sealed, fresh.set_by
        row.set_at, row.changed = fresh.set_at, number
        unit.change(PROVIDER_KEY, row)
        return row


def _audit_provider(
    unit: Unit,
    action: str,
    change: SetProviderKey | DropProviderKey | Reencrypt,
    before: ProviderKeyRow | None,
    after: ProviderKeyRow | None,
) -> None:
    write_audit(
        unit,
        action,
        change.provider,
        tenant_id=change.tenant_id,
        actor=change.actor,
        key_id=change.caller_key_id,
        before=audited_provider_key(before),
        after=audited_provider_key(after),
    )


class DropProviderKey(msgspec.Struct):
    """Command: delete the provider key of a tenant. Raises NotFound."""

    tenant_id: str
    provider: str
    actor: str
    caller_key_id: str | None = None

    def locks(self) -> Locks:
        return [(CHANGE, CHANGE_ROW_ID), (PROVIDER_KEY, (self.tenant_id, self.provider))]

    def decide(self, unit: Unit) -> None:
        row = unit.get(PROVIDER_KEY, (self.tenant_id, self.provider))
        if row is None or row.sealed is None:
            raise NotFound(f"provider key of {self.tenant_id} for {self.provider}")
        _audit_provider(unit, "provider_key.deleted", self, row, None)
        row.sealed, row.set_by, row.set_at, row.changed = None, self.actor, unit.now, _next_change(unit)
        unit.change(PROVIDER_KEY, row)


class RecordRotation(msgspec.Struct):
    """Command: write the audit entry of a rotation of master keys, which no table holds.

    It is written before the provider keys are encrypted again.
    """

    master_id: str
    before: tuple[str, ...]
    actor: str

    def locks(self) -> Locks:
        return []

    def decide(self, unit: Unit) -> None:
        before, after = {"master_id": ", ".join(self.before)}, {"master_id": self.master_id}
        action, subject = "master_key.rotated", self.master_id
        write_audit(unit, action, subject, tenant_id="", actor=self.actor, before=before, after=after)


class Reencrypt(msgspec.Struct):
    """Command: encrypt a provider key again with the first master key. Outcome: whether it changed. Raises DecryptionFailed."""

    tenant_id: str
    provider: str
    masters: MasterKeys
    actor: str
    caller_key_id: str | None = None

    def locks(self) -> Locks:
        return [(CHANGE, CHANGE_ROW_ID), (PROVIDER_KEY, (self.tenant_id, self.provider))]

    def decide(self, unit: Unit) -> bool:
        row = unit.get(PROVIDER_KEY, (self.tenant_id, self.provider))
        if row is None or row.sealed is None or row.master_id == self.masters.first().master_id:
            return False
        bound_to, before = (row.tenant_id, row.provider), msgspec.structs.replace(row)
        secret = self.masters.decrypt(row.master_id, row.sealed, bound_to)
        row.master_id, row.sealed = self.masters.encrypt(secret, bound_to)
        row.changed = _next_change(unit)
        unit.change(PROVIDER_KEY, row)
        _audit_provider(unit, "provider_key.resealed", self, before, row)
        return True
