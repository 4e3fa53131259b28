"""Timeline lines of model calls."""

import msgspec

from overnight.domain import Event, Recorded, booked

from .lifecycle_events import error_text, reason
from .lines import Node
from .responses import message_content, outcome_text
from .text import (
    clean,
    cost_text,
    span_text,
    until_text,
)
from .timeline import TimelineBuilder


def model_node(builder: TimelineBuilder, event: Recorded) -> Node | None:
    """The node of the call of this event: by position, by call id, or, for a retry, by the same conversation."""
    facts = event.facts
    if (node := builder.node_at(event)) is not None and node.kind == "model":
        return node
    if facts.call_id is not None and (node := builder.calls.get(facts.call_id)) is not None:
        return node if any(node is each for each in builder.segment.values()) else None
    again = (facts.detail or {}).get("try", 1) != 1
    node = builder.segment.get(("model", facts.input_ref)) if again else None
    return node if node is not None and node.status == "failed" else None


def model_text(facts: Event) -> str:
    label = facts.name or facts.task_id or ""
    requested = (facts.detail or {}).get("requested_model")
    if label in {"", "default"}:
        label = str(requested) if requested not in {None, "", "auto"} else ""
    target = facts.model or ""
    words = f"{label} → {target}" if label and target and label != target else target or label
    return f"model {words}"


def _model_called(builder: TimelineBuilder, event: Recorded) -> None:
    facts = event.facts
    node = model_node(builder, event)
    if node is None:
        node = builder.node(event, "model", model_text(facts))
        why = (facts.model, reason(event))
        node.why = "" if why in builder.shown_reasons else why[1]
        builder.shown_reasons.add(why)
        builder.place(node, event.path, (event.path, event.ordinal) if event.path is not None else facts.call_id)
        if event.path is None and facts.step:
            node.facts.append(f"step {clean(facts.step, 60)}")
        if event.path is None and facts.input_ref:
            builder.segment["model", facts.input_ref] = node
        builder.add_content(node, "prompt", last_message(builder, facts.input_ref))
    else:
        node.text, node.status, node.outcome = model_text(facts), "running", ""
        node.seqs.append(event.seq)
    if facts.call_id is not None:
        builder.calls[facts.call_id] = node
    # Earlier versions wrote no call id.
    pending = builder.pending_fallbacks.pop(facts.call_id, None) or builder.pending_fallbacks.pop(None, None)
    if pending is not None:
        node.notes.append(pending)
    detail = facts.detail or {}
    tokens, requested = detail.get("max_output_tokens"), detail.get("asked_max_output_tokens")
    if detail.get("lowered"):
        builder.note(node, event, f"output limit lowered to {tokens} tokens by the budget")
    elif requested:
        builder.note(
            node, event, f"output limit lowered from {requested:,} to {tokens:,} tokens by {_limit_source(facts)}"
        )


def _limit_source(facts: Event) -> str:
    return f"model {facts.model}" if (facts.detail or {}).get("capped_by") == "model" else f"route {facts.route}"


def last_message(builder: TimelineBuilder, reference: str | None) -> bytes | None:
    chain = builder.tree.contents.get(reference or "")
    return chain[-1] if isinstance(chain, list) and chain else None


def _fresh_model(builder: TimelineBuilder, event: Recorded) -> Node:
    return builder.place(builder.node(event, "model", model_text(event.facts)), event.path, (event.path, event.ordinal))


def _model_succeeded(builder: TimelineBuilder, event: Recorded) -> None:
    facts = event.facts
    if "degraded" in (facts.detail or {}):
        _degraded_answer(builder, event)
        return
    node = model_node(builder, event) or _fresh_model(builder, event)
    node.end(event.at, "replayed" if "cache" in (facts.detail or {}) else "done")
    node.seqs.append(event.seq)
    content = event.content if event.content is not None else builder.tree.contents.get(facts.output_ref or "")
    answer = content if isinstance(content, bytes) else None
    node.outcome = outcome_text(answer)
    node.facts += _call_facts(facts)
    if dropped := (facts.detail or {}).get("dropped"):
        builder.note(
            node, event, f"omitted, because {facts.provider} does not support it: {clean(', '.join(dropped), 300)}"
        )
    _note_excess_usage(builder, node, event)
    builder.add_content(node, "answer", message_content(answer))


def _note_excess_usage(builder: TimelineBuilder, node: Node, event: Recorded) -> None:
    """Note usage reported by a provider that exceeds the bound of the request."""
    facts = event.facts
    if reported := (facts.detail or {}).get("told"):
        usage = f"{reported['input_tokens']:,} in, {reported['output_tokens']:,} out, {cost_text(reported['cost_microusd'])}"
        hint = f"if the invoice confirms it, book it with `overnight budget settle {facts.call_id}`"
        builder.note(
            node, event, f"{facts.provider} reported {usage}: more than the request can use, so not booked; {hint}"
        )


def _call_facts(facts: Event) -> list[str]:
    detail = facts.detail or {}
    about = "about " if detail.get("estimated") else ""
    shown: list[str] = []
    if facts.input_tokens is not None or facts.output_tokens is not None:
        cached = f" ({facts.cached_tokens:,} cached)" if facts.cached_tokens else ""
        shown.append(f"{about}{facts.input_tokens or 0:,}{cached} in, {facts.output_tokens or 0:,} out")
    cost, bound = booked(facts)
    if cost is not None and (cost or not bound):
        shown.append(cost_text(cost))
    if bound:
        shown.append(f"{'plus ' if cost else ''}at most {cost_text(bound)} (cost unknown)")
    if facts.latency_ms is not None:
        shown.append(span_text(facts.latency_ms * 1000))
    if facts.provider == "scripted":
        shown.append("scripted, offline")
    return shown


def _model_failed(builder: TimelineBuilder, event: Recorded) -> None:
    facts = event.facts
    node = model_node(builder, event) or _fresh_model(builder, event)
    node.end(event.at, "failed")
    node.outcome = error_text(facts.error)
    cost = _booked_text(facts)
    target = f" at {facts.model}" if facts.model else ""
    text = f"failed{target}: {node.outcome}{cost}"
    latency = span_text(facts.latency_ms * 1000) if facts.latency_ms is not None else ""
    last = node.notes[-1] if node.notes else None
    if last is not None and last.kind == "try" and last.text == text:
        last.seqs.append(event.seq)
        last.facts = [f"{len(last.seqs)} times", f"last after {latency}"]
    else:
        builder.note(node, event, text, "failed", "try").facts = [f"after {latency}"] if latency else []
    builder.last_failure = (event.seq, node)


def _fallback_taken(builder: TimelineBuilder, event: Recorded) -> None:
    decision = event.facts.decision or {}
    text = f"fallback from {decision.get('from')} to {decision.get('to')}"
    fallback = builder.node(event, "fallback", text, "note")
    fallback.why = ": ".join(dict.fromkeys(reason(event).split(": ")))  # the class may equal the code
    if (node := _just_failed(builder, event)) is not None:
        node.notes.append(fallback)
    else:
        builder.pending_fallbacks[event.facts.call_id] = fallback


def _circuit_opened(builder: TimelineBuilder, event: Recorded) -> None:
    decision = event.facts.decision or {}
    until = f"; no calls until {until_text(decision['open_until_at'], event.at)}" if "open_until_at" in decision else ""
    text = f"circuit of {clean(decision.get('target'), 120)} opened{until}"
    builder.note(model_node(builder, event), event, text, "failed", "circuit").why = reason(event)


def _circuit_closed(builder: TimelineBuilder, event: Recorded) -> None:
    target = clean((event.facts.decision or {}).get("target"), 120)
    builder.note(model_node(builder, event), event, f"circuit of {target} closed: {reason(event)}", kind="circuit")


_DEGRADED = {"answer": "the fixed response of the route", "cache": "an older cached response"}


def _degraded(builder: TimelineBuilder, event: Recorded) -> None:
    """The answer follows in the next event."""
    facts = event.facts
    node = model_node(builder, event) or _just_failed(builder, event)
    if node is None:
        key = (event.path, event.ordinal) if event.path is not None else facts.call_id
        node = builder.place(builder.node(event, "model", model_text(facts)), event.path, key)
        builder.add_content(node, "prompt", last_message(builder, facts.input_ref))
    if facts.call_id is not None:
        builder.calls[facts.call_id] = node
    served = _DEGRADED.get((facts.decision or {}).get("kind", ""), "another response")
    builder.note(node, event, f"degraded: no provider answered; served {served}", kind="degraded").why = reason(event)


def _degraded_answer(builder: TimelineBuilder, event: Recorded) -> None:
    """The degraded answer of a call, which came from no model."""
    facts = event.facts
    node = model_node(builder, event)
    if node is None:
        node = builder.node(event, "model", model_text(msgspec.structs.replace(facts, model=None)))
        builder.place(node, event.path, (event.path, event.ordinal))
    node.end(event.at, "degraded")
    node.seqs.append(event.seq)
    node.outcome = "no model answered"
    builder.degraded_answers.add(event.seq)
    content = event.content if event.content is not None else builder.tree.contents.get(facts.output_ref or "")
    builder.add_content(node, "answer", message_content(content if isinstance(content, bytes) else None))


def _just_failed(builder: TimelineBuilder, event: Recorded) -> Node | None:
    """The call whose failed attempt was settled in the same transaction; the events after it name no call."""
    seq, node = builder.last_failure
    return node if event.seq - seq <= 2 else None


def _model_lost(builder: TimelineBuilder, event: Recorded) -> None:
    facts = event.facts
    cost = _booked_text(facts)
    node = model_node(builder, event)
    why = reason(event) or "cost unknown: the reservation is booked as an upper bound"
    if node is not None:
        node.end(event.at, "lost")
        node.outcome, node.why = f"no response received{cost}", why
        node.seqs.append(event.seq)
        return
    was = builder.calls.get(facts.call_id or "")
    name = was.text if was is not None else model_text(facts)
    builder.note(None, event, f"{name}: response lost in the crash{cost}", "unknown").why = why


def _booked_text(facts: Event) -> str:
    """The booking of a call that ended without an answer."""
    cost, bound = booked(facts)
    known = f", booked at {cost_text(cost)}" if cost else ""
    return known + (f", booked at an upper bound of {cost_text(bound)}" if bound else "")


def _model_replayed(builder: TimelineBuilder, event: Recorded) -> None:
    facts = event.facts
    of = (facts.detail or {}).get("of")
    node = builder.place(builder.node(event, "model", model_text(facts), "replayed"), event.path)
    what = "replayed the degraded response" if of in builder.degraded_answers else "replayed"
    node.outcome = f"{what} from event {of} at no cost"


def _budget_stopped(builder: TimelineBuilder, event: Recorded) -> None:
    decision = event.facts.decision or {}
    node = builder.note(_just_failed(builder, event), event, "budget limit reached", "failed", "budget")
    node.outcome = reason(event) or f"{decision.get('limit')} of {decision.get('scope')} is exhausted"


CALLS = {
    "model_called": _model_called,
    "model_succeeded": _model_succeeded,
    "model_failed": _model_failed,
    "model_lost": _model_lost,
    "model_replayed": _model_replayed,
    "fallback_taken": _fallback_taken,
    "budget_stopped": _budget_stopped,
    "circuit_opened": _circuit_opened,
    "circuit_closed": _circuit_closed,
    "degraded": _degraded,
}
