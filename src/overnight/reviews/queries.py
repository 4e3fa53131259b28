"""Reads of reviews, and their public form."""

from collections.abc import Sequence
from typing import Any

import msgspec

from overnight.domain import ALL_JOBS, BadInput, KeyScope, iso_utc
from overnight.domain.json_text import decode_for_display
from overnight.store import Store, records_of

from .answers import STORED, answers_of, given_answer, public_state
from .rows import SQL, ReviewRow


class ReviewFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which reviews of a tenant to list. Empty fields match all; `state` is a public one. `after`: the last id of the previous
    page. `key_scope`: the jobs that the API key can access."""

    tenant_id: str
    state: str = ""
    kind: str = ""
    job_id: str = ""
    after: str = ""
    most: int = 200
    key_scope: KeyScope = ALL_JOBS


async def find_reviews(store: Store, wanted: ReviewFilter) -> list[ReviewRow]:
    """A page of reviews in the order of their ids, which is that of their requests."""
    values = {name: getattr(wanted, name) for name in ("tenant_id", "kind", "job_id", "after", "most")}
    scope, stored = wanted.key_scope, STORED.get(wanted.state, ())
    values |= {"agent_id": scope.agent_id or "", "workflow": scope.workflow or ""}
    values["names"] = msgspec.json.encode(scope.jobs).decode()
    # At most three stored states have the same public one.
    for place in range(3):
        values[f"state_{place}"] = stored[min(place, len(stored) - 1)] if stored else ""
    statement = SQL["find_pending" if wanted.state == "pending" else "find_reviews"]
    return records_of(ReviewRow, await store.read(statement, values))


async def list_reviews(
    store: Store, *, tenant_id: str = "", state: str = "open", job_id: str = "", most: int = 200
) -> list[ReviewRow]:
    """Reviews, oldest first, by their stored state. Empty filters match all reviews; `most` limits the number."""
    values = {"tenant_id": tenant_id, "state": state, "job_id": job_id, "most": most}
    return records_of(ReviewRow, await store.read(SQL["list_reviews"], values))


async def read_review(store: Store, review_id: str) -> ReviewRow:
    """One review by its id. Raises BadInput if it does not exist."""
    rows = await store.read(SQL["read_review"], {"review_id": review_id})
    if not rows:
        raise BadInput(f"review {review_id} not found; `overnight reviews` lists pending reviews")
    return records_of(ReviewRow, rows)[0]


async def list_expired(store: Store, now: int, most: int = 500) -> Sequence[tuple[str, str, str, str | None]]:
    """Open reviews whose time is over: review id, job id, tenant id, effect key; the longest over first."""
    rows = await store.read(SQL["list_expired"], {"now": now, "most": most})
    return [(review_id, job_id, tenant_id, key) for review_id, job_id, tenant_id, key in rows]


_FACTS = ("tool", "contract", "effect_id", "rule_name", "rule", "attempt", "version")
"""Parts of the detail that are names: readers without access to content see them too."""


def public_review(row: ReviewRow, *, with_content: bool = True) -> dict[str, Any]:
    """The review as JSON with public names. Without content: no question, detail, note, and nothing that an answer carries."""
    given = given_answer(row)
    decided = public_state(row) == "decided"
    detail: dict[str, Any] = msgspec.json.decode(row.detail)
    shown: dict[str, Any] = {
        "review_id": row.review_id,
        "job_id": row.job_id,
        "tenant_id": row.tenant_id,
        "kind": row.kind,
        "state": public_state(row),
        "answer": given.answer if given is not None else None,
        "answers": answers_of(row),
        "question": row.question,
        "detail": detail,
        "digest": row.digest,
        "arguments_sha256": row.arguments_sha256,
        "rule_digest": row.rule_digest,
        "by": msgspec.json.decode(row.deciders) if row.deciders else [],
        "requested_at": iso_utc(row.requested_at),
        "expires_at": iso_utc(row.expires_at) if row.expires_at else None,
        "decided_at": iso_utc(row.decided_at) if row.decided_at and decided else None,
        "superseded_at": iso_utc(row.decided_at) if row.decided_at and row.state in STORED["superseded"] else None,
        "decided_by": row.decided_by,
        "note": row.note,
    }
    if not with_content:
        del shown["question"], shown["note"]
        shown["detail"] = {name: detail[name] for name in _FACTS if isinstance(detail.get(name), str | int)}
        return shown
    if given is not None:
        carried = {"text": given.text, "provider_id": given.provider_id}
        shown |= {name: value for name, value in carried.items() if value is not None}
        for name, body in (("arguments", bytes(given.arguments)), ("result", bytes(given.result))):
            if body:
                shown[name] = decode_for_display(body)
    return shown
