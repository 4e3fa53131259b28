"""Write events of a call: with its request, and at its position in the job."""

from __future__ import annotations

from overnight.domain import Event, Recorded
from overnight.ledger import (
    MAX_INLINE_CONTENT,
    JobRow,
    KnownContent,
    append,
    store_blob,
    store_chain,
)
from overnight.store import Unit
from overnight.wire_formats.request import Request

from ..identity import BoundaryPosition


def append_with_request(
    unit: Unit,
    job: JobRow,
    event: Event,
    request: Request,
    known: KnownContent,
    *,
    place: BoundaryPosition | None = None,
    fingerprint: str | None = None,
) -> int:
    """Append an event with the request of the call: conversation, tools and parameters. Returns the event's seq.

    The event's `detail` is extended."""
    detail = event.detail = event.detail if event.detail is not None else {}
    event.input_ref = store_chain(unit, job.tenant_id, request.links, known) or None
    if request.tools is not None:
        detail["tools_ref"] = store_blob(unit, job.tenant_id, request.tools, known)
    params = request.params if len(request.params) <= MAX_INLINE_CONTENT else None
    if params is None:
        detail["params_ref"] = store_blob(unit, job.tenant_id, request.params)
    return append_at(unit, job, event, place, params, fingerprint).seq


def append_at(
    unit: Unit,
    job: JobRow,
    event: Event,
    place: BoundaryPosition | None,
    content: bytes | None = None,
    fingerprint: str | None = None,
) -> Recorded:
    """Append an event at the call's position in job code, or with the fingerprint of an external job's request. Returns the
    event as read back."""
    path, ordinal = None, None
    if place is not None:
        path, ordinal, fingerprint = place.path, place.ordinal, place.fingerprint
    seq = append(unit, job, event, content=content, path=path, ordinal=ordinal, fingerprint=fingerprint)
    return Recorded(
        job_id=job.job_id,
        seq=seq,
        at=unit.now,
        facts=event,
        path=path,
        ordinal=ordinal,
        fingerprint=fingerprint,
        content=content,
        tenant_id=job.tenant_id,
        parent_job_id=job.parent_job_id,
    )
