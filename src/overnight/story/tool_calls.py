"""Timeline lines of tool calls."""

from overnight.domain import Recorded

from .lifecycle_events import error_text, reason
from .lines import Node
from .text import actor_text, clean, span_text
from .timeline import TimelineBuilder


def _tool_key(event: Recorded) -> object:
    facts = event.facts
    return ("tool", facts.idempotency_key or facts.call_id or (event.path, event.ordinal))


def _tool(builder: TimelineBuilder, event: Recorded) -> Node:
    """The node of the effect of this event; one that started in an earlier segment gets a new node here."""
    node = builder.segment.get(_tool_key(event))
    if node is None:
        node = builder.place(builder.node(event, "tool", f"tool {event.facts.name}"), event.path, _tool_key(event))
        if event.path is not None:
            builder.segment[event.path, event.ordinal] = node
    else:
        node.seqs.append(event.seq)
    return node


def _tool_called(builder: TimelineBuilder, event: Recorded) -> None:
    before = builder.segment.get(_tool_key(event))
    node = _tool(builder, event)
    node.status = "running"
    if before is not None:
        builder.note(node, event, reason(event) or "called again", kind="try")
    if (event.facts.detail or {}).get("edited"):
        builder.note(node, event, "with the arguments that a person edited", kind="verdict")
    builder.add_content(node, "arguments", event.content)


def _tool_succeeded(builder: TimelineBuilder, event: Recorded) -> None:
    facts = event.facts
    node = _tool(builder, event)
    detail = facts.detail or {}
    if detail.get("replayed"):
        node.end(event.at, "replayed")
        node.outcome, node.why = "replayed, not repeated", reason(event)
        return
    node.end(event.at, "done")
    node.outcome = "done"
    if (why := reason(event)) and node.notes:
        builder.note(node, event, why, "done", "verdict")
    else:
        node.why = why
    if facts.latency_ms is not None:
        node.facts.append(span_text(facts.latency_ms * 1000))
    if provider_id := detail.get("provider_id"):
        node.facts.append(f"provider id {clean(provider_id, 120)}")
    builder.add_content(node, "result", event.content)


def _tool_failed(builder: TimelineBuilder, event: Recorded) -> None:
    facts = event.facts
    node = _tool(builder, event)
    if facts.error is None:
        node.end(event.at, "failed")
        builder.note(node, event, f"confirmed not done, so it may be repeated: {reason(event)}", kind="verdict")
        return
    node.end(event.at, "failed")
    cause = (
        f"rejected by {actor_text(facts.actor)}: {clean(facts.error.message)}"
        if facts.actor
        else error_text(facts.error)
    )
    node.outcome = f"not done: {cause}"


def _tool_unknown(builder: TimelineBuilder, event: Recorded) -> None:
    node = _tool(builder, event)
    node.end(event.at, "unknown")
    builder.segment["unknown"] = node
    verdict = builder.note(node, event, f"outcome unknown: {reason(event)}", "unknown", "verdict")
    builder.add_traceback(verdict, event.content)


def _tool_refused(builder: TimelineBuilder, event: Recorded) -> None:
    node = _tool(builder, event)
    node.end(event.at, "failed")
    rule = (event.facts.decision or {}).get("rule")
    node.outcome = f"refused: {error_text(event.facts.error)}"
    if rule:
        node.why = f"by the rule {clean(rule, 80)}"
    builder.add_content(node, "arguments", event.content)


def _tool_duplicated(builder: TimelineBuilder, event: Recorded) -> None:
    ids = [clean(each, 120) if each else "no id" for each in (event.facts.detail or {}).get("provider_ids", [])]
    builder.note(_tool(builder, event), event, f"reported done twice: {' and '.join(ids)}", "failed", "verdict")


TOOL_CALLS = {
    "tool_called": _tool_called,
    "tool_succeeded": _tool_succeeded,
    "tool_failed": _tool_failed,
    "tool_unknown": _tool_unknown,
    "tool_refused": _tool_refused,
    "tool_duplicated": _tool_duplicated,
}
