"""Prepare the next attempt and its request, in the target's format."""

from __future__ import annotations

import msgspec

from overnight.domain import traceparent_of
from overnight.providers.error_classes import Failure
from overnight.wire_formats import Prepared
from overnight.wire_formats.reasoning_blocks import are_refused, without_reasoning_blocks

from ..admission.admission_outcomes import Granted
from ..attempt import Attempt
from ..cache import with_prompt_markers
from ..call_context import CallContext
from ..call_deadlines import CallDeadlines
from .retry_decision import AttemptState
from .target_selection import TargetSelection


def new_attempt(granted: Granted, selection: TargetSelection, before: Attempt | None) -> Attempt:
    """The attempt that was admitted at the selected target, after the one `before`."""
    return Attempt(
        call_id=granted.call_id,
        called_seq=granted.called_seq,
        target=selection.target,
        wire=selection.wire,
        grant=granted.grant,
        losses=before.losses if before is not None else (),
        markers=before.markers if before is not None else 0,
    )


def attempt_state(selection: TargetSelection, deadlines: CallDeadlines, attempts_here: int) -> AttemptState:
    """The state of a call after `attempts_here` failed attempts at its target."""
    return AttemptState(
        attempts=attempts_here,
        is_open=selection.is_open(),
        has_next=selection.has_next,
        remaining_s=deadlines.remaining_s(),
        total_s=deadlines.total_s,
        queue_s=deadlines.queue_s,
    )


class PreparedRequest(msgspec.Struct, frozen=True):
    """A request for the target, all headers, and the number of prompt-cache markers."""

    prepared: Prepared
    headers: tuple[tuple[bytes, bytes], ...]
    markers: int = 0


def prepare_request(context: CallContext, attempt: Attempt) -> PreparedRequest:
    """The request of the attempt. Raises InvalidBody if the target's format cannot represent it."""
    target, who, markers = attempt.target, context.subject.who, 0
    prepared = attempt.wire.prepare(context.request, target.upstream_model, attempt.grant.tokens, target.dialect)
    if context.decision.cache.prompt_markers:
        upstream_format = attempt.wire.upstream_format.name
        prepared, markers = with_prompt_markers(
            prepared, upstream_format, target.model, target.dialect, context.subject
        )
    headers = target.headers + prepared.headers
    if who.trace_id is not None:
        headers = (*headers, (b"traceparent", traceparent_of(who.trace_id, attempt.call_id, who.trace_flags)))
    return PreparedRequest(prepared, headers, markers)


def context_without_reasoning(context: CallContext, failure: Failure) -> CallContext | None:
    """The call without reasoning blocks of another model, if the target rejected them; None without such blocks."""
    request = context.request
    if request.left_out or not are_refused(failure.status, failure.message):
        return None
    changed = without_reasoning_blocks(request)
    return msgspec.structs.replace(context, request=changed) if changed is not None else None
