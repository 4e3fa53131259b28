"""The settlement of an attempt in the log: its only end, or the correction of a call that was declared lost."""

from __future__ import annotations

import msgspec

from overnight.budgets import (
    BOUND,
    FAILED,
    LATE_ANSWER,
    LOST,
    NO_USAGE,
    OVER_BOUND,
    RESERVATION,
    Booked,
    BoundRow,
    ReservationRow,
    corrected,
    decode_estimate,
    settle,
)
from overnight.circuit_breakers import apply_update
from overnight.domain import Conflict, Event, Recorded
from overnight.ledger import (
    MAX_INLINE_CONTENT,
    JobRow,
    append,
    count_usage,
    store_blob,
)
from overnight.store import Unit

from ..identity import BoundaryPosition, Subject
from .attempt_result import AttemptResult
from .event_writer import append_at
from .log_search import search_log

MAX_EVENTS_OF_CALL = 1000
"""A maximum for the search. A call has few events: admission, end, corrections, events of its circuit and budgets."""


def booked_amounts(recorded: Recorded) -> Booked:
    """The booked cost and bound of the end of a call."""
    return Booked(recorded.facts.cost_microusd or 0, recorded.facts.bound_microusd or 0)


def write_result(
    unit: Unit, job: JobRow, result: AttemptResult, subject: Subject, *, place: BoundaryPosition | None = None
) -> Recorded:
    """Settle an attempt and write its event. Returns the event as read back. With `place` it answers that boundary of job code.

    A call has one end. If it was declared lost, a late result corrects its cost and is no answer in the log. A repeated
    settlement changes nothing and returns the event of the first one.
    """
    event = msgspec.structs.replace(result.event)
    event.attempt = job.attempt if place else (subject.attempt or job.attempt)
    why = FAILED if event.event == "model_failed" else NO_USAGE
    if "told" in (event.detail or {}):
        why = OVER_BOUND  # keeps a row of the call, so that a person can book its actual cost
    used = result.tokens[0] + result.tokens[2]
    try:
        booked = settle(unit, result.call_id, result.cost_microusd, used, bound_microusd=result.bound_microusd, why=why)
    except Conflict:
        return _written_before(unit, job, result.call_id) or _write_late(unit, job, result, event)
    event.cost_microusd = booked.cost_microusd
    # An estimated cost states its bound of 0 explicitly: in older logs an estimate alone was a bound.
    estimated = bool((event.detail or {}).get("estimated"))
    if booked.bound_microusd or result.cost_microusd is None or result.bound_microusd or estimated:
        event.bound_microusd = booked.bound_microusd
    fingerprint = subject.fingerprint if place is None and event.event == "model_succeeded" else None
    if event.event == "model_succeeded" or booked != Booked():
        cost, bound = booked.cost_microusd, booked.bound_microusd
        count_usage(unit, job, event.agent_id, result.model, result.tokens, cost, bound)
    return _write_end(unit, job, result, event, place, fingerprint)


def write_lost(unit: Unit, job: JobRow, call_id: str, why: str) -> bool:
    """Settle a call as lost and write `model_lost`: the whole reservation is booked as a bound. Returns whether it was open."""
    row: ReservationRow | None = unit.get(RESERVATION, call_id)
    if row is None:
        return False
    estimate = decode_estimate(row.estimate)
    bound = settle(unit, call_id, None, why=LOST).bound_microusd
    event = estimate.event("model_lost", call_id)
    event.attempt, event.cost_microusd, event.bound_microusd = job.attempt, 0, bound
    event.decision = {"why": why}
    event.detail = {"estimated": True}
    append(unit, job, event)
    count_usage(unit, job, estimate.agent_id, estimate.model, (0, 0, 0), 0, bound)
    return True


def _write_end(
    unit: Unit,
    job: JobRow,
    result: AttemptResult,
    event: Event,
    place: BoundaryPosition | None,
    fingerprint: str | None,
) -> Recorded:
    """Append the event with the answer, and write the rows that belong to it."""
    content = result.content
    if content is not None and len(content) > MAX_INLINE_CONTENT:
        event.output_ref, content = store_blob(unit, job.tenant_id, content), None
    written = append_at(unit, job, event, place, content, fingerprint)
    if result.also is not None:
        result.also.write(unit, written)
    if result.breaker_update is not None:
        apply_update(unit, job, result.breaker_update, event)
    return written


def _written_before(unit: Unit, job: JobRow, call_id: str) -> Recorded | None:
    """The event of an earlier settlement of the call, if any: its end, or the correction after `model_lost`."""
    found = search_log(unit, job, call_id, MAX_EVENTS_OF_CALL)
    return next((each for each in found if each.facts.call_id == call_id and _settles(each.facts)), None)


def _settles(event: Event) -> bool:
    if event.event == "cost_corrected":
        return (event.detail or {}).get("source") == LATE_ANSWER
    return event.event in {"model_succeeded", "model_failed"}


def _write_late(unit: Unit, job: JobRow, result: AttemptResult, ended: Event) -> Recorded:
    """Write `cost_corrected` for an end that arrives after the call was settled, with the usage it reports. A manual booking
    stays, and a cost that is still unknown leaves the bound."""
    unit.lock([(BOUND, result.call_id)])
    row: BoundRow | None = unit.get(BOUND, result.call_id)
    known = Booked(result.cost_microusd or 0, result.bound_microusd)
    if row is None:
        # Declared lost by a version without this row. Its bound is included in the spent amount.
        event = msgspec.structs.replace(ended, event="cost_corrected", cost_microusd=None, bound_microusd=None)
        event.detail = {**(ended.detail or {}), "source": LATE_ANSWER}
        event.decision = {"why": "it was settled before this was known; the booking stays"}
        return _write_end(unit, job, result, event, None, None)
    used: int | None = result.tokens[0] + result.tokens[2]
    why = "its answer arrived after it was declared lost"
    if row.source not in {None, LATE_ANSWER}:
        known, used = Booked(row.cost_microusd, row.bound_microusd), None
        why += "; the manual booking stays"
    elif result.cost_microusd is None:
        known, used = Booked(row.cost_microusd, row.bound_microusd), None
        why += ", and does not report its cost"
    source = row.source if row.source not in {None, LATE_ANSWER} else LATE_ANSWER
    event = corrected(unit, job, row, known, used, source or LATE_ANSWER)
    if row.why == LOST:  # its tokens are counted nowhere yet
        count_usage(unit, job, ended.agent_id, result.model, result.tokens, 0, calls=0, day=row.day)
    event.attempt, event.latency_ms, event.error = ended.attempt, ended.latency_ms, ended.error
    event.input_tokens, event.output_tokens = ended.input_tokens, ended.output_tokens
    event.cached_tokens, event.actor = ended.cached_tokens, ended.actor
    event.decision = {"why": why}
    event.detail = {**(ended.detail or {}), **(event.detail or {}), "source": LATE_ANSWER}
    return _write_end(unit, job, result, event, None, None)
