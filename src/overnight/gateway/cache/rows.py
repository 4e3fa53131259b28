"""The rows of the caches."""

from __future__ import annotations

import msgspec

from overnight.store import Table, statements

SQL = statements("overnight.gateway.cache")


class EntryRow(msgspec.Struct):
    """The place of the answer to a question in the ledger (`job_id`, `seq`, `month`; None before), and its leading call.

    It is a hit until `expires_at`, and is kept until `kept_until` for degraded answers. `leader` is one call of the job
    `leader_job`; its lease ends at `lease_until`, unless it is renewed. Times in microseconds.
    """

    tenant_id: str
    key: bytes
    job_id: str | None = None
    seq: int | None = None
    month: int | None = None
    expires_at: int = 0
    kept_until: int = 0
    leader: str | None = None
    leader_job: str | None = None
    lease_until: int = 0


class LookedUpRow(msgspec.Struct, frozen=True):
    """A question that a job has looked up in a cache; read from the job's own log."""

    job_id: str
    fingerprint: str


class VectorRow(msgspec.Struct, frozen=True):
    """The vector of a question and the place of its answer; `vector` and `numbers` are the same vector in two forms."""

    tenant_id: str
    realm: bytes
    added_at: int
    job_id: str
    seq: int
    month: int
    expires_at: int
    vector: bytes
    numbers: list[float]


def _entry_key(row: EntryRow) -> tuple[str, bytes]:
    return (row.tenant_id, row.key)


def _asked_key(row: LookedUpRow) -> tuple[str, str]:
    return (row.job_id, row.fingerprint)


ASKED: Table[LookedUpRow] = Table(
    65, LookedUpRow, _asked_key, lock=SQL["lock_asked"], insert=SQL["lock_asked"], update=SQL["lock_asked"]
)
ENTRY: Table[EntryRow] = Table(
    70,
    EntryRow,
    _entry_key,
    lock=SQL["lock_entry"],
    insert=SQL["insert_entry"],
    update=SQL["update_entry"],
    delete=SQL["delete_entry"],
)
