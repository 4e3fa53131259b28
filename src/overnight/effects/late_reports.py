"""Reports of holders: what they say about their call, also after they have lost their claim.

Fencing stops claims, not reports: a late report may be the only sign that an effect was done, or done twice. The caller has
checked the holder's token, or is the process that made the call. A report repeated is no change. A second execution opens a
review; a job that waits for the outcome is woken.
"""

from typing import Any, Literal

import msgspec

from overnight.domain import ErrorFacts
from overnight.ledger import JobRow, append, lifecycle
from overnight.reviews import ReviewRow, open_reviews, request_review
from overnight.store import Unit

from .rows import EFFECT, EffectRow
from .transitions import EffectPosition, Source, commit, commit_late, enter, facts_of, fail, mark_unknown

ReportVerdict = Literal["recorded", "repeated", "duplicated", "stale"]
"""recorded: it changed the effect. repeated: it says what is known. duplicated: it was done a second time, for which a review
is open. stale: the holder has lost its claim, and its report says nothing that counts."""


def report_done(
    unit: Unit,
    job: JobRow,
    row: EffectRow,
    result: bytes,
    provider_id: str | None,
    position: EffectPosition | None = None,
    *,
    is_current: bool,
    source: Source = "reported",
    latency_ms: float | None = None,
    about: str | None = None,
) -> ReportVerdict:
    """Take the report that the effect was done. `is_current`: by the holder of the last claim.

    In a late report of an effect that was claimed again, the first id is kept: the effect is committed with it even if the
    second call turns out to have done nothing.
    """
    if row.state == "claimed" and is_current:
        other = row.source == "reported" and row.provider_id != provider_id
        former = row.provider_id
        commit(unit, job, row, result, provider_id, position, source=source, latency_ms=latency_ms, about=about)
        if other:
            _duplicated(unit, job, row, former, about)
            return "duplicated"
        return "recorded"
    if row.state == "claimed":
        return _done_by_former_holder(unit, job, row, result, provider_id, about)
    if row.state == "committed":
        same = row.provider_id == provider_id and (is_current or provider_id is not None)
        if same or (is_current and provider_id is None):
            return "repeated"
        enter(row, "duplicate", row.state)
        _duplicated(unit, job, row, provider_id, about)
        return "duplicated"
    why = "reported by its holder after the end of the claim"
    commit_late(unit, job, row, result, provider_id, position, why=why, source=source, about=about)
    lifecycle.wake(unit, job)
    return "recorded"


def _done_by_former_holder(
    unit: Unit, job: JobRow, row: EffectRow, result: bytes, provider_id: str | None, about: str | None
) -> ReportVerdict:
    if row.source == "reported" and row.provider_id == provider_id:
        return "repeated"
    enter(row, "duplicate", row.state)
    if row.source != "reported":
        row.source, row.provider_id, row.result = "reported", provider_id, result
    unit.change(EFFECT, row)
    _duplicated(unit, job, row, provider_id, about)
    return "duplicated"


def _duplicated(unit: Unit, job: JobRow, row: EffectRow, provider_id: str | None, about: str | None) -> None:
    event = facts_of("tool_duplicated", row, job, about)
    known = row.provider_id if row.state == "committed" else None
    event.detail = {**(event.detail or {}), "provider_ids": [known, provider_id], "state": row.state}
    event.decision = {"why": "a second execution of this effect was reported"}
    append(unit, job, event)
    open_ones = open_reviews(unit, job.job_id)
    if any(each.kind == "duplicate" and _subject(each) == row.effect_key for each in open_ones):
        return
    taken = any(each.effect_key == row.effect_key for each in open_ones)
    question = f"Effect {row.tool} was reported done twice. Undo one of them at the provider if they are two."
    detail = {
        "tool": row.tool,
        "effect_key": row.effect_key,
        "effect_id": row.effect_id,
        "provider_ids": [known, provider_id],
    }
    key = None if taken else row.effect_key
    request_review(unit, job, "duplicate", question, detail, None, about, effect_key=key, key_id=row.key_id)


def _subject(review: ReviewRow) -> Any:
    return msgspec.json.decode(review.detail).get("effect_key")


def report_not_done(
    unit: Unit,
    job: JobRow,
    row: EffectRow,
    error: ErrorFacts,
    position: EffectPosition | None = None,
    *,
    is_current: bool,
    about: str | None = None,
) -> ReportVerdict:
    """Take the report that the call certainly did nothing. It says nothing about a call of another holder."""
    if row.state == "failed":
        return "repeated"
    if not is_current or row.state not in {"claimed", "unknown"}:
        return "stale"
    is_awaited = row.state == "unknown"
    fail(unit, job, row, error, position, about)
    if is_awaited:
        lifecycle.wake(unit, job)
    return "recorded"


def report_unknown(
    unit: Unit,
    job: JobRow,
    row: EffectRow,
    cause: str,
    why: str,
    position: EffectPosition | None = None,
    trace: bytes | None = None,
    *,
    is_current: bool,
    about: str | None = None,
) -> ReportVerdict:
    """Take the report that the outcome of the call is unknown."""
    if row.state == "unknown":
        return "repeated"
    if not is_current or row.state != "claimed":
        return "stale"
    mark_unknown(unit, job, row, cause, why, position, trace, about)
    return "recorded"
