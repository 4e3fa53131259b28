"""Reviews of what a parked job waits for: a budget, its code, or a divergence. They come with the park."""

from collections.abc import Iterable
from typing import Any

import msgspec

from overnight.ledger import JobRow
from overnight.reviews import (
    OPEN_REVIEWS,
    REVIEW,
    WAITS,
    ReviewRow,
    open_reviews,
    request_review,
    supersede_reviews,
)
from overnight.store import Unit

_BUDGET_FACTS = ("scope", "name", "per", "row", "limit", "bounds", "why")
_CODE_FACTS = ("class", "why")
_DIVERGENCE_FACTS = ("boundary", "position", "changed", "why")


def park_locks(job_id: str) -> list[tuple[Any, Any]]:
    """The locks of `with_reviews`, and of commands that end the open reviews of a job."""
    return [(OPEN_REVIEWS, job_id)]


def with_reviews(unit: Unit, job: JobRow, waits: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The waits of a job that is about to park, each that only a person can end with the id of its review.

    A review of an earlier park about the same is kept; those about other waits are superseded.
    """
    found: list[dict[str, Any]] = []
    pending = {row.review_id: row for row in open_reviews(unit, job.job_id)}
    present = [row for row in pending.values() if row.kind in WAITS]
    kept: set[str] = set()
    for wait in waits:
        asked = _question(wait)
        if asked is None:
            review_id = wait.get("review_id")
            found.append(wait if review_id is None or review_id in pending else _with_expiry(unit, wait, review_id))
            continue
        kind, question, detail = asked
        row = _same(present, kind, question, detail) or request_review(unit, job, kind, question, detail, None)
        kept.add(row.review_id)
        found.append({**wait, "review_id": row.review_id, "review": kind})
    supersede_reviews(unit, job, "the job no longer waits for it", WAITS, kept)
    return found


def _with_expiry(unit: Unit, wait: dict[str, Any], review_id: str) -> dict[str, Any]:
    """The wait for a review that is not open. If nobody decided it in time, the wait says so."""
    unit.lock([(REVIEW, review_id)])
    row = unit.get(REVIEW, review_id)
    return {**wait, "expired_at": row.expires_at} if row is not None and row.state == "expired" else wait


def _question(wait: dict[str, Any]) -> tuple[str, str, dict[str, Any]] | None:
    """Kind, question and detail of the review of a wait; None for one that has its review, or ends by itself."""
    why = str(wait.get("why") or "")
    match wait.get("for"):
        case "budget" if wait.get("due_at") is None:
            return "budget", f"Continue beyond the budget? {why}".strip(), _facts(wait, _BUDGET_FACTS)
        case "quarantine" if wait.get("review_id") is None:
            return "code", f"Run the job again? {why}".strip(), _facts(wait, _CODE_FACTS)
        case "divergence":
            return "divergence", f"Run the job again? {why}".strip(), _facts(wait, _DIVERGENCE_FACTS)
        case _:
            return None


def _facts(wait: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: wait[name] for name in names if wait.get(name) is not None}


def _same(present: Iterable[ReviewRow], kind: str, question: str, detail: dict[str, Any]) -> ReviewRow | None:
    text = msgspec.json.encode(detail).decode()
    return next((row for row in present if (row.kind, row.question, row.detail) == (kind, question, text)), None)
