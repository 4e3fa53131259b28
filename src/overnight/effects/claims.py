"""Claims of effects: claim → call → commit. A claim without a commit is unknown: it is neither a success nor repeated."""

from typing import Any, Literal

import msgspec

from overnight.domain import Conflict, ErrorFacts, Event, new_id
from overnight.ledger import JobRow, append
from overnight.store import Unit

from .rows import EFFECT, EffectRow


class EffectClaim(msgspec.Struct, frozen=True):
    """The request to execute an effect. `arguments`: canonical JSON; `arguments_sha256`: its digest; `owner`: the process.
    `about`: the record that the caller works on."""

    effect_key: str
    tool: str
    arguments: bytes
    arguments_sha256: str
    owner: str
    step: str | None = None
    call_id: str | None = None
    about: str | None = None


class EffectPosition(msgspec.Struct, frozen=True):
    """The position of an effect in the job's code, and the fingerprint of its request."""

    path: str
    ordinal: int
    fingerprint: str


Verdict = Literal["run", "committed", "in_progress", "unknown", "rejected"]


class ClaimResult(msgspec.Struct, frozen=True):
    """The answer to a claim, and the effect's row. `verdict` is one of

    - run: execute it now. committed: the row has its result. in_progress: another caller executes it.
    - unknown: its outcome has to be found out. rejected: a person decided that it is not to be done.
    """

    verdict: Verdict
    row: EffectRow


def begins(job: JobRow, row: EffectRow | None) -> bool:
    """Whether a claim would be granted now: the effect never began, or is known not to be done."""
    if row is None:
        return True
    # An external program begins a new attempt at every start; a rejection must outlast its process.
    if row.state == "rejected":
        return row.attempt != job.attempt and job.runtime != "foreign"
    return row.state not in {"claimed", "committed", "unknown"}


def claim(unit: Unit, job: JobRow, wanted: EffectClaim, position: EffectPosition | None) -> ClaimResult:
    """Decide whether the effect may be executed now, and write the claim before it is.

    Raises Conflict if the key was used with other arguments for an effect that has begun.
    """
    row = unit.get(EFFECT, (job.tenant_id, wanted.effect_key))
    if row is None:
        row = EffectRow(
            tenant_id=job.tenant_id,
            effect_key=wanted.effect_key,
            job_id=job.job_id,
            tool=wanted.tool,
            state="claimed",
            arguments_sha256=wanted.arguments_sha256,
            owner=wanted.owner,
            attempt=job.attempt,
            lease_epoch=job.lease_epoch,
            provider_id=None,
            result=None,
            error=None,
            claimed_at=unit.now,
            settled_at=None,
            effect_id=new_id("eff"),
            asked_attempt=job.attempt,
        )
        unit.insert(EFFECT, row)
        _called(unit, job, wanted, position)
        return ClaimResult("run", row)
    begun = row.state in {"claimed", "committed", "unknown"}
    if begun and row.arguments_sha256 != wanted.arguments_sha256:
        raise Conflict(
            f"effect {wanted.tool} is {row.state} with other arguments under the idempotency key {wanted.effect_key};"
            " use another key for other arguments"
        )
    if row.state == "committed":
        return ClaimResult("committed", row)
    if row.state == "unknown":
        return ClaimResult("unknown", row)
    if row.state == "rejected" and not begins(job, row):
        return ClaimResult("rejected", row)
    if row.state == "claimed":
        if (row.attempt, row.lease_epoch) == (job.attempt, job.lease_epoch) and row.owner == wanted.owner:
            return ClaimResult("in_progress", row)
        why = "its worker was lost between the claim and the commit"
        mark_unknown(unit, job, row, "worker_lost", why, position, about=wanted.about)
        return ClaimResult("unknown", row)
    row.state, row.owner, row.attempt, row.lease_epoch = "claimed", wanted.owner, job.attempt, job.lease_epoch
    row.arguments_sha256, row.claimed_at, row.settled_at, row.error = wanted.arguments_sha256, unit.now, None, None
    unit.change(EFFECT, row)
    _called(unit, job, wanted, position)
    return ClaimResult("run", row)


def _called(unit: Unit, job: JobRow, wanted: EffectClaim, position: EffectPosition | None) -> None:
    event = Event("tool_called", name=wanted.tool, kind="effect", step=wanted.step, idempotency_key=wanted.effect_key)
    event.attempt, event.call_id, event.about = job.attempt, wanted.call_id, wanted.about
    append(unit, job, event, content=wanted.arguments, **_at(position))


def _at(position: EffectPosition | None) -> dict[str, Any]:
    if position is None:
        return {}
    return {"path": position.path, "ordinal": position.ordinal, "fingerprint": position.fingerprint}


def _facts(name: str, row: EffectRow, job: JobRow, about: str | None) -> Event:
    key, attempt = row.effect_key, job.attempt
    return Event(name, name=row.tool, kind="effect", idempotency_key=key, attempt=attempt, about=about)


def commit(
    unit: Unit,
    job: JobRow,
    row: EffectRow,
    result: bytes,
    provider_id: str | None,
    position: EffectPosition | None,
    *,
    why: str | None = None,
    latency_ms: float | None = None,
    about: str | None = None,
) -> int:
    """Commit the effect: it was done. Returns the seq of `tool_succeeded`.

    `result`: JSON. `provider_id`: its id at the provider. `why`: how it was found done, if not by its call.
    `about`: the record that the caller works on.
    """
    row.state, row.result, row.provider_id, row.settled_at = "committed", result, provider_id, unit.now
    row.source = "confirmed" if why else "executed"
    unit.change(EFFECT, row)
    event = _facts("tool_succeeded", row, job, about)
    event.latency_ms = latency_ms
    if provider_id:
        event.detail = {"provider_id": provider_id}
    if why:
        event.decision = {"why": why}
    return append(unit, job, event, content=result, **_at(position))


def fail(
    unit: Unit,
    job: JobRow,
    row: EffectRow,
    error: ErrorFacts,
    position: EffectPosition | None,
    about: str | None = None,
) -> int:
    """Record that the effect was certainly not done. Returns the seq of `tool_failed`."""
    return _not_done(unit, job, row, "failed", error, position, None, about)


def reject(unit: Unit, job: JobRow, row: EffectRow, why: str, position: EffectPosition | None, actor: str) -> int:
    """Record a person's decision that the effect is not to be done, in this attempt or, if external, in this job.

    Returns the seq of `tool_failed`.
    """
    row.attempt = job.attempt
    return _not_done(unit, job, row, "rejected", ErrorFacts("rejected", why), position, actor)


def _not_done(
    unit: Unit,
    job: JobRow,
    row: EffectRow,
    state: str,
    error: ErrorFacts,
    position: EffectPosition | None,
    actor: str | None,
    about: str | None = None,
) -> int:
    row.state, row.error, row.settled_at = state, error.message[:500], unit.now
    unit.change(EFFECT, row)
    event = _facts("tool_failed", row, job, about)
    event.error, event.actor = error, actor
    return append(unit, job, event, **_at(position))


def release(
    unit: Unit, job: JobRow, row: EffectRow, why: str, actor: str | None = None, about: str | None = None
) -> None:
    """Record that a status check or a person found the effect not done: it may be claimed again."""
    row.state, row.settled_at = "released", unit.now
    unit.change(EFFECT, row)
    event = _facts("tool_failed", row, job, about)
    event.decision, event.actor = {"why": why, "verdict": "not_done"}, actor
    append(unit, job, event)


def mark_unknown(
    unit: Unit,
    job: JobRow,
    row: EffectRow,
    cause: str,
    why: str,
    position: EffectPosition | None = None,
    trace: bytes | None = None,
    about: str | None = None,
) -> None:
    """Record that the outcome is unknown.

    `cause`: the class of the exception of the call, or another name of the cause. `why`: the cause in words, which are content.
    `trace`: the traceback of the exception, as JSON.
    """
    row.state, row.settled_at = "unknown", unit.now
    unit.change(EFFECT, row)
    event = _facts("tool_unknown", row, job, about)
    event.decision = {"class": cause, "why": why}
    append(unit, job, event, content=trace, **_at(position))
