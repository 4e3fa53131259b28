"""The row of a review, and the open reviews of a job."""

import hashlib
import hmac

import msgspec

from overnight.store import Table, Unit, statements

SQL = statements("overnight.reviews")


class ReviewRow(msgspec.Struct):
    """`kind` is one of `KINDS`; `detail` is JSON.

    The job's row orders everything about its reviews: who changes a review has locked its job.

    Fields:
        state: open, approved, rejected, answered, expired or superseded; earlier versions also wrote withdrawn.
        decided_at: the time of the decision, or of the end of a superseded review.
        digest: that of `digest_of`; its key is erased with the question and the detail.
        expires_at: the end of an open review, in microseconds. deciders: the names that its rule permits, as JSON.
        effect_key: the effect that waits for it. arguments_sha256: the digest of the effect's arguments.
        rule_digest: the digest of the rule and contract that asked. key_id: the API key whose request asked.
        answer: the decision as JSON, a `GivenAnswer`.
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


class OpenReviews(msgspec.Struct):
    """The ids of the open reviews of a job as JSON, read under the job's lock."""

    job_id: str
    review_ids: str


def _job_of(row: OpenReviews) -> str:
    return row.job_id


_READ = SQL["read_open"]
OPEN_REVIEWS: Table[OpenReviews] = Table(52, OpenReviews, _job_of, lock=_READ, insert=_READ, update=_READ)
"""Commands that may end open reviews of a job lock its row here, which saves a round trip of their own."""


def open_reviews(unit: Unit, job_id: str) -> list[ReviewRow]:
    """The open reviews of a locked job, locked, oldest first. Also those that earlier commands of this transaction changed."""
    unit.lock([(OPEN_REVIEWS, job_id)])
    stored = unit.get(OPEN_REVIEWS, job_id)
    if stored is not None:
        ids: list[str] = msgspec.json.decode(stored.review_ids)
        unit.lock([(REVIEW, review_id) for review_id in ids])
    found = [row for row in unit.loaded(REVIEW) if row.job_id == job_id and row.state == "open"]
    return sorted(found, key=_review_key)


def digest_of(kind: str, question: str, detail: str, key: bytes | None, *bound: str | None) -> str:
    """The digest that binds a review to its subject: an HMAC, since a plain hash would confirm guesses of a short question.

    `bound`: the digests of arguments and rule, and the effect's key, where there are any. Earlier versions had no key.
    """
    subject = f"{kind}\0{question}\0{detail}".encode()
    if any(part is not None for part in bound):
        subject += "".join(f"\0{part or ''}" for part in bound).encode()
    return hashlib.sha256(subject).hexdigest() if key is None else hmac.digest(key, subject, "sha256").hex()
