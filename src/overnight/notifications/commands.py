"""The transactions on addresses: register, rotate the signing secret, remove, seal again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from overnight.domain import BadInput, Conflict, NotFound
from overnight.keys import MasterKeys
from overnight.ledger import CURSOR, CursorRow, FeedPosition, write_audit
from overnight.store import Unit

from .rows import ADDRESS, SQL, AddressRow, Secrets, SigningSecret, public_address

SINK = "notifications"
"""The name of the cursor, for good."""
MAX_ADDRESSES = 50
Locks = list[tuple[Any, Any]]


def _audit(
    unit: Unit, action: str, row: AddressRow, actor: str, key_id: str | None, before: Mapping[str, Any] | None
) -> None:
    write_audit(
        unit,
        f"notification_address.{action}",
        row.address_id,
        tenant_id=row.tenant_id,
        actor=actor,
        key_id=key_id,
        before=before,
        after=_audited(row),
    )


def _audited(row: AddressRow) -> dict[str, Any]:
    shown = public_address(row)
    del shown["created_at"], shown["created_by"], shown["address_id"], shown["tenant_id"]
    return shown | {"kinds": list(shown["kinds"])} | ({"to": list(shown["to"])} if "to" in shown else {})


def locked_address(unit: Unit, address_id: str) -> AddressRow:
    row = unit.get(ADDRESS, address_id)
    if row is None or row.state == "removed":
        raise NotFound(f"address {address_id}")
    return row


class AddAddress(msgspec.Struct):
    """Command: register an address. With the first one of the ledger, the sink begins to read at `place`, so that reviews of
    before are not sent. Raises Conflict if the tenant has an address of this name; BadInput if it has too many."""

    row: AddressRow
    place: FeedPosition
    caller_key_id: str | None = None

    def locks(self) -> Locks:
        return [(ADDRESS, self.row.address_id), (CURSOR, SINK)]

    def decide(self, unit: Unit) -> AddressRow:
        row = msgspec.structs.replace(self.row, created_at=unit.now, changed_at=unit.now)
        present = unit.query(SQL["list_addresses"], {"tenant_id": row.tenant_id})
        if any(each[2] == row.name for each in present):
            raise Conflict(f"address {row.name} of {row.tenant_id} already exists; remove it, or choose another name")
        if len(present) >= MAX_ADDRESSES:
            raise BadInput(f"{row.tenant_id} has {len(present)} addresses, which is the maximum; remove one")
        if unit.get(CURSOR, SINK) is None:
            position, job_id, seq = self.place
            unit.insert(CURSOR, CursorRow(SINK, position, job_id, seq, owner=None, beat=0))
        unit.insert(ADDRESS, row)
        _audit(unit, "created", row, row.created_by, self.caller_key_id, None)
        return row


class RotateSecret(msgspec.Struct):
    """Command: sign with a new secret. The previous one signs too for `overlap_us`. Raises NotFound; Conflict for an address
    without signatures."""

    address_id: str
    secret: str
    overlap_us: int
    masters: MasterKeys
    actor: str
    caller_key_id: str | None = None

    def locks(self) -> Locks:
        return [(ADDRESS, self.address_id)]

    def decide(self, unit: Unit) -> AddressRow:
        row = locked_address(unit, self.address_id)
        if row.kind != "webhook" or row.sealed is None:
            raise Conflict(f"{row.name} is of kind {row.kind}, which has no signing secret; remove it and add it again")
        before = _audited(row)
        held = msgspec.json.decode(self.masters.decrypt(row.master_id, row.sealed, row.bound_to), type=Secrets)
        signing = [SigningSecret(self.secret)]
        if self.overlap_us and held.signing:
            signing.append(SigningSecret(held.signing[0].secret, unit.now + self.overlap_us))
        seal(row, msgspec.structs.replace(held, signing=tuple(signing)), self.masters)
        row.state, row.changed_at = "active", unit.now
        unit.change(ADDRESS, row)
        _audit(unit, "rotated", row, self.actor, self.caller_key_id, before)
        return row


class RemoveAddress(msgspec.Struct):
    """Command: remove an address and its secrets. Its links end. Raises NotFound."""

    address_id: str
    actor: str
    caller_key_id: str | None = None

    def locks(self) -> Locks:
        return [(ADDRESS, self.address_id)]

    def decide(self, unit: Unit) -> AddressRow:
        row = locked_address(unit, self.address_id)
        before = _audited(row)
        row.state, row.sealed, row.changed_at = "removed", None, unit.now
        unit.change(ADDRESS, row)
        _audit(unit, "removed", row, self.actor, self.caller_key_id, before)
        return row


class RecordTest(msgspec.Struct):
    """Command: write the audit entry of a sample that was sent."""

    row: AddressRow
    outcome: str
    actor: str
    caller_key_id: str | None = None

    def locks(self) -> Locks:
        return []

    def decide(self, unit: Unit) -> None:
        write_audit(
            unit,
            "notification_address.tested",
            self.row.address_id,
            tenant_id=self.row.tenant_id,
            actor=self.actor,
            key_id=self.caller_key_id,
            after={"outcome": self.outcome},
        )


class SealAgain(msgspec.Struct):
    """Command: encrypt the secrets of an address with the first master key. Outcome: whether they changed."""

    address_id: str
    masters: MasterKeys
    actor: str

    def locks(self) -> Locks:
        return [(ADDRESS, self.address_id)]

    def decide(self, unit: Unit) -> bool:
        row = unit.get(ADDRESS, self.address_id)
        if row is None or row.sealed is None or row.master_id == self.masters.first().master_id:
            return False
        before = {"master_id": row.master_id}
        secrets = msgspec.json.decode(self.masters.decrypt(row.master_id, row.sealed, row.bound_to), type=Secrets)
        seal(row, secrets, self.masters)
        unit.change(ADDRESS, row)
        write_audit(
            unit,
            "notification_address.resealed",
            row.address_id,
            tenant_id=row.tenant_id,
            actor=self.actor,
            before=before,
            after={"master_id": row.master_id},
        )
        return True


def seal(row: AddressRow, secrets: Secrets, masters: MasterKeys) -> None:
    """Put the encrypted secrets into the row."""
    row.master_id, row.sealed = masters.encrypt(msgspec.json.encode(secrets).decode(), row.bound_to)
