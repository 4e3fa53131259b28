"""Timeline lines of cache lookups."""

from typing import Any

from overnight.domain import Recorded

from .calls import last_message, model_node, model_text
from .lifecycle_events import reason
from .text import clean, cost_text, span_text
from .timeline import TimelineBuilder


def _cache_hit(builder: TimelineBuilder, event: Recorded) -> None:
    """The answer follows in the next event."""
    facts, detail = event.facts, event.facts.detail or {}
    at: dict[str, Any] = detail.get("position") or {}
    node = builder.node(event, "model", model_text(facts), "replayed")
    builder.place(node, at.get("path"), (at["path"], at["ordinal"]) if at else facts.call_id)
    if facts.call_id is not None:
        builder.calls[facts.call_id] = node
    builder.add_content(node, "prompt", last_message(builder, facts.input_ref))
    of: dict[str, Any] = detail.get("of") or {}
    similarity = f", similarity {detail['similarity']:.2f}" if "similarity" in detail else ""
    saved = f", {cost_text(detail['saved_microusd'])} saved" if detail.get("saved_microusd") else ""
    age = span_text(detail.get("age_ms", 0) * 1000)
    job = "this job" if of.get("job_id") == builder.job.job_id else f"{clean(of.get('job_id'), 40)}"
    source = "a concurrent identical call" if detail.get("single_flight") else f"a call of {job} {age} earlier"
    node.facts.append(f"cached response of {source}{similarity}{saved}")
    node.why = reason(event)


def _cache_missed(builder: TimelineBuilder, event: Recorded) -> None:
    """Shown only if the cache could not be used: a plain miss is the usual case."""
    if (event.facts.decision or {}).get("trouble"):
        builder.note(None, event, "cache skipped").why = reason(event)


def _cache_shadow(builder: TimelineBuilder, event: Recorded) -> None:
    detail = event.facts.detail or {}
    if detail.get("same"):
        response = "the same response"
    else:
        kind = "a response that agrees" if detail.get("agrees") else "a different response"
        response = f"{kind} ({detail.get('overlap', 0):.0%} of the words in common)"
    similarity = f"similarity {detail.get('similarity') or 0:.2f}"
    builder.note(
        model_node(builder, event), event, f"semantic cache in shadow mode: would have served {response}, {similarity}"
    )


CACHES = {"cache_hit": _cache_hit, "cache_missed": _cache_missed, "cache_shadow": _cache_shadow}
