"""The ends of a review: decided once, expired, or superseded. Each is written with its event, under the lock of the job."""

import hmac
from collections.abc import Collection, Iterable
from typing import Any, Literal

import msgspec

from overnight.domain import Conflict, Event, NotFound, iso_utc
from overnight.ledger import JobRow, append
from overnight.store import Unit

from .answers import NO, Decision, given_answer, is_same_answer, kept_answer, public_state, stored_state
from .rows import REVIEW, ReviewRow, open_reviews

DecisionOutcome = Literal["decided", "repeated", "kept"]
"""`decided`: it takes effect now. `repeated`: the same answer was given before. `kept`: a no to a superseded review, which is
recorded and changes nothing."""

WAITS = frozenset({"budget", "code", "divergence"})
"""Kinds of reviews about what a parked job waits for. They end when the wait does."""

ENDED_WITH_JOB = frozenset({"approval", "budget", "code", "divergence", "loop"})
"""Kinds of reviews that the end of the job supersedes. Whether an effect was done stays a question when its job has ended."""


def decide_review(row: ReviewRow | None, decision: Decision, now: int) -> DecisionOutcome:
    """Decide an open review, once, by an answer of `check_answer`. Returns what the decision does.

    Raises Conflict, and changes nothing: the digest is not that of the review; it has another answer already; a yes comes
    after the end of the review.
    """
    if row is None:
        raise NotFound("review; `overnight reviews` lists pending reviews")
    if decision.digest is not None and not hmac.compare_digest(decision.digest.encode(), row.digest.encode()):
        raise Conflict(
            f"{row.review_id} is stale: its digest is not the one of the card that was answered. Read it again"
        )
    state, verb = public_state(row), decision.answer
    if state == "pending" and row.expires_at is not None and row.expires_at <= now:
        state = "expired"
    given = given_answer(row)
    if given is not None:
        if is_same_answer(row, decision):
            return "repeated"
        at = iso_utc(row.decided_at) if row.decided_at else "an unknown time"
        raise Conflict(
            f"{row.review_id} was already answered {given.answer!r} by {row.decided_by or 'the job'} at {at}"
        )
    if state != "pending" and verb not in NO:
        raise Conflict(_too_late(row, state, now))
    if state != "superseded":
        row.state = stored_state(verb)
        row.decided_at = now
    row.decided_by, row.note, row.answer = decision.by, decision.note, kept_answer(decision)
    return "kept" if state == "superseded" else "decided"


def _too_late(row: ReviewRow, state: str, now: int) -> str:
    if state == "expired":
        at = iso_utc(row.expires_at) if row.expires_at is not None and row.expires_at <= now else "its end"
        return f"{row.review_id} expired at {at} without a decision; renew it first: `overnight reviews renew {row.review_id}`"
    at = f" at {iso_utc(row.decided_at)}" if row.decided_at else ""
    return f"{row.review_id} was superseded{at}: its subject has changed or its job has ended"


def record_decision(unit: Unit, job: JobRow, row: ReviewRow, decision: Decision, outcome: DecisionOutcome) -> None:
    """Write a decision of `decide_review`: the row and the event, at the boundary that waits for it."""
    if outcome == "repeated":
        return
    unit.change(REVIEW, row)
    event = Event("review_decided", kind=row.kind, name=row.question[:200], actor=decision.by, attempt=job.attempt)
    event.decision = {"answer": decision.answer}
    if (state := stored_state(decision.answer)) != "answered":
        event.decision["approved"] = state == "approved"
    if decision.note:
        event.decision["note"] = decision.note
    event.detail = {"review_id": row.review_id, "review": row.kind, "digest": row.digest}
    if decision.key_id is not None:
        event.detail["key_id"] = decision.key_id
    if outcome == "kept":
        event.detail["late"] = True
        append(unit, job, event)
    elif row.kind == "approval" and row.effect_key is None:
        # The text is what the job receives: content, which replay reads from the event.
        content = None if decision.text is None else msgspec.json.encode({"text": decision.text})
        append(unit, job, event, content=content, path=row.path, ordinal=row.ordinal)
    else:
        append(unit, job, event)


def expire_review(unit: Unit, job: JobRow, row: ReviewRow) -> bool:
    """End an open review whose time is over, which is no decision. Returns whether it was ended; the caller moves the effect."""
    if row.state != "open" or row.expires_at is None or row.expires_at > unit.now:
        return False
    row.state = "expired"
    unit.change(REVIEW, row)
    event = Event("review_expired", attempt=job.attempt)
    event.detail = {"review_id": row.review_id, "review": row.kind, "expires_at": row.expires_at}
    append(unit, job, event)
    return True


def supersede_review(unit: Unit, job: JobRow, row: ReviewRow, why: str, *, approved_too: bool = False) -> bool:
    """End an open or expired review that does not apply any more. Returns whether it was; the caller moves the effect.

    `job`: the job of the review. `why` names the cause in fixed words, without content. `approved_too`: also an approval
    that was not used yet, since a stricter rule asks again.
    """
    if row.state not in {"open", "expired"} and not (approved_too and row.state == "approved"):
        return False
    row.state, row.decided_at = "superseded", unit.now
    unit.change(REVIEW, row)
    event = Event("review_superseded", attempt=job.attempt, decision={"why": why})
    event.detail = {"review_id": row.review_id, "review": row.kind}
    append(unit, job, event)
    return True


def supersede_reviews(
    unit: Unit, job: JobRow, why: str, kinds: Collection[str], keep: Collection[str] = ()
) -> list[ReviewRow]:
    """Supersede the open reviews of a locked job: those of these kinds whose id is not in `keep`. Returns them."""
    found = [row for row in open_reviews(unit, job.job_id) if row.kind in kinds and row.review_id not in keep]
    return [row for row in found if supersede_review(unit, job, row, why)]


def supersede_waits(unit: Unit, job: JobRow, waits: Iterable[dict[str, Any]], why: str) -> None:
    """Supersede the reviews of waits that have ended by themselves. Call it before the job leaves its parked state."""
    ids = [str(wait["review_id"]) for wait in waits if wait.get("review") in WAITS and wait.get("review_id")]
    unit.lock([(REVIEW, review_id) for review_id in ids])
    for review_id in ids:
        row = unit.get(REVIEW, review_id)
        if row is not None:
            supersede_review(unit, job, row, why)


def supersede_ended(unit: Unit, job: JobRow) -> list[ReviewRow]:
    """Supersede the open reviews of a job that has just ended. Returns them; the caller moves their effects.

    Two kinds of questions stay: whether an effect was done, which is as open as before; and that of the code of a failed
    job, whose next attempt waits for the same answer.
    """
    rows = [row for row in open_reviews(unit, job.job_id) if row.kind in ENDED_WITH_JOB]
    if job.state == "failed":
        rows = [row for row in rows if row.kind != "approval" or row.effect_key is not None]
    why = f"its job has ended: {job.state}"
    return [row for row in rows if supersede_review(unit, job, row, why)]
