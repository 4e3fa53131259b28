"""Reviews: questions to people, each bound to the digest of its subject."""

import hashlib
import hmac
import os
from typing import Any

import msgspec

from overnight.domain import BadInput, Conflict, Event, new_id
from overnight.ledger import JobRow, append
from overnight.store import Store, Table, Unit, records_of, statements

SQL = statements("overnight.reviews")


class ReviewRow(msgspec.Struct):
    """`kind` is approval, quarantine, divergence or loop; `detail` is JSON.

    Fields:
        state: open, approved, rejected or withdrawn; also expired and superseded.
        digest: that of `digest_of`; its key is erased with the question and the detail.
        expires_at: the end of an open review, in microseconds. deciders: the names that its rule permits, as JSON.
        effect_key: the effect that waits for it. arguments_sha256: the digest of the effect's arguments.
        rule_digest: the digest of the rule and contract that asked. key_id: the API key whose request asked.
        answer: the decision as JSON: its verb, and edited arguments or a text.
    """

    review_id: str
    tenant_id: str
    job_id: str
    kind: str
    path: str
    ordinal: int
    question: str
    detail: str
    digest: str
    state: str
    decided_by: str | None
    note: str | None
    requested_at: int
    decided_at: int | None
    digest_key: bytes | None = None
    expires_at: int | None = None
    rule_digest: str | None = None
    effect_key: str | None = None
    answer: bytes | None = None
    arguments_sha256: str | None = None
    key_id: str | None = None
    deciders: str | None = None


class Boundary(msgspec.Struct, frozen=True):
    """The boundary in job code that waits for the decision; external programs have none."""

    kind: str
    name: str
    path: str
    ordinal: int
    fingerprint: str


def _review_key(row: ReviewRow) -> str:
    return row.review_id


REVIEW: Table[ReviewRow] = Table(
    50,
    ReviewRow,
    _review_key,
    lock=SQL["lock_review"],
    insert=SQL["insert_review"],
    update=SQL["update_review"],
)


def digest_of(kind: str, question: str, detail: str, key: bytes | None) -> str:
    """The digest that binds a review to its subject: an HMAC, since a plain hash would confirm guesses of a short question.
    Earlier versions had no key."""
    subject = f"{kind}\0{question}\0{detail}".encode()
    return hashlib.sha256(subject).hexdigest() if key is None else hmac.digest(key, subject, "sha256").hex()


def request_review(
    unit: Unit,
    job: JobRow,
    kind: str,
    question: str,
    detail: dict[str, Any],
    boundary: Boundary | None,
    about: str | None = None,
) -> ReviewRow:
    """Request a review, and record it in the job's history at the boundary that waits for it.

    `about`: the record that the caller works on.
    """
    path, ordinal = (boundary.path, boundary.ordinal) if boundary is not None else ("", 0)
    text = msgspec.json.encode(detail).decode()
    key = os.urandom(16)
    digest = digest_of(kind, question, text, key)
    row = ReviewRow(
        review_id=new_id("rev"),
        tenant_id=job.tenant_id,
        job_id=job.job_id,
        kind=kind,
        path=path,
        ordinal=ordinal,
        question=question,
        detail=text,
        digest=digest,
        state="open",
        decided_by=None,
        note=None,
        requested_at=unit.now,
        decided_at=None,
        digest_key=key,
    )
    unit.insert(REVIEW, row)
    event = Event("review_requested", attempt=job.attempt, about=about)
    event.detail = {"review_id": row.review_id, "review": kind, "question": question[:200], "digest": digest}
    if boundary is None:
        append(unit, job, event, content=text.encode())
    else:
        event.kind, event.name = boundary.kind, boundary.name
        append(unit, job, event, content=text.encode(), path=path, ordinal=ordinal, fingerprint=boundary.fingerprint)
    return row


def decide_review(row: ReviewRow | None, *, approved: bool, by: str, note: str | None, now: int) -> ReviewRow:
    """Decide an open review. Raises Conflict if it is already decided."""
    if row is None:
        raise BadInput("review not found; `overnight reviews` lists open reviews")
    if row.state != "open":
        raise Conflict(f"{row.review_id} was already {row.state} by {row.decided_by or 'the job'}")
    row.state, row.decided_by, row.note, row.decided_at = "approved" if approved else "rejected", by, note, now
    return row


async def list_reviews(
    store: Store, *, tenant_id: str = "", state: str = "open", job_id: str = "", most: int = 200
) -> list[ReviewRow]:
    """Reviews, oldest first. Empty filters match all reviews; `most` limits the number."""
    values = {"tenant_id": tenant_id, "state": state, "job_id": job_id, "most": most}
    return records_of(ReviewRow, await store.read(SQL["list_reviews"], values))


async def read_review(store: Store, review_id: str) -> ReviewRow:
    """One review by its id. Raises BadInput if it does not exist."""
    rows = await store.read(SQL["read_review"], {"review_id": review_id})
    if not rows:
        raise BadInput(f"review {review_id} not found; `overnight reviews` lists open reviews")
    return records_of(ReviewRow, rows)[0]
