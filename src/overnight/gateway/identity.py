"""The identity of a call: its job, its position and its caller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from overnight.budgets import BudgetJob, Caller
from overnight.domain import Attribution, BadInput, check_identifier, parse_whole
from overnight.ledger import JobRow


class BoundaryPosition(msgspec.Struct, frozen=True):
    """The position of a call in job code, and the lease epoch of the worker."""

    path: str
    ordinal: int
    fingerprint: str
    lease_epoch: int


class Subject(msgspec.Struct, frozen=True):
    """The job that a call belongs to.

    Fields:
        who: the caller's attribution.
        job_id: the job; where `known` is false, the id of the job to create.
        ancestors: the jobs whose budgets the call draws on: root first, the job itself last.
        known: whether the job is known to exist.
        label: the name of the call in its events.
        external_id: the job id chosen by the caller.
        unattributed: whether the job is created for this call alone.
        brain_version: recorded in a job that is created for the call.
        attempt: the attempt of the job, as found by the last admission.
        place: the position of a call of job code in this process.
        fingerprint: identifies a repeated request of an external job.
        is_auxiliary: whether the call serves another call of the job. A job for one call does not end with it.
        lineage: names and start times of jobs with children, where they are known.
        parent_job_id: the parent that the call names; required of a job that exists.
        prompts_version: the version of the prompts that the call uses, if it is not the present one.
        prompts: the prompts among its messages: name and brain version.
    """

    who: Attribution
    job_id: str
    ancestors: tuple[str, ...]
    known: bool
    label: str
    external_id: str | None = None
    unattributed: bool = False
    brain_version: str | None = None
    attempt: int = 1
    place: BoundaryPosition | None = None
    fingerprint: str | None = None
    is_auxiliary: bool = False
    lineage: Mapping[str, BudgetJob] = {}
    parent_job_id: str | None = None
    prompts_version: str | None = None
    prompts: tuple[tuple[str, str], ...] = ()


class JobIdentity(NamedTuple):
    """The agent and workflow of a job, as far as they hold beside those that a call names."""

    agent: str | None = None
    workflow: str | None = None


NO_IDENTITY = JobIdentity()


def caller_of(
    subject: Subject, target: str | None, job: JobRow | None = None, identity: JobIdentity = NO_IDENTITY
) -> Caller:
    """The caller for budgets and rate limits; `job` and its `identity`, once they are known, complete it."""
    who = subject.who
    if job is None:
        kin = tuple(subject.lineage.get(each) or BudgetJob(each) for each in subject.ancestors)
        return Caller(
            tenant_id=who.tenant_id,
            jobs=kin,
            agent=who.agent_id,
            session=who.session_id,
            workflow=who.workflow,
            step=who.step,
            key=who.key_id,
            target=target,
        )
    above = subject.ancestors[:-1] if job.job_id == subject.job_id else ()
    kin = tuple(subject.lineage.get(each) or BudgetJob(each) for each in above)
    kin = (*kin, BudgetJob(job.job_id, job.workflow or job.name, job.started_at))
    return Caller(
        tenant_id=job.tenant_id,
        jobs=kin,
        agent=who.agent_id or job.agent_id,
        session=who.session_id or job.session_id,
        workflow=who.workflow or job.workflow,
        step=who.step,
        key=who.key_id,
        target=target,
        job_agent=identity.agent,
        job_workflow=identity.workflow,
    )


_HEX = frozenset("0123456789abcdef")
MAX_ATTEMPTS = 1_000_000
_METADATA = {
    "agent_name": "agent_id",
    "session_id": "session_id",
    "task": "task_id",
    "step": "step",
    "workflow": "workflow",
    "parent_job_id": "parent",
}

METADATA_NAMES = frozenset({*_METADATA, "job_id", "job_attempt", "tags"})
MAX_TAGS = 16


def parse_job_name(value: str, place: str) -> tuple[str | None, str | None]:
    """Parse the name that a caller gives its job. Returns (job id, None) or (None, external id)."""
    check_identifier(value, place)
    ours = len(value) == 36 and value.startswith("job_") and _HEX.issuperset(value[4:])
    return (value, None) if ours else (None, value)


def parse_tags(value: str, place: str) -> tuple[str, ...]:
    """The tags in a comma-separated list, each once, in order. Raises BadInput, naming `place`."""
    tags = dict.fromkeys(tag.strip() for tag in value.split(",") if tag.strip())
    if len(tags) > MAX_TAGS:
        raise BadInput(f"{place}: {len(tags)} tags; the maximum is {MAX_TAGS}")
    return tuple(check_identifier(tag, place) for tag in tags)


def other_parent(job_id: str, parent_job_id: str) -> str:
    """The error for a job that exists and has not the named parent; its own descendant would be a cycle."""
    return f"x-parent-job-id: {job_id} has started already, and {parent_job_id} is not its parent; omit the header"


def session_name(who: Attribution) -> str:
    """The external id of the job of a session without a named job. It includes the scope of the key: the same session
    name under the key of another agent is another job."""
    return "@".join(filter(None, (f"session:{who.session_id}", who.key_scope.agent_id, who.key_scope.workflow)))


def with_cache_key(who: Attribution, cache_key: msgspec.Raw) -> Attribution:
    """Use a body's `prompt_cache_key` as the session where none is named. It groups calls, but forms no job: many programs
    send the same key with all of their calls."""
    try:
        session = check_identifier(msgspec.json.decode(cache_key, type=str), "prompt_cache_key")
    except (msgspec.DecodeError, BadInput):
        return who  # the provider decides whether the key is valid
    return msgspec.structs.replace(who, session_id=session, only_marks=True)


def with_client_metadata(who: Attribution, metadata: msgspec.Raw) -> Attribution:
    """Use the session in a body's `client_metadata`, as Codex sends it, where none is named."""
    try:
        named: Any = msgspec.json.decode(metadata)
        found = named.get("session_id") or named.get("thread_id")
        return msgspec.structs.replace(who, session_id=check_identifier(found, "client_metadata.session_id"))
    except (msgspec.DecodeError, BadInput, AttributeError, TypeError):
        return who  # the field is another product's


def _text(metadata: Mapping[str, Any], name: str) -> str | None:
    """A text in `metadata` that attributes the call. Raises BadInput for another type, so that no attribution is lost."""
    value = metadata.get(name)
    if value is not None and not isinstance(value, str):
        raise BadInput(f"metadata.{name}: must be a string; send a string or omit it")
    return value


def with_metadata(who: Attribution, metadata: Mapping[str, Any] | None) -> Attribution:
    """The attribution, completed from the body's `metadata` where a header is missing. Raises BadInput."""
    if not metadata:
        return who
    found: dict[str, Any] = {}
    for name, field in _METADATA.items():
        if getattr(who, field) is None and (value := _text(metadata, name)) is not None:
            found[field] = check_identifier(value, f"metadata.{name}")
    if who.job_id is None and who.external_id is None and (job := _text(metadata, "job_id")) is not None:
        found["job_id"], found["external_id"] = parse_job_name(job, "metadata.job_id")
    if not who.tags and (tags := _text(metadata, "tags")) is not None:
        found["tags"] = parse_tags(tags, "metadata.tags")
    attempt = metadata.get("job_attempt")
    if attempt is not None and who.attempt is None:
        number = parse_whole(attempt, MAX_ATTEMPTS)
        if not number:
            raise BadInput(f"metadata.job_attempt: must be a whole number from 1 to {MAX_ATTEMPTS}")
        found["attempt"] = number
    return msgspec.structs.replace(who, **found) if found else who
