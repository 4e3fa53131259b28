"""What a call comes to when no target is left: a degraded answer where its route has one, else the failure that says why."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from overnight.domain import new_id
from overnight.providers.error_classes import Failure
from overnight.wire_formats import Asked, client_body

from ..admission.reservation import event_of
from .degraded_answer import DEGRADED, Ending, fixed_answer

if TYPE_CHECKING:
    from .pipeline import Flight


async def ending_of(flight: Flight, failure: Failure | None, *, settled: bool) -> Ending | None:
    """After the last `failure`; without one no target could be asked at all. None where that failure itself is the end: not
    where its try was `settled` before the call waited for a circuit."""
    degraded, way = flight.decision.degraded, flight.way
    said = event_of(flight, DEGRADED)
    said.call_id = new_id("call")
    why = "; ".join([*([f"{failure.error_class}: {failure.code}"] if failure else []), *way.shut])
    if degraded is not None and degraded.cache and flight.visit is not None:
        older = await flight.visit.older()
        if older is not None:
            of = {"job_id": older.answer.job_id, "seq": older.answer.seq}
            return Ending(said, why, older.body, "cache", of)
    if degraded is not None and degraded.answer is not None:
        form = flight.request.format
        asked = Asked(flight.id_of(said.call_id), DEGRADED, client_body(flight.request), int(time.time()))
        body = fixed_answer(degraded.answer, form, asked)
        if body is not None:
            return Ending(said, why, body, "answer", answer_id=asked.answer_id)
    if failure is not None and not settled:
        return None
    message = f"no target of route {flight.decision.route} can be asked: {why}"
    wait_ms = way.retry_after_ms()
    return Ending(said, why, failure=Failure("circuit_open", "circuit_open", message, False, False, wait_ms))
