"""Steps, timers, child jobs, and questions to people."""

from overnight.domain import FINISHED, Recorded

from .lifecycle_events import error_words
from .text import (
    clean,
    span_text,
    until_text,
    who,
)
from .timeline import Tale

LONG_SLEEP_US = 5_000_000


def _position(event: Recorded) -> object:
    return (event.path, event.ordinal)


def _step_started(tale: Tale, event: Recorded) -> None:
    node = tale.at(event)
    if node is None:
        tale.place(tale.node(event, "step", f"step {event.facts.name}"), event.path, _position(event))
    else:
        node.seqs.append(event.seq)


def _step_committed(tale: Tale, event: Recorded) -> None:
    node = tale.at(event) or tale.place(
        tale.node(event, "step", f"step {event.facts.name}"), event.path, _position(event)
    )
    node.end(event.at, "done")
    node.seqs.append(event.seq)
    if (event.facts.attempt or 1) > 1:
        node.outcome = f"done at try {event.facts.attempt}"
    if event.facts.latency_ms is not None:
        node.facts.append(span_text(event.facts.latency_ms * 1000))
    tale.show(node, "result", event.content)


def _step_failed(tale: Tale, event: Recorded) -> None:
    facts = event.facts
    if event.path is not None:
        node = tale.at(event) or tale.place(
            tale.node(event, "step", f"step {facts.name}"), event.path, _position(event)
        )
        node.end(event.at, "failed")
        node.outcome = error_words(facts.error)
        node.seqs.append(event.seq)
        tale.trace(node, event.content)
        return
    detail = facts.detail or {}
    place: dict[str, object] = detail.get("position") or {}
    node = tale.stretch.get((place.get("path"), place.get("ordinal")))
    pause = detail.get("retry_in_ms")
    again = f"; tries again after {span_text(pause * 1000)}" if isinstance(pause, (int, float)) else ""
    text = f"try {facts.attempt} of {facts.name} failed: {error_words(facts.error)}{again}"
    tale.stretch["retried"] = retried = tale.note(node, event, text, "failed", "retry")
    tale.trace(retried, event.content)


def _timer_set(tale: Tale, event: Recorded) -> None:
    due_at = (event.facts.detail or {}).get("due_at", event.at)
    until = f", until {until_text(due_at, event.at)}" if due_at - event.at > LONG_SLEEP_US else ""
    node = tale.node(event, "timer", f"sleeps {span_text(due_at - event.at)}{until}")
    if event.facts.name != "sleep":
        node.text = f"a time limit of {span_text(due_at - event.at)} runs"
        node.hidden = True  # it is news only when it strikes
    tale.place(node, event.path, _position(event))


def _timer_fired(tale: Tale, event: Recorded) -> None:
    node = tale.at(event)
    if event.facts.name == "sleep":
        if node is not None:
            node.end(event.at, "done")
        return
    struck = tale.place(tale.node(event, "timer", "the time limit struck: timed out", "failed"), event.path)
    if node is not None:
        struck.why = f"set for {until_text(node.at, event.at)} and {span_text(event.at - node.at)} more"


def _child_started(tale: Tale, event: Recorded) -> None:
    child_id = str((event.facts.detail or {}).get("child_job_id"))
    _show_child(tale, event, child_id, f"child job {event.facts.name}")


def _child_taken_up(tale: Tale, event: Recorded, child_id: str, state: str) -> None:
    """A new attempt goes on with the child of an earlier one, whose line tells what had become of it by then."""
    before = tale.children.get(child_id, [])
    for node in before[-1:]:
        node.facts, node.ended_at = [child_id], min(node.ended_at, event.at)
        node.status = "done" if state == "succeeded" else "failed" if state in FINISHED else "note"
        if not node.outcome.startswith(f"{state}:"):
            node.outcome = state if state in FINISHED else "still on its way"
    verb = "is tried again with its parent" if state == "failed" else "is waited for again"
    if state == "succeeded":
        verb = "had come to its end meanwhile"
    _show_child(tale, event, child_id, f"child job {event.facts.name} {verb}")


def _show_child(tale: Tale, event: Recorded, child_id: str, text: str) -> None:
    node = tale.place(tale.node(event, "child", text), event.path, _position(event))
    node.facts.append(child_id)
    tale.children.setdefault(child_id, []).append(node)
    told = tale.chapter.children.get(child_id)
    if told is None:
        node.why = f"told on its own: overnight explain {child_id}"
    elif told.job.finished_at is not None:
        node.end(told.job.finished_at, "done" if told.job.state == "succeeded" else "failed")
        node.facts.insert(0, span_text(told.job.finished_at - told.job.created_at))
        node.outcome = told.job.state
    else:
        node.status, node.outcome = "waiting" if told.job.state == "parked" else "running", told.job.state


def _child_finished(tale: Tale, event: Recorded) -> None:
    detail = event.facts.detail or {}
    nodes = tale.children.get(str(detail.get("child_job_id")))
    if not nodes:
        return
    node = nodes[-1]
    node.seqs.append(event.seq)
    state = str(detail.get("state"))
    node.status = "done" if state == "succeeded" else "failed"
    node.outcome = state if event.facts.error is None else f"{state}: {error_words(event.facts.error)}"


def _review_requested(tale: Tale, event: Recorded) -> None:
    detail = event.facts.detail or {}
    review_id = str(detail.get("review_id"))
    text = f"asks a person: {clean(detail.get('question') or event.facts.name)}"
    if detail.get("review") == "approval":
        node = tale.place(tale.node(event, "ask", text, "waiting"), event.path, _position(event))
    else:
        node = tale.note(tale.at(event) or tale.stretch.get("unknown"), event, text, "waiting", "ask")
    node.facts.append(review_id)
    tale.stretch[review_id] = tale.stretch["asked"] = node
    tale.show(node, "detail", event.content)


def _review_decided(tale: Tale, event: Recorded) -> None:
    facts = event.facts
    decision = facts.decision or {}
    approved = bool(decision.get("approved"))
    asked = tale.stretch.get(str((facts.detail or {}).get("review_id"))) or tale.at(event)
    if asked is not None:
        asked.end(event.at, "done" if approved else "failed")
    text = f"{who(facts.actor)} {'approved' if approved else 'rejected'}: {clean(facts.name)}"
    if facts.kind != "approval":
        text = f"{who(facts.actor)} decided: {clean(facts.name)}" if approved else text
    node = tale.note(None, event, text, "done" if approved else "failed", "decision")
    if note := decision.get("note"):
        node.why = f"“{clean(note)}”"


KEPT = {
    "step": ("step", "step"),
    "effect": ("tool", "tool"),
    "model": ("model", "model"),
    "approval": ("ask", "asks a person:"),
    "child": ("child", "child job"),
}
"""What is told of it where it is given back: its kind of line, and its words."""


def _boundary_kept(tale: Tale, event: Recorded) -> None:
    facts, detail = event.facts, event.facts.detail or {}
    if "child_job_id" in detail:
        _child_taken_up(tale, event, str(detail["child_job_id"]), str(detail.get("state")))
    elif (kind := facts.kind or "") in KEPT:
        given, (line, words) = "of" in detail, KEPT[kind]
        node = tale.node(event, line, f"{words} {clean(facts.name)}", "replayed" if given else "waiting")
        tale.place(node, event.path, _position(event))
        node.outcome = "given back, not done again" if given else "begun by an earlier attempt"
        node.why = f"event {detail['of']} of an earlier attempt" if given else ""


def _quiet(_tale: Tale, _event: Recorded) -> None:
    """Clock readings, random numbers and identifiers: recorded for the replay, nothing to tell."""


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
    "value_recorded": _quiet,
    "boundary_kept": _boundary_kept,
}
