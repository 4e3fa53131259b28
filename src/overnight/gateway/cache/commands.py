"""The transactions of the exact cache: claim a question, store its answer or release it, renew leases, delete expired entries."""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec

from overnight.domain import month_of
from overnight.ledger import LEDGER_SQL, parse_reference, recorded
from overnight.store import Unit

from .rows import ENTRY, SQL, EntryRow

LEASE_US = 3_000_000
"""A leader renews its lease every second. A leader that was killed is replaced after this time."""

KEPT_US = 7 * 86_400_000_000
"""How long an expired answer is kept, for routes whose degraded answer is an expired one."""

BATCH = 500

Key = tuple[str, bytes]
"""(tenant, key of the question)."""


class ClaimOutcome(Enum):
    """The outcome of a claim: this call leads, another call leads, another call of the same job leads, or an answer exists."""

    LEADS = 1
    FOLLOWS = 2
    REPEATS = 3
    ANSWERED = 4


class ClaimQuestion(msgspec.Struct, frozen=True):
    """Claim a question for this call, the `leader`: other calls with the same question wait for its answer."""

    key: Key
    leader: str
    leader_job: str

    def locks(self) -> list[tuple[Any, Any]]:
        return [(ENTRY, self.key)]

    def decide(self, unit: Unit) -> ClaimOutcome:
        row = unit.get(ENTRY, self.key)
        if row is not None:
            if row.expires_at > unit.now:
                if _is_stored(unit, row):
                    return ClaimOutcome.ANSWERED
                row.job_id, row.seq, row.month, row.expires_at = None, None, None, 0
            if row.leader is not None and row.lease_until > unit.now:
                return ClaimOutcome.REPEATS if row.leader_job == self.leader_job else ClaimOutcome.FOLLOWS
        lead = row or EntryRow(tenant_id=self.key[0], key=self.key[1])
        lead.leader, lead.leader_job, lead.lease_until = self.leader, self.leader_job, unit.now + LEASE_US
        if row is None:
            unit.insert(ENTRY, lead)
        else:
            unit.change(ENTRY, lead)
        return ClaimOutcome.LEADS


def _is_stored(unit: Unit, row: EntryRow) -> bool:
    """Whether the answer is still in the ledger. Called only after a lookup has not found it."""
    values = {"job_id": row.job_id, "seq": row.seq, "month": row.month, "tenant_id": row.tenant_id}
    found = unit.query(SQL["read_answer"], values)
    if not found:
        return False
    answer = recorded(row.job_id or "", found[0])
    if answer.content is not None or answer.facts.output_ref is None:
        return answer.content is not None
    _, month, digest = parse_reference(answer.facts.output_ref)
    return bool(unit.query(LEDGER_SQL["read_blob"], {"tenant_id": row.tenant_id, "month": month, "hash": digest}))


class KeepAnswer(msgspec.Struct, frozen=True):
    """Store the recorded answer of a question. The first answer stays until it expires."""

    key: Key
    leader: str
    job_id: str
    seq: int
    answered_at: int
    ttl_us: int

    def locks(self) -> list[tuple[Any, Any]]:
        return [(ENTRY, self.key)]

    def decide(self, unit: Unit) -> None:
        row = unit.get(ENTRY, self.key)
        if row is not None and row.expires_at > unit.now:
            _release(unit, row, self.leader)
            return
        entry = row or EntryRow(tenant_id=self.key[0], key=self.key[1])
        entry.job_id, entry.seq, entry.month = self.job_id, self.seq, month_of(self.answered_at)
        until = self.answered_at + self.ttl_us
        entry.expires_at, entry.kept_until = until, max(until, self.answered_at + KEPT_US)
        if entry.leader == self.leader:
            entry.leader, entry.leader_job, entry.lease_until = None, None, 0
        if row is None:
            unit.insert(ENTRY, entry)
        else:
            unit.change(ENTRY, entry)


class ReleaseQuestion(msgspec.Struct, frozen=True):
    """Release a question whose leader has no answer to store: the next call may lead."""

    key: Key
    leader: str

    def locks(self) -> list[tuple[Any, Any]]:
        return [(ENTRY, self.key)]

    def decide(self, unit: Unit) -> None:
        row = unit.get(ENTRY, self.key)
        if row is not None:
            _release(unit, row, self.leader)


def _release(unit: Unit, row: EntryRow, leader: str) -> None:
    if row.leader != leader:
        return
    row.leader, row.leader_job, row.lease_until = None, None, 0
    if row.job_id is None:
        unit.delete(ENTRY, row)
    else:
        unit.change(ENTRY, row)


class RenewLeases(msgspec.Struct, frozen=True):
    """Renew the leases of all leaders of this process: (question, leader)."""

    leads: tuple[tuple[Key, str], ...]

    def locks(self) -> list[tuple[Any, Any]]:
        return [(ENTRY, key) for key, _ in self.leads]

    def decide(self, unit: Unit) -> None:
        for key, leader in self.leads:
            row = unit.get(ENTRY, key)
            if row is not None and row.leader == leader:
                row.lease_until = unit.now + LEASE_US
                unit.change(ENTRY, row)


class ForgetExpired(msgspec.Struct, frozen=True):
    """Delete expired entries, and entries of these tenants beyond their maximum. Returns whether there may be more."""

    tenants: tuple[str, ...]
    most_entries: int
    most_vectors: int

    def locks(self) -> list[tuple[Any, Any]]:
        return []

    def decide(self, unit: Unit) -> bool:
        values: dict[str, Any] = {"now": unit.now, "batch": BATCH}
        dropped = [len(unit.query(SQL[name], values)) for name in ("drop_old_entries", "drop_old_vectors")]
        for tenant_id in self.tenants:
            own = values | {"tenant_id": tenant_id}
            dropped.append(len(unit.query(SQL["drop_more_entries"], own | {"most": self.most_entries})))
            dropped.append(len(unit.query(SQL["drop_more_vectors"], own | {"most": self.most_vectors})))
        return max(dropped) == BATCH
