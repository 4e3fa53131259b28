"""The message about a review, before it takes the form of an address."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from overnight.domain import iso_utc
from overnight.reviews import ReviewRow

from .rows import AddressOptions
from .texts import one_line, plain

SAMPLE_ID = "rev_sample"


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What a person is told. Times are microseconds UTC.

    Attributes:
        message_id: the id of the delivery, the same in each attempt.
        question, detail: empty if the address gets no content; `detail` is JSON.
        link: the address of the card; empty without links. can_decide: whether the card at the link has a form.
    """

    message_id: str
    review_id: str
    tenant_id: str
    job_id: str
    kind: str
    question: str
    detail: str
    digest: str
    requested_at: int
    expires_at: int | None
    link: str = ""
    can_decide: bool = False
    is_sample: bool = False

    @property
    def subject(self) -> str:
        """One line."""
        if self.is_sample:
            return "Sample notification"
        asked = one_line(self.question, 120)
        return f"{one_line(self.kind, 40)}: {asked}" if asked else f"{one_line(self.kind, 40)} {self.review_id}"

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Names and values for people."""
        found = [("Review", self.review_id), ("Kind", one_line(self.kind, 40)), ("Job", one_line(self.job_id, 80))]
        found.append(("Requested", iso_utc(self.requested_at)))
        if self.expires_at is not None:
            found.append(("Answer until", iso_utc(self.expires_at)))
        return found

    @property
    def how_to_answer(self) -> str:
        """What to do without a link that decides."""
        if self.is_sample:
            return "No answer is needed."
        return (
            "To answer, run `overnight reviews` on the machine of the ledger, or send"
            f" POST /api/v1/reviews/{self.review_id}/decide with a key that has the scope reviews.decide."
        )


def delivery_id_of(review_id: str, address_id: str) -> str:
    """The id of a delivery: the idempotency key, of the review and the address."""
    return "msg_" + hashlib.sha256(f"{review_id}\0{address_id}".encode()).hexdigest()[:32]


def message_of(
    review: ReviewRow, delivery_id: str, options: AddressOptions, *, link: str = "", can_decide: bool = False
) -> Message:
    """The message about a review."""
    return Message(
        message_id=delivery_id,
        review_id=review.review_id,
        tenant_id=review.tenant_id,
        job_id=review.job_id,
        kind=review.kind,
        question=plain(review.question) if options.content else "",
        detail=review.detail if options.content else "",
        digest=review.digest,
        requested_at=review.requested_at,
        expires_at=review.expires_at,
        link=link,
        can_decide=can_decide,
    )


def sample_message(tenant_id: str, message_id: str, now: int) -> Message:
    """The message of the command `test`."""
    return Message(
        message_id=message_id,
        review_id=SAMPLE_ID,
        tenant_id=tenant_id,
        job_id="job_sample",
        kind="sample",
        question="This is a sample. Reviews that wait for a person are sent to this address.",
        detail='{"to":"ann@example.com","usd":40}',
        digest="",
        requested_at=now,
        expires_at=None,
        is_sample=True,
    )


def readable_detail(detail: str) -> str:
    """JSON in indented lines."""
    if not detail or detail == "{}":
        return ""
    return plain(msgspec.json.format(detail.encode(), indent=2).decode("utf-8", "replace"))


def webhook_body(message: Message) -> bytes:
    """The payload of a webhook: `type`, `timestamp` and `data`, as Standard Webhooks recommends."""
    data: dict[str, Any] = {
        "review_id": message.review_id,
        "tenant_id": message.tenant_id,
        "job_id": message.job_id,
        "kind": message.kind,
        "requested_at": iso_utc(message.requested_at),
        "expires_at": iso_utc(message.expires_at) if message.expires_at is not None else None,
        "digest": message.digest,
    }
    if message.question:
        data["question"] = message.question
    if message.detail:
        data["detail"] = msgspec.Raw(message.detail.encode())
    if message.link:
        data |= {"link": message.link, "link_decides": message.can_decide}
    kind = "notification.sample" if message.is_sample else "review.requested"
    return msgspec.json.encode({"type": kind, "timestamp": iso_utc(message.requested_at), "data": data})
