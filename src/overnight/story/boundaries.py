"""Timeline lines of steps, timers, child jobs and reviews."""

from overnight.domain import FINISHED, Recorded

from .lifecycle_events import error_text
from .text import (
    actor_text,
    clean,
    span_text,
    until_text,
)
from .timeline import TimelineBuilder

LONG_SLEEP_US = 5_000_000


def _position(event: Recorded) -> object:
    return (event.path, event.ordinal)


def _step_started(builder: TimelineBuilder, event: Recorded) -> None:
    node = builder.node_at(event)
    if node is None:
        builder.place(builder.node(event, "step", f"step {event.facts.name}"), event.path, _position(event))
    else:
        node.seqs.append(event.seq)


def _step_committed(builder: TimelineBuilder, event: Recorded) -> None:
    node = builder.node_at(event) or builder.place(
        builder.node(event, "step", f"step {event.facts.name}"), event.path, _position(event)
    )
    node.end(event.at, "done")
    node.seqs.append(event.seq)
    if (event.facts.attempt or 1) > 1:
        node.outcome = f"done at attempt {event.facts.attempt}"
    if event.facts.latency_ms is not None:
        node.facts.append(span_text(event.facts.latency_ms * 1000))
    builder.add_content(node, "result", event.content)


def _step_failed(builder: TimelineBuilder, event: Recorded) -> None:
    facts = event.facts
    if event.path is not None:
        node = builder.node_at(event) or builder.place(
            builder.node(event, "step", f"step {facts.name}"), event.path, _position(event)
        )
        node.end(event.at, "failed")
        node.outcome = error_text(facts.error)
        node.seqs.append(event.seq)
        builder.add_traceback(node, event.content)
        return
    detail = facts.detail or {}
    place: dict[str, object] = detail.get("position") or {}
    node = builder.segment.get((place.get("path"), place.get("ordinal")))
    pause = detail.get("retry_in_ms")
    again = f"; retry after {span_text(pause * 1000)}" if isinstance(pause, (int, float)) else ""
    text = f"attempt {facts.attempt} of {facts.name} failed: {error_text(facts.error)}{again}"
    builder.segment["retried"] = retried = builder.note(node, event, text, "failed", "retry")
    builder.add_traceback(retried, event.content)


def _timer_set(builder: TimelineBuilder, event: Recorded) -> None:
    due_at = (event.facts.detail or {}).get("due_at", event.at)
    until = f", until {until_text(due_at, event.at)}" if due_at - event.at > LONG_SLEEP_US else ""
    node = builder.node(event, "timer", f"sleeps {span_text(due_at - event.at)}{until}")
    if event.facts.name != "sleep":
        node.text = f"time limit of {span_text(due_at - event.at)}"
        node.hidden = True  # shown only if it expires
    builder.place(node, event.path, _position(event))


def _timer_fired(builder: TimelineBuilder, event: Recorded) -> None:
    node = builder.node_at(event)
    if event.facts.name == "sleep":
        if node is not None:
            node.end(event.at, "done")
        return
    expired = builder.place(builder.node(event, "timer", "time limit exceeded", "failed"), event.path)
    if node is not None:
        expired.why = f"set at {until_text(node.at, event.at)} for {span_text(event.at - node.at)}"


def _child_started(builder: TimelineBuilder, event: Recorded) -> None:
    child_id = str((event.facts.detail or {}).get("child_job_id"))
    _show_child(builder, event, child_id, f"child job {event.facts.name}")


def _child_continued(builder: TimelineBuilder, event: Recorded, child_id: str, state: str) -> None:
    """A new attempt continues with the child job of an earlier one, whose line shows the state by then."""
    before = builder.children.get(child_id, [])
    for node in before[-1:]:
        node.facts, node.ended_at = [child_id], min(node.ended_at, event.at)
        node.status = "done" if state == "succeeded" else "failed" if state in FINISHED else "note"
        if not node.outcome.startswith(f"{state}:"):
            node.outcome = state if state in FINISHED else "unfinished"
    verb = "is retried with its parent" if state == "failed" else "is awaited again"
    if state == "succeeded":
        verb = "finished meanwhile"
    _show_child(builder, event, child_id, f"child job {event.facts.name} {verb}")


def _show_child(builder: TimelineBuilder, event: Recorded, child_id: str, text: str) -> None:
    node = builder.place(builder.node(event, "child", text), event.path, _position(event))
    node.facts.append(child_id)
    builder.children.setdefault(child_id, []).append(node)
    child = builder.tree.children.get(child_id)
    if child is None:
        node.why = f"for details: overnight explain {child_id}"
    elif child.job.finished_at is not None:
        node.end(child.job.finished_at, "done" if child.job.state == "succeeded" else "failed")
        node.facts.insert(0, span_text(child.job.finished_at - child.job.created_at))
        node.outcome = child.job.state
    else:
        node.status, node.outcome = "waiting" if child.job.state == "parked" else "running", child.job.state


def _child_finished(builder: TimelineBuilder, event: Recorded) -> None:
    detail = event.facts.detail or {}
    nodes = builder.children.get(str(detail.get("child_job_id")))
    if not nodes:
        return
    node = nodes[-1]
    node.seqs.append(event.seq)
    state = str(detail.get("state"))
    node.status = "done" if state == "succeeded" else "failed"
    node.outcome = state if event.facts.error is None else f"{state}: {error_text(event.facts.error)}"


def _review_requested(builder: TimelineBuilder, event: Recorded) -> None:
    detail = event.facts.detail or {}
    review_id = str(detail.get("review_id"))
    again = "renewed" if detail.get("renewed") else "requested"
    text = f"review {again}: {clean(detail.get('question') or event.facts.name)}"
    if detail.get("review") == "approval":
        node = builder.place(builder.node(event, "ask", text, "waiting"), event.path, _position(event))
    else:
        node = builder.note(builder.node_at(event) or builder.segment.get("unknown"), event, text, "waiting", "ask")
    node.facts.append(review_id)
    builder.segment[review_id] = builder.segment["asked"] = node
    builder.add_content(node, "detail", event.content)


def _review_decided(builder: TimelineBuilder, event: Recorded) -> None:
    facts = event.facts
    decision = facts.decision or {}
    verb = str(decision.get("answer") or ("approve" if decision.get("approved") else "reject"))
    approved = bool(decision.get("approved", True))
    requested = builder.segment.get(str((facts.detail or {}).get("review_id"))) or builder.node_at(event)
    if requested is not None:
        requested.end(event.at, "done" if approved else "failed")
    text = f"{actor_text(facts.actor)} {_DECIDED.get(verb, f'answered {verb}')}: {clean(facts.name)}"
    if facts.kind != "approval" and verb == "approve":
        text = f"{actor_text(facts.actor)} decided: {clean(facts.name)}"
    if (facts.detail or {}).get("late"):
        text += " (too late: the review was superseded)"
    node = builder.note(None, event, text, "done" if approved else "failed", "decision")
    if note := decision.get("note"):
        node.why = f"“{clean(note)}”"


_DECIDED = {
    "approve": "approved",
    "edit": "approved with edited arguments",
    "reject": "rejected",
    "answer": "answered",
    "done": "found it done",
    "not_done": "found it not done",
    "continue": "continued",
    "stop": "stopped",
}


def _review_ended(builder: TimelineBuilder, event: Recorded) -> None:
    """A review expired, or was superseded."""
    facts, detail = event.facts, event.facts.detail or {}
    review_id, expired = str(detail.get("review_id")), facts.event == "review_expired"
    requested = builder.segment.get(review_id)
    text = "nobody decided in time, which is no rejection; it still waits" if expired else "review superseded"
    if requested is not None and not expired:
        requested.end(event.at, "note")
    node = builder.note(
        requested, event, f"{text}: {clean(detail.get('review'))} review {review_id}", "note", "decision"
    )
    node.why = (
        f"to ask again: overnight reviews renew {review_id}" if expired else str((facts.decision or {}).get("why", ""))
    )


def _notified(builder: TimelineBuilder, event: Recorded) -> None:
    """A review was sent to people, or could not be."""
    facts, detail = event.facts, event.facts.detail or {}
    sent, unknown = facts.event == "notification_sent", facts.error is not None and facts.error.error_class == "unknown"
    what = "sent" if sent else "perhaps sent" if unknown else "not sent"
    attempts = detail.get("attempts")
    tries = f", {attempts} attempts" if isinstance(attempts, int) and attempts > 1 else ""
    text = f"{what} to {clean(detail.get('address') or 'a removed address')} ({clean(detail.get('kind'))}{tries})"
    requested = builder.segment.get(str(detail.get("review_id")))
    node = builder.note(requested, event, text, "note" if sent else "failed", "ask")
    if not sent:
        node.why = (error_text(facts.error) + "; " if facts.error is not None else "") + (
            f"to try again: overnight notifications retry {detail.get('delivery_id')}"
        )


RETAINED = {
    "step": ("step", "step"),
    "effect": ("tool", "tool"),
    "model": ("model", "model"),
    "approval": ("ask", "review requested:"),
    "child": ("child", "child job"),
}
"""The kind of line and the text of an answer that a retry replays."""


def _boundary_kept(builder: TimelineBuilder, event: Recorded) -> None:
    facts, detail = event.facts, event.facts.detail or {}
    if "child_job_id" in detail:
        _child_continued(builder, event, str(detail["child_job_id"]), str(detail.get("state")))
    elif (kind := facts.kind or "") in RETAINED:
        replayed, (line, label) = "of" in detail, RETAINED[kind]
        node = builder.node(event, line, f"{label} {clean(facts.name)}", "replayed" if replayed else "waiting")
        builder.place(node, event.path, _position(event))
        node.outcome = "replayed" if replayed else "started by an earlier attempt"
        node.why = f"event {detail['of']} of an earlier attempt" if replayed else ""


def _quiet(_tale: TimelineBuilder, _event: Recorded) -> None:
    """Clock readings, random numbers and identifiers are recorded for the replay, and not shown."""


BOUNDARIES = {
    "step_started": _step_started,
    "step_committed": _step_committed,
    "step_failed": _step_failed,
    "timer_set": _timer_set,
    "timer_fired": _timer_fired,
    "child_started": _child_started,
    "child_finished": _child_finished,
    "review_requested": _review_requested,
    "review_decided": _review_decided,
    "review_expired": _review_ended,
    "review_superseded": _review_ended,
    "notification_sent": _notified,
    "notification_failed": _notified,
    "value_recorded": _quiet,
    "boundary_kept": _boundary_kept,
}
