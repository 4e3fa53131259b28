"""The review of an effect whose outcome is unknown: a person says whether it was done."""

from __future__ import annotations

from typing import Any

from overnight.domain.json_text import decode_for_display
from overnight.ledger import LEDGER_SQL, JobRow
from overnight.reviews import Boundary, request_review
from overnight.store import Unit

from .rows import SQL, EffectRow
from .transitions import ask_outcome

_INSERT_EVENT = LEDGER_SQL["insert_event"]


def quarantine(
    unit: Unit,
    job: JobRow,
    row: EffectRow,
    why: str,
    about: str | None = None,
    boundary: Boundary | None = None,
    arguments: Any = None,
    exception: dict[str, str] | None = None,
) -> str | None:
    """Request the review of an unknown outcome, unless it has one. Returns its id; None for an effect in another state.

    `why`: the cause, in words that the card shows. `boundary`: that in job code which waits for the decision. `arguments`:
    those of the call, if the caller has them. `exception`: class and message of what ended the call.
    """
    if row.state != "unknown":
        return None
    if row.review_id is not None:
        return row.review_id
    question = f"Was effect {row.tool} done? Its outcome is unknown: {why}."
    detail: dict[str, Any] = {
        "effect_key": row.effect_key,
        "effect_id": row.effect_id,
        "tool": row.tool,
        "arguments": used_arguments(unit, row) if arguments is None else arguments,
        "why": why,
    }
    if exception is not None:
        detail["exception"] = exception
    review = request_review(
        unit,
        job,
        "quarantine",
        question,
        detail,
        boundary,
        about,
        effect_key=row.effect_key,
        arguments_sha256=row.done_sha256 or row.arguments_sha256,
        key_id=row.key_id,
    )
    ask_outcome(unit, row, review.review_id)
    return review.review_id


def used_arguments(unit: Unit, row: EffectRow) -> Any:
    """The arguments of the last claim, from its event. None if they are erased, or a version without `called_seq` wrote it."""
    if row.called_seq is None:
        return None
    found = [
        each.content for each in unit.appended(_INSERT_EVENT) if (each.job_id, each.seq) == (row.job_id, row.called_seq)
    ]
    found += [
        content for (content,) in unit.query(SQL["read_arguments"], {"job_id": row.job_id, "seq": row.called_seq})
    ]
    return decode_for_display(bytes(found[0])) if found and found[0] is not None else None
