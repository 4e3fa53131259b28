"""What held a call up, or a job back: speeds, loops, alarms of cost; what people added to a budget, and corrected costs."""

from typing import Any

from overnight.domain import Recorded

from .calls import model_text
from .lifecycle_events import reason
from .text import (
    clean,
    cost_text,
    span_text,
    who,
)
from .timeline import Tale


def _rate_limited(tale: Tale, event: Recorded) -> None:
    """The call that it held up comes next, if it was made."""
    decision, detail = event.facts.decision or {}, event.facts.detail or {}
    whose = clean(f"{decision.get('scope')} {decision.get('name')}", 120)
    after = f"after {span_text(detail.get('waited_ms', 0) * 1000)}"
    if detail.get("refused"):
        tale.note(None, event, f"rate limit of {whose}: a call was refused {after}", "failed", "rate")
    else:
        tale.note(None, event, f"rate limit of {whose}: a call was let in {after}", kind="rate")


def _loop_stopped(tale: Tale, event: Recorded) -> None:
    tale.note(None, event, f"stopped as a loop: {reason(event)}", "failed", "loop")


def _cost_alarm(tale: Tale, event: Recorded) -> None:
    of = (event.facts.detail or {}).get("of_job_id")
    whose = "" if of in {None, tale.job.job_id} else f" of {of}"
    tale.note(None, event, f"cost alarm{whose}: {reason(event)}", "failed", "alarm")


def _budget_topped_up(tale: Tale, event: Recorded) -> None:
    detail: dict[str, Any] = event.facts.detail or {}
    added = [
        cost_text(amount) if name == "added_microusd" else f"{amount:,} {name.removeprefix('added_').replace('_', ' ')}"
        for name, amount in detail.items()
        if name.startswith("added_")
    ]
    text = f"{who(event.facts.actor)} added {' and '.join(added)} to the budget of {clean(detail.get('scope'), 20)}"
    tale.milestone(event, "decision", f"{text} {clean(detail.get('row'), 120)}").why = reason(event)


_SOURCES = {
    "late_answer": "its late answer tells it",
    "operator": "as an operator says",
    "invoice": "as an invoice says",
}


def _cost_corrected(tale: Tale, event: Recorded) -> None:
    facts = event.facts
    detail = facts.detail or {}
    if of_job := detail.get("of_job_id"):
        text = f"a call of {of_job} that its budget counted at a bound was corrected"
        tale.note(None, event, text, kind="budget")
        return
    node = tale.calls.get(facts.call_id or "")
    was = detail.get("was_bound_microusd", 0)
    source = _SOURCES.get(str(detail.get("source")), str(detail.get("source")))
    if facts.bound_microusd:
        text = f"its cost is still unknown, at most {cost_text(facts.bound_microusd)}"
    else:
        text = f"it cost {cost_text(facts.cost_microusd or 0)}, {source}"
        text += f"; it was booked at a bound of {cost_text(was)}" if was else ""
    by = f" (by {who(facts.actor)})" if facts.actor and detail.get("source") != "late_answer" else ""
    name = "" if node is not None else f"{model_text(facts)}: "
    tale.note(node, event, f"cost corrected: {name}{text}{by}", kind="budget").why = reason(event)


STOPS = {
    "rate_limited": _rate_limited,
    "loop_stopped": _loop_stopped,
    "cost_alarm": _cost_alarm,
    "budget_topped_up": _budget_topped_up,
    "cost_corrected": _cost_corrected,
}
