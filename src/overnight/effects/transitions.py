"""The state of an effect. This module is the only writer of `row.state`; every change is written with its event.

All functions run inside a unit of work, under the locks of the job and the effect. `TRANSITIONS` lists the states in which
each is allowed; in another state it raises Conflict and changes nothing. `none` is an effect without a row.

A review has events of its own: the caller writes `review_requested`, `review_decided`, `review_expired` or
`review_superseded` in the same unit.
"""

from typing import Any, Literal

import msgspec

from overnight.domain import Conflict, ErrorFacts, Event
from overnight.ledger import JobRow, append
from overnight.reviews import REVIEW, supersede_review
from overnight.store import Unit

from .rows import EFFECT, EffectRow

Source = Literal["executed", "confirmed", "reported"]
"""How the outcome is known: executed by us; confirmed by a status check, a signed webhook or a person; reported by a program."""


class EffectTransition(msgspec.Struct, frozen=True):
    """One kind of state change: the allowed states before it, and the possible states after it."""

    sources: frozenset[str]
    targets: frozenset[str]


def _transition(sources: str, targets: str) -> EffectTransition:
    return EffectTransition(frozenset(sources.split()), frozenset(targets.split()))


EFFECT_STATES = (
    "waiting",
    "approved",
    "expired",
    "claimed",
    "committed",
    "failed",
    "unknown",
    "released",
    "rejected",
)

TRANSITIONS = {
    "refuse": _transition("none failed released expired rejected", "none failed released expired rejected"),
    "wait": _transition("none failed released expired rejected", "waiting"),
    "approve": _transition("waiting", "approved"),
    "answer": _transition("waiting", "committed"),
    "expire": _transition("waiting", "expired"),
    "renew": _transition("expired", "waiting"),
    "supersede": _transition("waiting approved expired", "released"),
    "claim": _transition("none failed released approved expired rejected", "claimed"),
    "extend": _transition("claimed", "claimed"),
    "repeat": _transition("unknown", "claimed"),
    "commit": _transition("claimed unknown", "committed"),
    "fail": _transition("claimed unknown", "failed committed"),
    "mark_unknown": _transition("claimed", "unknown committed"),
    "release": _transition("unknown", "released"),
    "reject": _transition("waiting expired unknown", "rejected"),
    "commit_late": _transition("unknown failed released rejected expired waiting approved", "committed"),
    "duplicate": _transition("claimed committed", "claimed committed"),
}
"""Only the holder of the last claim may fail an unknown effect: it knows that its own call did nothing. `fail` and
`mark_unknown` commit an effect that an earlier holder has reported done since."""


class EffectPosition(msgspec.Struct, frozen=True):
    """The position of an effect in the job's code, and the fingerprint of its request."""

    path: str
    ordinal: int
    fingerprint: str


def enter(row: EffectRow, transition: str, target: str) -> None:
    """Change the state. Raises Conflict if the table does not allow it."""
    check_transition(transition, row.state, row.tool)
    if target not in TRANSITIONS[transition].targets:
        raise Conflict(f"effect {row.tool}: {transition} to {target} is not possible")
    row.state = target


def check_transition(transition: str, state: str, tool: str) -> None:
    """Raise Conflict if the table does not allow this transition in this state."""
    if state not in TRANSITIONS[transition].sources:
        raise Conflict(f"effect {tool} is {state}: {transition} is not possible")


def at(position: EffectPosition | None) -> dict[str, Any]:
    """The columns of an event at a position."""
    if position is None:
        return {}
    return {"path": position.path, "ordinal": position.ordinal, "fingerprint": position.fingerprint}


def facts_of(name: str, row: EffectRow, job: JobRow, about: str | None) -> Event:
    """The event of a change: `detail` names the effect, and its job if another job writes the event."""
    event = Event(name, name=row.tool, kind="effect", idempotency_key=row.effect_key, attempt=job.attempt, about=about)
    event.detail = {"effect_id": row.effect_id}
    if row.job_id != job.job_id:
        event.detail["of_job_id"] = row.job_id
    return event


def end_review(unit: Unit, job: JobRow, row: EffectRow, why: str, *, approved_too: bool = False) -> None:
    """Supersede the review that the effect waits for, which has no subject any more. `why`: fixed words."""
    review_id, row.review_id = row.review_id, None
    if review_id is None:
        return
    unit.lock([(REVIEW, review_id)])
    review = unit.get(REVIEW, review_id)
    if review is not None and review.job_id == job.job_id:
        supersede_review(unit, job, review, why, approved_too=approved_too)


# ── decisions of people ──────────────────────────────────────────────────────────────────────────────────────────────


def approve(
    unit: Unit,
    job: JobRow,  # noqa: ARG001
    row: EffectRow,
    actor: str,  # noqa: ARG001
    edited_sha256: str | None = None,
) -> None:
    """Record that a person approved the effect that waits for `row.review_id`. The caller writes `review_decided`.

    `edited_sha256`: the digest of the arguments that replace those that were asked. The transitions of reviews take the
    same arguments, although not all of them write an event.
    """
    enter(row, "approve", "approved")
    row.approval_id, row.done_sha256 = row.review_id, edited_sha256
    unit.change(EFFECT, row)


def answer(
    unit: Unit,
    job: JobRow,
    row: EffectRow,
    result: bytes,
    position: EffectPosition | None,
    actor: str,
    provider_id: str | None = None,
) -> int:
    """Record that a person gave the result in place of a call. Returns the seq of `tool_succeeded`."""
    enter(row, "answer", "committed")
    row.owner = actor
    return _committed(
        unit, job, row, result, provider_id, position, source="confirmed", why=f"answered by {actor}", actor=actor
    )


def expire(unit: Unit, job: JobRow, row: EffectRow) -> None:  # noqa: ARG001
    """Record that nobody decided in time, which is no rejection. The caller writes `review_expired`."""
    enter(row, "expire", "expired")
    row.settled_at = unit.now
    unit.change(EFFECT, row)


def renew(unit: Unit, row: EffectRow) -> None:
    """Let an expired effect wait for its review again. The caller renews the review."""
    enter(row, "renew", "waiting")
    row.settled_at = None
    unit.change(EFFECT, row)


def supersede(unit: Unit, job: JobRow, row: EffectRow) -> str | None:  # noqa: ARG001
    """End the wait or the approval: the job ended, or arguments or rule changed. Returns the id of the review it had.

    The caller supersedes that review if it is open, and writes `review_superseded`.
    """
    enter(row, "supersede", "released")
    review_id, row.review_id, row.approval_id, row.done_sha256 = row.review_id, None, None, None
    row.settled_at = unit.now
    unit.change(EFFECT, row)
    return review_id


def reject(unit: Unit, job: JobRow, row: EffectRow, why: str, position: EffectPosition | None, actor: str) -> int:
    """Record a person's decision that the effect is not to be done, in this attempt or, if external, in this job.

    Returns the seq of `tool_failed`.
    """
    enter(row, "reject", "rejected")
    row.attempt = job.attempt
    return _not_done(unit, job, row, ErrorFacts("rejected", why), position, actor)


# ── the end of a claim ───────────────────────────────────────────────────────────────────────────────────────────────


def commit(
    unit: Unit,
    job: JobRow,
    row: EffectRow,
    result: bytes,
    provider_id: str | None,
    position: EffectPosition | None,
    *,
    why: str | None = None,
    source: Source | None = None,
    latency_ms: float | None = None,
    about: str | None = None,
    actor: str | None = None,
) -> int:
    """Commit the effect: it was done. Returns the seq of `tool_succeeded`.

    - `result`: JSON. `provider_id`: its id at the provider.
    - `why`: how it was found done, if not by its call. `source`: default: confirmed with `why`, otherwise executed.
    - `about`: the record that the caller works on. `actor`: the person who found it done.
    """
    enter(row, "commit", "committed")
    return _committed(
        unit,
        job,
        row,
        result,
        provider_id,
        position,
        source=source or ("confirmed" if why else "executed"),
        why=why,
        latency_ms=latency_ms,
        about=about,
        actor=actor,
    )


def commit_late(
    unit: Unit,
    job: JobRow,
    row: EffectRow,
    result: bytes,
    provider_id: str | None,
    position: EffectPosition | None,
    *,
    why: str,
    source: Source,
    about: str | None = None,
) -> int:
    """Commit the effect by the report of a holder that had lost its claim. Returns the seq of `tool_succeeded`."""
    enter(row, "commit_late", "committed")
    return _committed(unit, job, row, result, provider_id, position, source=source, why=why, about=about)


def _committed(
    unit: Unit,
    job: JobRow,
    row: EffectRow,
    result: bytes,
    provider_id: str | None,
    position: EffectPosition | None,
    *,
    source: Source,
    why: str | None = None,
    latency_ms: float | None = None,
    about: str | None = None,
    actor: str | None = None,
) -> int:
    row.result, row.provider_id, row.settled_at, row.source = result, provider_id, unit.now, source
    row.expires_at, row.error = None, None
    end_review(unit, job, row, "the effect was found done")
    unit.change(EFFECT, row)
    event = facts_of("tool_succeeded", row, job, about)
    event.latency_ms, event.actor = latency_ms, actor
    event.detail = {**(event.detail or {}), "source": source}
    if provider_id:
        event.detail["provider_id"] = provider_id
    if why:
        event.decision = {"why": why}
    return append(unit, job, event, content=result, **at(position))


def fail(
    unit: Unit,
    job: JobRow,
    row: EffectRow,
    error: ErrorFacts,
    position: EffectPosition | None,
    about: str | None = None,
) -> int:
    """Record that the effect was certainly not done. Returns the seq of `tool_failed`.

    If an earlier holder has reported it done, it is committed, and the seq is that of `tool_succeeded`.
    """
    if _was_reported(row):
        return _commit_reported(unit, job, row, position, about)
    enter(row, "fail", "failed")
    return _not_done(unit, job, row, error, position, None, about)


def _not_done(
    unit: Unit,
    job: JobRow,
    row: EffectRow,
    error: ErrorFacts,
    position: EffectPosition | None,
    actor: str | None,
    about: str | None = None,
) -> int:
    row.error, row.settled_at, row.expires_at = error.message[:500], unit.now, None
    end_review(unit, job, row, "the effect is certainly not done")
    unit.change(EFFECT, row)
    event = facts_of("tool_failed", row, job, about)
    event.error, event.actor = error, actor
    return append(unit, job, event, **at(position))


def release(
    unit: Unit, job: JobRow, row: EffectRow, why: str, actor: str | None = None, about: str | None = None
) -> None:
    """Record that a status check or a person found the effect not done: it may be claimed again."""
    enter(row, "release", "released")
    row.settled_at = unit.now
    end_review(unit, job, row, "the effect was found not done")
    unit.change(EFFECT, row)
    event = facts_of("tool_failed", row, job, about)
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
    if _was_reported(row):
        _commit_reported(unit, job, row, position, about)
        return
    enter(row, "mark_unknown", "unknown")
    row.settled_at, row.expires_at = unit.now, None
    unit.change(EFFECT, row)
    event = facts_of("tool_unknown", row, job, about)
    event.decision = {"class": cause, "why": why}
    append(unit, job, event, content=trace, **at(position))


def _was_reported(row: EffectRow) -> bool:
    """Whether an earlier holder has reported it done since it was claimed again."""
    return row.state == "claimed" and row.source == "reported"


def _commit_reported(
    unit: Unit, job: JobRow, row: EffectRow, position: EffectPosition | None, about: str | None
) -> int:
    """Commit by the report of an earlier holder, now that the second claim ends without a result of its own."""
    why = "reported by an earlier holder; the later call did not report it done"
    result, provider_id = row.result or b"null", row.provider_id
    return commit(unit, job, row, result, provider_id, position, why=why, source="reported", about=about)


def ask_outcome(unit: Unit, row: EffectRow, review_id: str) -> None:
    """Note the review of an unknown outcome. The caller requests it in the same unit."""
    row.review_id = review_id
    unit.change(EFFECT, row)


def mark_expired(unit: Unit, job: JobRow, row: EffectRow) -> bool:
    """Make a claim whose time is over unknown. Returns whether it was."""
    if row.state != "claimed" or row.expires_at is None or row.expires_at > unit.now:
        return False
    mark_unknown(unit, job, row, "claim_expired", "its claim expired without a report")
    return True
