"""What held a call up, or a job back: speeds, loops, alarms of cost; what people added to a budget, and corrected costs."""

from typing import Any

from overnight.domain import Recorded

from .calls import model_text
from .lifecycle_events import reason
from .text import (
    actor_text,
    clean,
    cost_text,
    span_text,
)
from .timeline import TimelineBuilder


def _rate_limited(builder: TimelineBuilder, event: Recorded) -> None:
    """The call that it held up comes next, if it was made."""
    decision, detail = event.facts.decision or {}, event.facts.detail or {}
    owner = clean(f"{decision.get('scope')} {decision.get('name')}", 120)
    after = f"after {span_text(detail.get('waited_ms', 0) * 1000)}"
    if detail.get("refused"):
        builder.note(None, event, f"rate limit of {owner}: a call was rejected {after}", "failed", "rate")
    else:
        builder.note(None, event, f"rate limit of {owner}: a call was admitted {after}", kind="rate")


def _loop_stopped(builder: TimelineBuilder, event: Recorded) -> None:
    builder.note(None, event, f"stopped as a loop: {reason(event)}", "failed", "loop")


def _cost_alarm(builder: TimelineBuilder, event: Recorded) -> None:
    of = (event.facts.detail or {}).get("of_job_id")
    job = "" if of in {None, builder.job.job_id} else f" of {of}"
    builder.note(None, event, f"cost alert{job}: {reason(event)}", "failed", "alarm")


def _budget_topped_up(builder: TimelineBuilder, event: Recorded) -> None:
    detail: dict[str, Any] = event.facts.detail or {}
    added = [
        cost_text(amount) if name == "added_microusd" else f"{amount:,} {name.removeprefix('added_').replace('_', ' ')}"
        for name, amount in detail.items()
        if name.startswith("added_")
    ]
    text = (
        f"{actor_text(event.facts.actor)} added {' and '.join(added)} to the budget of {clean(detail.get('scope'), 20)}"
    )
    builder.milestone(event, "decision", f"{text} {clean(detail.get('row'), 120)}").why = reason(event)


_SOURCES = {
    "late_answer": "from its late response",
    "operator": "according to an operator",
    "invoice": "according to an invoice",
}


def _cost_corrected(builder: TimelineBuilder, event: Recorded) -> None:
    facts = event.facts
    detail = facts.detail or {}
    if of_job := detail.get("of_job_id"):
        text = f"cost corrected: a call of {of_job}, which this job's budget counted at a bound"
        builder.note(None, event, text, kind="budget")
        return
    node = builder.calls.get(facts.call_id or "")
    was = detail.get("was_bound_microusd", 0)
    source = _SOURCES.get(str(detail.get("source")), str(detail.get("source")))
    if facts.bound_microusd:
        text = f"still unknown, at most {cost_text(facts.bound_microusd)}"
    else:
        text = f"{cost_text(facts.cost_microusd or 0)}, {source}"
        text += f"; previously booked at a bound of {cost_text(was)}" if was else ""
    by = f" (by {actor_text(facts.actor)})" if facts.actor and detail.get("source") != "late_answer" else ""
    name = "" if node is not None else f"{model_text(facts)}: "
    builder.note(node, event, f"cost corrected: {name}{text}{by}", kind="budget").why = reason(event)


STOPS = {
    "rate_limited": _rate_limited,
    "loop_stopped": _loop_stopped,
    "cost_alarm": _cost_alarm,
    "budget_topped_up": _budget_topped_up,
    "cost_corrected": _cost_corrected,
}
