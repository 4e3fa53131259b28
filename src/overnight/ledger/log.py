"""The log of a job: create it and append to it, inside a unit of work and under the lock of the job's row."""

import hmac
import os
from collections.abc import Sequence
from typing import Any

import msgspec

from overnight.domain import Conflict, Event, Fenced, NotFound, month_of, split_texts
from overnight.domain.claim_rules import ClaimRule, public_rules
from overnight.store import Unit

from .rows import EXTERNAL, JOB, SQL, EventRow, ExternalRow, JobRow

_encode = msgspec.json.Encoder().encode
_INSERT_EVENT = SQL["insert_event"]
MAX_INLINE_CONTENT = 64 * 1024
"""The maximum content that is stored inline, in bytes."""


class NewJob(msgspec.Struct, frozen=True):
    """The fields of a new job. `input` is JSON; `runtime` is `python`, or `foreign` for external programs. `key_id` is the API
    key that made it, which never decides its reviews; `bound` are the fields that the key is bound to: agent, workflow.
    `claims` are checked in the final answer."""

    job_id: str
    tenant_id: str
    runtime: str
    name: str
    external_id: str | None = None
    parent_job_id: str | None = None
    root_job_id: str | None = None
    parent_path: str | None = None
    parent_ordinal: int | None = None
    agent_id: str | None = None
    workflow: str | None = None
    session_id: str | None = None
    code_ref: str | None = None
    brain_version: str | None = None
    input: bytes | None = None
    state: str = "queued"
    unattributed: bool = False
    actor: str | None = None
    key_id: str | None = None
    bound: Sequence[str] = ()
    claims: Sequence[ClaimRule] = ()


def open_job(unit: Unit, new: NewJob) -> tuple[JobRow, bool]:
    """Create a job, or find the existing job with this id. Returns its locked row, and whether it is new.

    Raises:
        Conflict: the same id was used with another name or input.
    """
    key = (new.tenant_id, new.external_id)
    held = unit.get(EXTERNAL, key) if new.external_id is not None else None
    existing_id = held.job_id if held else new.job_id
    if not unit.is_loaded(JOB, existing_id):
        unit.lock([(JOB, existing_id)])
    existing = unit.get(JOB, existing_id)
    if existing is not None:
        if existing.name != new.name or (new.input is not None and existing.input != new.input):
            raise Conflict(f"{new.external_id or new.job_id} exists already as {existing.name} with another input")
        return existing, False
    job = _new_row(unit, new)
    unit.insert(JOB, job)
    if new.external_id is not None:
        # The mapping is read from the job's row and needs no write. Later commands of this batch must find it.
        unit.cache(EXTERNAL, ExternalRow(new.tenant_id, new.external_id, new.job_id))
    detail: dict[str, Any] = {"name": new.name, "runtime": new.runtime}
    if new.external_id:
        detail["external_id"] = new.external_id
    if new.unattributed:
        detail["unattributed"] = True
    if new.key_id is not None:
        detail["key_id"] = new.key_id
    if new.bound:
        detail["bound"] = list(new.bound)
    if new.claims:
        detail["assert"] = public_rules(new.claims)
    facts = Event("created", actor=new.actor, detail=detail, brain_version=new.brain_version)
    facts.agent_id, facts.workflow, facts.session_id = new.agent_id, new.workflow, new.session_id
    append(unit, job, facts)
    return job, True


def _new_row(unit: Unit, new: NewJob) -> JobRow:
    return JobRow(
        job_id=new.job_id,
        tenant_id=new.tenant_id,
        external_id=new.external_id,
        parent_job_id=new.parent_job_id,
        root_job_id=new.root_job_id or new.job_id,
        runtime=new.runtime,
        name=new.name,
        agent_id=new.agent_id,
        workflow=new.workflow,
        session_id=new.session_id,
        code_ref=new.code_ref,
        code_fingerprint=None,
        brain_version=new.brain_version,
        parent_path=new.parent_path,
        parent_ordinal=new.parent_ordinal,
        state=new.state,
        waiting="[]",
        attempt=1,
        lease_epoch=0,
        lease_owner=None,
        lease_expires_at=None,
        wake_at=None,
        recoveries=0,
        last_seq=0,
        input=new.input,
        result=None,
        error=None,
        unattributed=int(new.unattributed),
        created_at=unit.now,
        started_at=unit.now if new.state == "running" else None,
        finished_at=None,
        active_at=unit.now,
        cancel_requested_at=None,
    )


def locked_job(unit: Unit, job_id: str, *, lease_epoch: int | None = None) -> JobRow:
    """The locked row of a job.

    Raises:
        NotFound: the job does not exist.
        Fenced: `lease_epoch` was given, and that lease has ended.
    """
    job = unit.get(JOB, job_id)
    if job is None:
        raise NotFound(f"{job_id} does not exist")
    if lease_epoch is not None and (job.lease_epoch != lease_epoch or job.state != "running"):
        raise Fenced(f"{job_id} is at lease epoch {job.lease_epoch} ({job.state}), this worker holds {lease_epoch}")
    return job


def append(
    unit: Unit,
    job: JobRow,
    event: Event,
    *,
    content: bytes | None = None,
    path: str | None = None,
    ordinal: int | None = None,
    fingerprint: str | None = None,
) -> int:
    """Append an event to the log of a job. Returns its seq. `content` is inline JSON, stored separately from the
    facts, as are the free texts of the event."""
    job.last_seq += 1
    job.active_at = now = unit.now
    unit.touch(JOB, job)
    key = None
    if content is not None:
        key = os.urandom(16)
        event.content_mac = hmac.digest(key, content, "sha256").hex()
    facts, texts = split_texts(event)
    row = EventRow(
        job_id=job.job_id,
        seq=job.last_seq,
        tenant_id=job.tenant_id,
        month=month_of(now),
        at=now,
        path=path,
        ordinal=ordinal,
        fingerprint=fingerprint,
        body=_encode(facts),
        content=content,
        content_key=key,
        texts=texts,
    )
    unit.append(_INSERT_EVENT, row)
    return job.last_seq


class Append(msgspec.Struct):
    """Command: append one event. With `lease_epoch`, only while that lease is valid. Outcome: its seq."""

    job_id: str
    event: Event
    content: bytes | None = None
    lease_epoch: int | None = None
    path: str | None = None
    ordinal: int | None = None
    fingerprint: str | None = None

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> int:
        job = locked_job(unit, self.job_id, lease_epoch=self.lease_epoch)
        return append(
            unit,
            job,
            self.event,
            content=self.content,
            path=self.path,
            ordinal=self.ordinal,
            fingerprint=self.fingerprint,
        )
