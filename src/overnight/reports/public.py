"""Receipts as public JSON."""

from collections.abc import Sequence
from typing import Any

import msgspec

from overnight.domain import iso_utc

from .records import CheckedClaim, EffectEntry, Receipt, ReviewEntry, UnexecutedCall


def public_receipt(receipt: Receipt, *, with_content: bool) -> dict[str, Any]:
    """A receipt as JSON. Content (arguments, reasons, questions, statements) is included only on request."""
    return {
        "job_id": receipt.job_id,
        "name": receipt.name,
        "external_id": receipt.external_id,
        "tenant_id": receipt.tenant_id,
        "runtime": receipt.runtime,
        "state": receipt.state,
        "settled": receipt.settled,
        "none": receipt.none,
        "counts": receipt.counts,
        "found_by": receipt.found_by,
        "effects": [public_effect(entry, with_content=with_content) for entry in receipt.effects],
        "more": receipt.more,
        "reviews": [_public_review(review, with_content) for review in receipt.reviews],
        "unexecuted": [_public_call(call) for call in receipt.unexecuted],
        "claims": [_public_claim(claim, with_content) for claim in receipt.claims],
        "jobs": receipt.jobs,
        "is_partial": receipt.is_partial,
    }


def public_effect(entry: EffectEntry, *, with_content: bool) -> dict[str, Any]:
    """One effect as JSON; the same wherever an effect is shown."""
    waits = entry.waits_for
    shown: dict[str, Any] = {
        "effect_id": entry.effect_id,
        "job_id": entry.job_id,
        "tool": entry.tool,
        "state": entry.state,
        "provider_id": entry.provider_id,
        "found_by": entry.found_by,
        "how": entry.how or None,
        "key": entry.key,
        "about": entry.about,
        "contract": entry.contract,
        "attempt": entry.attempt,
        "replayed": entry.replayed,
        "edited": entry.edited,
        "decided_by": entry.decided_by,
        "error_class": entry.error_class,
        "duplicates": list(entry.duplicates),
        "waits_for": None
        if waits is None
        else {
            "review_id": waits.review_id,
            "kind": waits.kind,
            "by": list(waits.by),
            "expires_at": iso_utc(waits.expires_at) if waits.expires_at else None,
        },
        "since": iso_utc(entry.since),
        "at": iso_utc(entry.at),
    }
    if with_content:
        shown["arguments"] = msgspec.Raw(entry.arguments) if entry.arguments else None
        shown["reason"] = entry.reason or None
    return shown


def public_day(
    agent_id: str, day: str, receipts: Sequence[Receipt], has_more: bool, *, with_content: bool
) -> dict[str, Any]:
    """The receipts of an agent's day as JSON."""
    return {
        "agent_id": agent_id,
        "day": day,
        "counts": sum_counts(receipts),
        "settled": all(receipt.settled for receipt in receipts),
        "none": all(receipt.none for receipt in receipts),
        "receipts": [public_receipt(receipt, with_content=with_content) for receipt in receipts],
        "has_more": has_more,
    }


def sum_counts(receipts: Sequence[Receipt]) -> dict[str, int]:
    """The effects of several receipts by state."""
    total: dict[str, int] = {}
    for receipt in receipts:
        for state, number in receipt.counts.items():
            total[state] = total.get(state, 0) + number
    return total


def _public_review(review: ReviewEntry, with_content: bool) -> dict[str, Any]:
    shown = {
        "review_id": review.review_id,
        "job_id": review.job_id,
        "kind": review.kind,
        "state": review.state,
        "answer": review.answer,
        "decided_by": review.decided_by,
        "by": list(review.by),
        "since": iso_utc(review.at),
        "expires_at": iso_utc(review.expires_at) if review.expires_at else None,
    }
    return shown | {"question": review.question} if with_content else shown


def _public_call(call: UnexecutedCall) -> dict[str, Any]:
    return {"job_id": call.job_id, "tool": call.tool, "call_id": call.call_id, "at": iso_utc(call.at)}


def _public_claim(claim: CheckedClaim, with_content: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "tool": claim.tool,
        "verdict": claim.verdict,
        "effect_id": claim.effect_id,
        "found_by": claim.found_by,
    }
    return {"text": claim.text} | shown | {"arguments": claim.arguments} if with_content else shown
