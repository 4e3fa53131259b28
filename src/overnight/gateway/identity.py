"""The identity of a call: its job, its position and its caller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from overnight.budgets import Caller, Kin
from overnight.domain import Attribution, BadInput, check_identifier, parse_whole
from overnight.ledger import JobRow


class Place(msgspec.Struct, frozen=True):
    """The position of a call in job code, and the lease epoch that it is made under."""

    path: str
    ordinal: int
    fingerprint: str
    lease_epoch: int


class Subject(msgspec.Struct, frozen=True):
    """The job a call belongs to.

    Fields:
        who: the caller's attribution.
        job_id: the job, or the one to be made where `known` is false.
        ancestors: the jobs whose budgets the call draws on: root first, the job itself last.
        known: whether the job is known to exist.
        label: the name of the call in its events.
        external_id: the caller's own name of the job.
        unattributed: whether a job is made for this call alone.
        brain_version: recorded in a job that is made for the call.
        attempt: the attempt of the job, as the last admission found it.
        place: the position of a call of job code in this process.
        fingerprint: recognises the repeated request of a foreign runtime.
        aside: the call serves another call of the job, so that a job made for that one does not end with it.
        lineage: names and start times of jobs with children, where they are known.
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
    place: Place | None = None
    fingerprint: str | None = None
    aside: bool = False
    lineage: Mapping[str, Kin] = {}


def caller_of(subject: Subject, target: str | None, job: JobRow | None = None) -> Caller:
    """The caller whose budgets and rates a call draws on, completed from its job once that is known."""
    who = subject.who
    if job is None:
        kin = tuple(subject.lineage.get(each) or Kin(each) for each in subject.ancestors)
        names = (who.agent_id, who.session_id, who.workflow)
        return Caller(who.tenant_id, kin, *names, who.step, who.key_id, target)
    above = subject.ancestors[:-1] if job.job_id == subject.job_id else ()
    kin = tuple(subject.lineage.get(each) or Kin(each) for each in above)
    kin = (*kin, Kin(job.job_id, job.workflow or job.name, job.started_at))
    names = (who.agent_id or job.agent_id, who.session_id or job.session_id, who.workflow or job.workflow)
    return Caller(job.tenant_id, kin, *names, who.step, who.key_id, target)


_HEX = frozenset("0123456789abcdef")
MAX_ATTEMPTS = 1_000_000
_METADATA = {
    "agent_name": "agent_id",
    "session_id": "session_id",
    "task": "task_id",
    "step": "step",
    "workflow": "workflow",
}

METADATA_NAMES = frozenset({*_METADATA, "job_id", "job_attempt", "tags"})
MAX_TAGS = 16


def named_job(value: str, place: str) -> tuple[str | None, str | None]:
    """(our job id, the caller's own id) for the name that a caller gives its job."""
    check_identifier(value, place)
    ours = len(value) == 36 and value.startswith("job_") and _HEX.issuperset(value[4:])
    return (value, None) if ours else (None, value)


def tags_of(value: str, place: str) -> tuple[str, ...]:
    """The tags in a comma-separated list, each once, in order. Raises BadInput, naming `place`."""
    tags = dict.fromkeys(tag.strip() for tag in value.split(",") if tag.strip())
    if len(tags) > MAX_TAGS:
        raise BadInput(f"{place}: {len(tags)} tags; the most is {MAX_TAGS}")
    return tuple(check_identifier(tag, place) for tag in tags)


def session_name(who: Attribution) -> str:
    """The external id of the job of a session that names no job. Keys with a scope have sessions of their own: the same
    name at another agent's key is another one."""
    return "@".join(filter(None, (f"session:{who.session_id}", *who.reach)))


def with_cache_key(who: Attribution, cache_key: msgspec.Raw) -> Attribution:
    """A body's `prompt_cache_key` tells which calls belong together where no session is named. It forms no job of them: many
    programs send the same one with all that they ever ask."""
    try:
        session = check_identifier(msgspec.json.decode(cache_key, type=str), "prompt_cache_key")
    except (msgspec.DecodeError, BadInput):
        return who  # it is the provider's: whatever that takes is right
    return msgspec.structs.replace(who, session_id=session, only_marks=True)


def _text(metadata: dict[str, Any], name: str) -> str | None:
    """A value of ours. Raises BadInput: without it the call would be attributed wrongly."""
    value = metadata.get(name)
    if value is not None and not isinstance(value, str):
        raise BadInput(f"metadata.{name}: must be a string here, as in the headers; leave it out or send it as text")
    return value


def with_metadata(who: Attribution, metadata: Mapping[str, Any] | None) -> Attribution:
    """The attribution, completed from the body's `metadata` where headers were not sent. Raises BadInput."""
    if not metadata:
        return who
    found: dict[str, Any] = {}
    for name, field in _METADATA.items():
        if getattr(who, field) is None and (value := _text(metadata, name)) is not None:
            found[field] = check_identifier(value, f"metadata.{name}")
    if who.job_id is None and who.external_id is None and (job := _text(metadata, "job_id")) is not None:
        found["job_id"], found["external_id"] = named_job(job, "metadata.job_id")
    if not who.tags and (tags := _text(metadata, "tags")) is not None:
        found["tags"] = tags_of(tags, "metadata.tags")
    attempt = metadata.get("job_attempt")
    if attempt is not None and who.attempt is None:
        number = parse_whole(attempt, MAX_ATTEMPTS)
        if not number:
            raise BadInput(f"metadata.job_attempt: must be a whole number from 1 to {MAX_ATTEMPTS}")
        found["attempt"] = number
    return msgspec.structs.replace(who, **found) if found else who
