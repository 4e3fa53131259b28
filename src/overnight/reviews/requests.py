"""Request a review, and renew one."""

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from overnight.domain import Conflict, Event, iso_utc, new_id
from overnight.ledger import JobRow, append
from overnight.store import Unit

from .rows import REVIEW, Boundary, ReviewRow, digest_of

DEFAULT_EXTENSION_US = 86_400_000_000
"""How long a renewed review lasts if its request named no end: a day."""


def request_review(
    unit: Unit,
    job: JobRow,
    kind: str,
    question: str,
    detail: dict[str, Any],
    boundary: Boundary | None,
    about: str | None = None,
    *,
    effect_key: str | None = None,
    arguments_sha256: str | None = None,
    rule_digest: str | None = None,
    expires_at: int | None = None,
    deciders: Sequence[str] = (),
    key_id: str | None = None,
) -> ReviewRow:
    """Request a review of a locked job, and record it in the job's history at the boundary that waits for it.

    - `kind`: one of `KINDS`. `detail`: what the card shows, content: `tool`, `arguments`, `why`, `rule`, `exception`
      (class and message), `effect_id`, `effect_key`; `answers` lists the permitted answers, if not all of the kind.
    - `about`: the record that the caller works on.
    - `effect_key`: the effect that waits for the decision, which has at most one open review. `arguments_sha256`: of its
      arguments.
    - `rule_digest`: of the matching rule and the contract. `deciders`: the names that the rule permits; empty: anyone.
    - `expires_at`: the end of the review in microseconds; None: it has none.
    - `key_id`: the API key that asked. It cannot decide.
    """
    path, ordinal = (boundary.path, boundary.ordinal) if boundary is not None else ("", 0)
    text = msgspec.json.encode(detail).decode()
    key = os.urandom(16)
    row = ReviewRow(
        review_id=new_id("rev"),
        tenant_id=job.tenant_id,
        job_id=job.job_id,
        kind=kind,
        path=path,
        ordinal=ordinal,
        question=question,
        detail=text,
        digest=digest_of(kind, question, text, key, effect_key, arguments_sha256, rule_digest),
        state="open",
        decided_by=None,
        note=None,
        requested_at=unit.now,
        decided_at=None,
        digest_key=key,
        expires_at=expires_at,
        rule_digest=rule_digest,
        effect_key=effect_key,
        arguments_sha256=arguments_sha256,
        key_id=key_id,
        deciders=msgspec.json.encode(list(deciders)).decode() if deciders else None,
    )
    unit.insert(REVIEW, row)
    _append_request(unit, job, row, boundary, about)
    return row


def _append_request(unit: Unit, job: JobRow, row: ReviewRow, boundary: Boundary | None, about: str | None) -> None:
    event, content = _requested(row, job, about), row.detail.encode()
    if boundary is None:
        append(unit, job, event, content=content)
        return
    event.kind, event.name = boundary.kind, boundary.name
    place = (row.path, row.ordinal)
    append(unit, job, event, content=content, path=place[0], ordinal=place[1], fingerprint=boundary.fingerprint)


def _requested(row: ReviewRow, job: JobRow, about: str | None = None) -> Event:
    event = Event("review_requested", attempt=job.attempt, about=about)
    event.detail = {
        "review_id": row.review_id,
        "review": row.kind,
        "question": row.question[:200],
        "digest": row.digest,
    }
    if row.expires_at is not None:
        event.detail["expires_at"] = row.expires_at
    return event


def renew_review(unit: Unit, job: JobRow, row: ReviewRow, by: str, extend_us: int | None = None) -> None:
    """Open an expired review again, or extend an open one, for `extend_us` microseconds; default: as long as at first.

    The caller moves the effect. Raises Conflict for a review that is decided or superseded.
    """
    if row.state not in {"open", "expired"}:
        raise Conflict(f"{row.review_id} cannot be renewed: it was {_ended(row)}")
    if row.expires_at is None:
        raise Conflict(f"{row.review_id} has no expiry; it needs no renewal")
    lasted = row.expires_at - row.requested_at if row.state == "expired" else DEFAULT_EXTENSION_US
    row.state, row.expires_at = "open", unit.now + (extend_us or max(lasted, 1))
    unit.change(REVIEW, row)
    event = _requested(row, job)
    event.actor = by
    event.detail = {**(event.detail or {}), "renewed": True}
    append(unit, job, event)


def _ended(row: ReviewRow) -> str:
    at = f" at {iso_utc(row.decided_at)}" if row.decided_at else ""
    return f"{row.state}{f' by {row.decided_by}' if row.decided_by else ''}{at}"
