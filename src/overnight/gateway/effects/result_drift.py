"""Results that do not fit the contract of their tool. A committed effect stays committed; its result is passed or held."""

from __future__ import annotations

from typing import Any

from overnight.domain import ErrorFacts, Event
from overnight.domain.json_text import decode_for_display, encode_json
from overnight.domain.tools import QUARANTINE
from overnight.effects import EffectRow
from overnight.ledger import JobRow, append
from overnight.reviews import REVIEW, open_reviews, request_review
from overnight.store import Unit
from overnight.tools import Drift, ToolContract, ToolPolicy, check_result, trim_result

from .outcomes import Refusal


def contract_of(row: EffectRow, tools: ToolPolicy | None) -> ToolContract | None:
    """The contract that the effect was claimed with; None without one, or if the brain has it no more."""
    if tools is None or row.contract is None:
        return None
    version = row.contract.rpartition("@")[2]
    return tools.contract(row.tool, int(version)) if version.isdigit() else None


def checked_result(contract: ToolContract | None, result: bytes) -> tuple[bytes, Drift | None]:
    """The part of the result that is kept, and how the whole one does not fit."""
    if contract is None:
        return result, None
    value = decode_for_display(result)
    kept = encode_json(trim_result(contract, value)) if contract.keep else result
    return kept, check_result(contract, value)


def record_drift(unit: Unit, job: JobRow, row: EffectRow, drift: Drift, about: str | None = None) -> None:
    """Record that the result does not fit. With `quarantine` its callers wait until a person accepts it."""
    event = Event("tool_drifted", name=row.tool, kind="effect", idempotency_key=row.effect_key, attempt=job.attempt)
    event.about, event.error = about, ErrorFacts("drift", drift.why)
    event.detail = {"effect_id": row.effect_id, "contract": drift.contract, "action": drift.action}
    append(unit, job, event)
    if drift.action != QUARANTINE or row.state != "committed" or row.review_id is not None:
        return
    detail: dict[str, Any] = {
        "tool": row.tool,
        "effect_id": row.effect_id,
        "effect_key": row.effect_key,
        "contract": drift.contract,
        "why": drift.why,
        "result": decode_for_display(row.result or b"null"),
    }
    question = f"Return this result of {row.tool}? It does not fit its contract: {drift.why}"[:500]
    # An effect has one open review at most, which may be that of a second execution.
    taken = any(each.effect_key == row.effect_key for each in open_reviews(unit, job.job_id))
    key = None if taken else row.effect_key
    review = request_review(unit, job, "drift", question, detail, None, about, effect_key=key, key_id=row.key_id)
    row.review_id = review.review_id


def held(unit: Unit, row: EffectRow) -> Refusal | None:
    """The refusal to return the result of a committed effect that drifted; None if it is returned."""
    if row.review_id is None:
        return None
    unit.lock([(REVIEW, row.review_id)])
    review = unit.get(REVIEW, row.review_id)
    if review is None or review.kind != "drift" or review.state not in {"open", "rejected"}:
        return None
    facts: dict[str, Any] = {"effect_id": row.effect_id, "review_id": row.review_id}
    message = f"effect {row.tool} is done, and its result does not fit the contract {row.contract}"
    if review.state == "rejected":
        return Refusal(code="drift", message=f"{message}; {review.decided_by} rejected it", **facts)
    next_step = f"a person decides review {row.review_id}; do not repeat the effect"
    return Refusal(code="drift", message=message, next_step=next_step, **facts)
