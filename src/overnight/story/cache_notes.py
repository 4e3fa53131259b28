"""What the caches had to do with a call."""

from typing import Any

from overnight.domain import Recorded

from .calls import last_message, model_node, model_text
from .lifecycle_events import reason
from .text import clean, cost_text, span_text
from .timeline import Tale


def _cache_hit(tale: Tale, event: Recorded) -> None:
    """The answer itself comes next."""
    facts, detail = event.facts, event.facts.detail or {}
    at: dict[str, Any] = detail.get("position") or {}
    node = tale.node(event, "model", model_text(facts), "replayed")
    tale.place(node, at.get("path"), (at["path"], at["ordinal"]) if at else facts.call_id)
    if facts.call_id is not None:
        tale.calls[facts.call_id] = node
    tale.show(node, "prompt", last_message(tale, facts.input_ref))
    of: dict[str, Any] = detail.get("of") or {}
    like = f", likeness {detail['similarity']:.2f}" if "similarity" in detail else ""
    saved = f", {cost_text(detail['saved_microusd'])} saved" if detail.get("saved_microusd") else ""
    age = span_text(detail.get("age_ms", 0) * 1000)
    job = "it" if detail.get("single_flight") else f"{clean(of.get('job_id'), 40)} {age} before"
    node.facts.append(f"from the cache: {job} asked{like}{saved}")
    node.why = reason(event)


def _cache_missed(tale: Tale, event: Recorded) -> None:
    """Told only where something stood in the way: that nothing was there is what most calls begin with."""
    if (event.facts.decision or {}).get("trouble"):
        tale.note(None, event, "asked without the cache").why = reason(event)


def _cache_shadow(tale: Tale, event: Recorded) -> None:
    detail = event.facts.detail or {}
    if detail.get("same"):
        how = "the same answer"
    else:
        agrees = "an answer that agrees" if detail.get("agrees") else "another answer"
        how = f"{agrees} ({detail.get('overlap', 0):.0%} of the words shared)"
    like = f"likeness {detail.get('similarity') or 0:.2f}"
    tale.note(model_node(tale, event), event, f"in shadow: the semantic cache would have given {how}, {like}")


CACHES = {"cache_hit": _cache_hit, "cache_missed": _cache_missed, "cache_shadow": _cache_shadow}
