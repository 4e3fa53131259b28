"""The rows of the ledger and their tables."""

from operator import attrgetter
from typing import Any

import msgspec

from overnight.store import Table, statements

SQL = statements("overnight.ledger")


class JobRow(msgspec.Struct):
    """A job: the header of its log, and its state. Times in microseconds UTC; `waiting` is JSON. Fields in column
    order."""

    job_id: str
    tenant_id: str
    external_id: str | None
    parent_job_id: str | None
    root_job_id: str
    runtime: str
    name: str
    agent_id: str | None
    workflow: str | None
    session_id: str | None
    code_ref: str | None
    code_fingerprint: str | None
    brain_version: str | None
    parent_path: str | None
    parent_ordinal: int | None
    state: str
    waiting: str
    attempt: int
    lease_epoch: int
    lease_owner: str | None
    lease_expires_at: int | None
    wake_at: int | None
    recoveries: int
    last_seq: int
    input: bytes | None
    result: bytes | None
    error: str | None
    unattributed: int
    created_at: int
    started_at: int | None
    finished_at: int | None
    active_at: int
    cancel_requested_at: int | None

    @property
    def scope_name(self) -> str:
        """The name that the job globs of keys match."""
        return self.external_id or self.name

    @property
    def waits(self) -> list[dict[str, Any]]:
        """The waits of a parked job: `{"for": …, "path": …, "ordinal": …, …}` each."""
        return msgspec.json.decode(self.waiting)


class ExternalRow(msgspec.Struct):
    """The mapping of an external identifier to a job id; read from the job's own row."""

    tenant_id: str
    external_id: str
    job_id: str


class EventRow(msgspec.Struct):
    """One event as stored; `body` is the JSON of `domain.Event`, without its free texts; these are `texts`, JSON
    too."""

    job_id: str
    seq: int
    tenant_id: str
    month: int
    at: int
    path: str | None
    ordinal: int | None
    fingerprint: str | None
    body: bytes
    content: bytes | None
    content_key: bytes | None
    texts: bytes | None


JOB: Table[JobRow] = Table(
    10,
    JobRow,
    attrgetter("job_id"),
    lock=SQL["lock_job"],
    insert=SQL["insert_job"],
    update=SQL["update_job"],
    touch=SQL["touch_job"],
)
EXTERNAL: Table[ExternalRow] = Table(
    0,
    ExternalRow,
    attrgetter("tenant_id", "external_id"),
    lock=SQL["lock_external"],
    insert=SQL["lock_external"],
    update=SQL["lock_external"],
    # The job is locked in the same step. Locked later, it would violate the global lock order.
    also_locks=lambda row: (JOB, row.job_id),
)
