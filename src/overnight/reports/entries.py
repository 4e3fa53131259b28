"""Entries of a receipt, from rows, events and reviews. Pure."""

from collections.abc import Iterable
from typing import Any, cast

import msgspec

from overnight.domain import Recorded
from overnight.effects import EffectRow

from .records import EffectEntry, ReviewEntry, WaitsFor

MAX_ARGUMENTS = 16 * 1024


class ReviewFacts(msgspec.Struct, frozen=True):
    """What a receipt reads of a review. `detail` and `deciders` are JSON."""

    review_id: str
    job_id: str
    kind: str
    state: str
    question: str
    detail: str
    decided_by: str | None
    note: str | None
    requested_at: int
    decided_at: int | None
    expires_at: int | None
    effect_key: str | None
    deciders: str | None


class TreeJob(msgspec.Struct, frozen=True):
    """What a receipt reads of a job of the tree."""

    job_id: str
    state: str
    runtime: str
    code_ref: str | None


def entry_of(row: EffectRow, job: TreeJob | None = None) -> EffectEntry:
    """The entry of an effect, from its row."""
    return EffectEntry(
        job_id=row.job_id,
        tool=row.tool,
        state=row.state,
        at=row.settled_at or row.claimed_at,
        since=row.claimed_at,
        effect_id=row.effect_id or None,
        found_by=row.source if row.state == "committed" else None,
        reason=(row.error or "") if row.state in {"failed", "rejected"} else "",
        provider_id=row.provider_id,
        key=row.client_key or row.effect_key,
        about=row.about,
        contract=row.contract,
        edited=row.done_sha256 is not None and row.done_sha256 != row.arguments_sha256,
        attempt=row.asked_attempt or row.attempt,
        effect_key=row.effect_key,
        code_ref=job.code_ref if job is not None else None,
        runtime=job.runtime if job is not None else "",
    )


def refused_entry(event: Recorded) -> EffectEntry:
    """The entry of a call that was not begun. It has no row."""
    facts, decision = event.facts, event.facts.decision or {}
    return EffectEntry(
        job_id=event.job_id,
        tool=facts.name or "",
        state="refused",
        at=event.at,
        since=event.at,
        how=str(decision.get("rule") or decision.get("why") or ""),
        reason=facts.error.message if facts.error is not None else "",
        error_class=facts.error.error_class if facts.error is not None else None,
        key=facts.idempotency_key,
        about=facts.about,
        attempt=facts.attempt or 1,
        arguments=_bounded(event.content),
        effect_key=facts.idempotency_key,
    )


def add_event(entry: EffectEntry, event: Recorded) -> None:
    """Add what an event knows of an effect beyond its row, which holds the present state."""
    facts = event.facts
    decision, detail = facts.decision or {}, facts.detail or {}
    entry.about = facts.about or entry.about
    match facts.event:
        case "tool_called":
            entry.arguments = _bounded(event.content)
        case "tool_succeeded" if not detail.get("replayed") and entry.state == "committed":
            why = str(decision.get("why") or "")
            entry.how, entry.decided_by = why, facts.actor or entry.decided_by
            # Earlier versions wrote no source, and the migration of their rows could not read the log.
            entry.found_by = detail.get("source") or ("confirmed" if why else "executed")
        case "tool_failed":
            entry.how, entry.decided_by = str(decision.get("why") or ""), facts.actor
            entry.error_class = facts.error.error_class if facts.error is not None else None
        case "tool_unknown" if entry.state == "unknown":
            entry.reason, entry.error_class = str(decision.get("why") or ""), decision.get("class")
        case "tool_duplicated":
            entry.duplicates = tuple(each for each in _provider_ids(detail) if each != entry.provider_id)
        case _:
            pass


def add_review(entry: EffectEntry, review: ReviewFacts) -> None:
    """Add the review that an effect waits for, or the person who decided it. Reviews are added in order of time."""
    if review.state == "open":
        entry.waits_for = WaitsFor(
            review_id=review.review_id, kind=review.kind, by=deciders_of(review), expires_at=review.expires_at
        )
    else:
        entry.waits_for = None
        entry.decided_by = review.decided_by or entry.decided_by
    if entry.arguments is None and (arguments := arguments_in(review)) is not None:
        entry.arguments = _bounded(msgspec.json.encode(arguments))


def review_entry(review: ReviewFacts) -> ReviewEntry:
    """A review that is about no effect."""
    is_decided = review.state in {"approved", "rejected", "answered"}
    return ReviewEntry(
        job_id=review.job_id,
        review_id=review.review_id,
        kind=review.kind,
        state={"open": "pending", "expired": "expired"}.get(review.state, "decided" if is_decided else "superseded"),
        answer=review.state if is_decided else None,
        decided_by=review.decided_by if is_decided else None,
        question=review.question,
        at=review.requested_at,
        by=deciders_of(review),
        expires_at=review.expires_at,
    )


def deciders_of(review: ReviewFacts) -> tuple[str, ...]:
    return tuple(msgspec.json.decode(review.deciders, type=list[str])) if review.deciders else ()


def arguments_in(review: ReviewFacts) -> Any:
    """The arguments of the effect that a review asks about; None if it shows none."""
    return _detail(review).get("arguments")


def key_in(review: ReviewFacts) -> str | None:
    """The key of the effect that a review is about; earlier versions wrote it into the detail only."""
    return review.effect_key or _detail(review).get("effect_key")


def _detail(review: ReviewFacts) -> dict[str, Any]:
    try:
        found: Any = msgspec.json.decode(review.detail or "{}")
    except msgspec.DecodeError:  # erased
        return {}
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _bounded(content: bytes | None) -> bytes | None:
    return content if content is not None and len(content) <= MAX_ARGUMENTS else None


def _provider_ids(detail: dict[str, Any]) -> Iterable[str]:
    for name, value in detail.items():
        if "provider_id" in name:
            for each in cast(list[Any], value) if isinstance(value, list) else [value]:
                if isinstance(each, str):
                    yield each
