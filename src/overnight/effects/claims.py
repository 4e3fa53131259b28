"""Claim → call → commit. A claim without a commit is unknown: never success, never blindly repeated."""

from typing import Any

import msgspec

from overnight.domain import Conflict, ErrorFacts, Event
from overnight.ledger import JobRow, append
from overnight.store import Unit

from .rows import EFFECT, EffectRow


class Claim(msgspec.Struct, frozen=True):
    """What is about to be done, by whom. `arguments` is canonical JSON, `arguments_sha256` its digest."""

    effect_key: str
    tool: str
    arguments: bytes
    arguments_sha256: str
    owner: str
    step: str | None = None
    call_id: str | None = None


class EffectPosition(msgspec.Struct, frozen=True):
    """Where in the job's code the effect stands; None for foreign runtimes."""

    path: str
    ordinal: int
    fingerprint: str


class ClaimResult(msgspec.Struct, frozen=True):
    """`verdict`: run (do it now), committed (here is the result), in_progress (another caller does it), unknown, or
    rejected (a person said no: neither is it done nor will it be)."""

    verdict: str
    row: EffectRow


def begins(job: JobRow, row: EffectRow | None) -> bool:
    """Whether a claim would let the effect be done now: it never began, or what began is known not to be done."""
    if row is None:
        return True
    # A foreign program counts a new attempt at every start; nobody's no may end with its process.
    if row.state == "rejected":
        return row.attempt != job.attempt and job.runtime != "foreign"
    return row.state not in {"claimed", "committed", "unknown"}


def claim(unit: Unit, job: JobRow, wanted: Claim, position: EffectPosition | None) -> ClaimResult:
    """Decide whether the effect may be done now, and write the claim before it is.

    Raises Conflict when the key was used with other arguments for something that has begun.
    """
    row = unit.get(EFFECT, (job.tenant_id, wanted.effect_key))
    if row is None:
        row = EffectRow(
            job.tenant_id,
            wanted.effect_key,
            job.job_id,
            wanted.tool,
            "claimed",
            wanted.arguments_sha256,
            wanted.owner,
            job.attempt,
            job.lease_epoch,
            None,
            None,
            None,
            unit.now,
            None,
        )
        unit.insert(EFFECT, row)
        _called(unit, job, wanted, position)
        return ClaimResult("run", row)
    begun = row.state in {"claimed", "committed", "unknown"}
    if begun and row.arguments_sha256 != wanted.arguments_sha256:
        raise Conflict(
            f"effect {wanted.tool} was {row.state} with other arguments under the same key {wanted.effect_key};"
            " a key stands for one intention"
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
        mark_unknown(unit, job, row, "its worker was lost between the claim and the commit", position)
        return ClaimResult("unknown", row)
    row.state, row.owner, row.attempt, row.lease_epoch = "claimed", wanted.owner, job.attempt, job.lease_epoch
    row.arguments_sha256, row.claimed_at, row.settled_at, row.error = wanted.arguments_sha256, unit.now, None, None
    unit.change(EFFECT, row)
    _called(unit, job, wanted, position)
    return ClaimResult("run", row)


def _called(unit: Unit, job: JobRow, wanted: Claim, position: EffectPosition | None) -> None:
    event = Event("tool_called", name=wanted.tool, kind="effect", step=wanted.step, idempotency_key=wanted.effect_key)
    event.attempt, event.call_id = job.attempt, wanted.call_id
    append(unit, job, event, content=wanted.arguments, **_at(position))


def _at(position: EffectPosition | None) -> dict[str, Any]:
    if position is None:
        return {}
    return {"path": position.path, "ordinal": position.ordinal, "fingerprint": position.fingerprint}


def _facts(name: str, row: EffectRow, job: JobRow) -> Event:
    return Event(name, name=row.tool, kind="effect", idempotency_key=row.effect_key, attempt=job.attempt)


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
) -> int:
    """The effect is true from now on, with the provider's id. `why` tells when it was found out rather than done."""
    row.state, row.result, row.provider_id, row.settled_at = "committed", result, provider_id, unit.now
    unit.change(EFFECT, row)
    event = _facts("tool_succeeded", row, job)
    event.latency_ms = latency_ms
    if provider_id:
        event.detail = {"provider_id": provider_id}
    if why:
        event.decision = {"why": why}
    return append(unit, job, event, content=result, **_at(position))


def fail(unit: Unit, job: JobRow, row: EffectRow, error: ErrorFacts, position: EffectPosition | None) -> int:
    """It was not done, and that is known."""
    return _not_done(unit, job, row, "failed", error, position, None)


def reject(unit: Unit, job: JobRow, row: EffectRow, why: str, position: EffectPosition | None, actor: str) -> int:
    """A person says that it shall not be done: this attempt of the job, or this foreign job, does not ask again."""
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
) -> int:
    row.state, row.error, row.settled_at = state, error.message[:500], unit.now
    unit.change(EFFECT, row)
    event = _facts("tool_failed", row, job)
    event.error, event.actor = error, actor
    return append(unit, job, event, **_at(position))


def release(unit: Unit, job: JobRow, row: EffectRow, why: str, actor: str | None = None) -> None:
    """A status check or a person says that it was not done: it may be claimed again."""
    row.state, row.settled_at = "released", unit.now
    unit.change(EFFECT, row)
    event = _facts("tool_failed", row, job)
    event.decision, event.actor = {"why": why, "verdict": "not_done"}, actor
    append(unit, job, event)


def mark_unknown(
    unit: Unit,
    job: JobRow,
    row: EffectRow,
    why: str,
    position: EffectPosition | None = None,
    trace: bytes | None = None,
) -> None:
    """Nobody knows whether it was done. `trace` is the traceback of what the call raised, as content."""
    row.state, row.settled_at = "unknown", unit.now
    unit.change(EFFECT, row)
    event = _facts("tool_unknown", row, job)
    event.decision = {"why": why}
    append(unit, job, event, content=trace, **_at(position))
