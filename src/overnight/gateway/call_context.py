"""The context of one call: all that is decided before the first attempt. Attempts never change it."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from overnight.domain import Event, span_of
from overnight.domain.policies import RouteDecision
from overnight.providers.targets import Target
from overnight.wire_formats import Codec
from overnight.wire_formats.request import Request

from .identity import Subject


def _stays_connected() -> bool:
    return False


class CallContext(msgspec.Struct, frozen=True, kw_only=True):
    """One call of one client.

    Fields:
        subject: the job of the call. The pipeline replaces it when an admission has found or created the job.
        request: the client's request, in the neutral form.
        decision: the route and its targets, in order.
        client: the codec of the client's wire format.
        started: the time of arrival, in seconds of `time.perf_counter`.
        disconnected: whether the client has closed its connection; a queued call is then abandoned.
        check: called immediately before a request is sent. Raises Fenced when the caller may no longer act for its job.
    """

    subject: Subject
    request: Request
    decision: RouteDecision
    client: Codec
    started: float
    disconnected: Callable[[], bool] = _stays_connected
    check: Callable[[], None] | None = None

    def answer_id(self, call_id: str) -> str:
        """The id of an attempt's answer, with the prefix of the client's format."""
        return self.client.answer_id_prefix + call_id.removeprefix("call_")


def new_context(
    subject: Subject,
    request: Request,
    decision: RouteDecision,
    client: Codec,
    *,
    disconnected: Callable[[], bool] | None = None,
    check: Callable[[], None] | None = None,
) -> CallContext:
    """The context of a call that starts now."""
    return CallContext(
        subject=subject,
        request=request,
        decision=decision,
        client=client,
        started=time.perf_counter(),
        disconnected=disconnected or _stays_connected,
        check=check,
    )


def call_event(context: CallContext, target: Target, name: str, call_id: str = "") -> Event:
    """An event of the call with the fields that all of its events share. `call_id` sets the span of that attempt."""
    who = context.subject.who
    return Event(
        name,
        step=who.step,
        task_id=who.task_id,
        session_id=who.session_id,
        agent_id=who.agent_id,
        workflow=who.workflow,
        about=who.about,
        actor=who.actor,
        route=context.decision.route,
        model=target.model,
        provider=target.provider,
        kind="model",
        name=context.subject.label,
        trace_id=who.trace_id,
        span_id=span_of(call_id) if who.trace_id and call_id else None,
    )
