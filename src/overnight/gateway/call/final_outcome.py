"""The final outcome when every target failed or was skipped: the route's degraded answer, or a failure with the reasons."""

from __future__ import annotations

import time

from overnight.domain import new_id
from overnight.providers.error_classes import Failure
from overnight.wire_formats import AnswerContext, client_body

from ..cache import CacheLookup
from ..call_context import CallContext, call_event
from .degraded_answer import DEGRADED, FinalOutcome, fixed_answer
from .gateway_failures import circuits_open
from .target_selection import TargetSelection


async def final_outcome(
    context: CallContext,
    selection: TargetSelection,
    lookup: CacheLookup | None,
    failure: Failure | None,
    *,
    is_settled: bool,
) -> FinalOutcome | None:
    """The end of the call; None if its last failure is the end.

    Args:
        lookup: the cache lookup of the call, for an expired answer.
        failure: the last failure; None if no target could be called.
        is_settled: whether the attempt of that failure was already settled, before a wait for a circuit.
    """
    degraded, request = context.decision.degraded, context.request
    event = call_event(context, selection.target, DEGRADED)
    event.call_id = new_id("call")
    last = [f"{failure.error_class}: {failure.code}"] if failure else []
    why = "; ".join([*last, *selection.skip_reasons])
    if degraded is not None and degraded.cache and lookup is not None:
        expired = await lookup.expired()
        if expired is not None:
            of = {"job_id": expired.answer.job_id, "seq": expired.answer.seq}
            return FinalOutcome(event=event, why=why, body=expired.body, kind="cache", of=of)
    if degraded is not None and degraded.answer is not None:
        asked = AnswerContext(context.answer_id(event.call_id), DEGRADED, client_body(request), int(time.time()))
        body = fixed_answer(degraded.answer, request.format, asked)
        if body is not None:
            return FinalOutcome(event=event, why=why, body=body, kind="answer", answer_id=asked.answer_id)
    if failure is not None and not is_settled:
        return None
    message = f"no target of route {context.decision.route} can be called: {why}"
    return FinalOutcome(event=event, why=why, failure=circuits_open(message, selection.retry_after_ms()))
