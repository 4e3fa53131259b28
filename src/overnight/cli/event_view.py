"""Events as compact lines."""

from typing import TYPE_CHECKING, Any

from overnight.domain import Recorded, booked
from overnight.story import actor_text, clean, content_text, cost_text, moment_text, span_text, until_text

from .output import styled

if TYPE_CHECKING:
    from rich.text import Text

GOOD = frozenset({"completed", "step_committed", "tool_succeeded", "model_succeeded", "timer_fired", "child_finished"})
BAD = frozenset(
    {"failed", "worker_lost", "step_failed", "tool_failed", "tool_unknown", "model_failed", "model_lost"}
    | {"budget_stopped", "diverged", "cancelled"}
)
QUIET = frozenset({"value_recorded", "answers_dropped", "scheduled"})


def event_line(event: Recorded, *, with_content: bool = False) -> "Text":
    """`seq  date time zone  event  facts`, with shortened content if `with_content`."""

    name = event.facts.event
    style = "green" if name in GOOD else "red" if name in BAD else "dim" if name in QUIET else "cyan"
    text = styled(
        (f"{event.seq:>5}  {moment_text(event.at)}  ", "dim"), (f"{name:<17}", style), "  ", " · ".join(_facts(event))
    )
    if with_content and event.content is not None:
        text.append(f"  {content_text(event.content)}", "dim")
    return text


def _facts(event: Recorded) -> list[str]:
    facts = event.facts
    detail, decision = facts.detail or {}, facts.decision or {}
    texts: list[str] = []
    if facts.name:
        texts.append(clean(facts.name, 100))
    if facts.model and facts.model != facts.name:
        texts.append(clean(facts.model, 100))
    if facts.attempt is not None and facts.attempt > 1:
        texts.append(f"attempt {facts.attempt}")
    if facts.input_tokens is not None:
        texts.append(f"{facts.input_tokens:,} in, {facts.output_tokens or 0:,} out")
    cost, bound = booked(facts)
    if cost is not None and (cost or not bound):
        texts.append(cost_text(cost))
    if bound:
        texts.append(f"at most {cost_text(bound)} (cost unknown)")
    if facts.latency_ms is not None:
        texts.append(span_text(facts.latency_ms * 1000))
    texts += _of_detail(detail, event.at)
    if facts.error is not None:
        texts.append(clean(f"{facts.error.error_class}: {facts.error.message}", 200))
    if decision.get("from"):
        texts.append(clean(f"{decision['from']} → {decision.get('to')}", 120))
    if (answer := decision.get("answer")) not in {None, "approve", "reject"}:
        texts.append(f"answered {clean(answer, 20)}")
    elif "approved" in decision:
        texts.append("approved" if decision["approved"] else "rejected")
    texts += [clean(decision[key], 200) for key in ("note", "why") if decision.get(key)]
    if facts.actor:
        texts.append(f"by {actor_text(facts.actor)}")
    if event.path:
        texts.append(f"at {event.path}")
    return texts


def _of_detail(detail: dict[str, Any], at_us: int) -> list[str]:
    shown = ("name", "child_job_id", "state", "review_id", "answers", "lease_epoch", "mode", "of")
    texts = [
        f"{key.removesuffix('_job_id').replace('_', ' ')} {clean(detail[key], 80)}" for key in shown if key in detail
    ]
    if provider_id := detail.get("provider_id"):
        texts.append(f"provider id {clean(provider_id, 120)}")
    if isinstance(due := detail.get("due_at"), int):
        texts.append(f"due {until_text(due, at_us)}")
    return texts
