"""The sums in the header of a timeline."""

from overnight.domain import FINISHED, Recorded, booked
from overnight.ledger import Idleness, JobRow, is_idle, last_outcome

from .lifecycle_events import row_error
from .lines import Header
from .loader import JobTree
from .text import moment_text, span_text

ADDED = (
    "cost_microusd",
    "bound_microusd",
    "lost_calls",
    "input_tokens",
    "output_tokens",
    "model_calls",
    "paid_calls",
    "replayed_calls",
    "cached_calls",
    "tool_calls",
    "steps",
    "retries",
    "fallbacks",
    "human_decisions",
    "crashes",
    "child_jobs",
)


def count(tree: JobTree, now_us: int) -> Header:
    """The header of a job, with the sums of the children loaded with it."""
    header = _header(tree.job, now_us)
    idleness = idleness_of(tree, now_us)
    header.idle = idle_text(idleness, now_us) if idleness is not None else ""
    header.parked_us = _parked_us(tree.events, now_us)
    running = True
    moved = False
    calls: dict[str, tuple[int, int]] = {}
    for event in tree.events:
        running = _add(header, event, running)
        if event.facts.event in {"model_succeeded", "model_failed", "model_lost", "cost_corrected"}:
            _add_cost(header, event, calls)
        # An attempt after a fallback is the fallback, not a retry.
        header.retries -= moved and event.facts.event == "model_called" and _is_again(event)
        moved = event.facts.event == "fallback_taken"
    for child in tree.children.values():
        of_child = count(child, now_us)
        for name in ADDED:
            setattr(header, name, getattr(header, name) + getattr(of_child, name))
        for model, cost in of_child.models.items():
            header.models[model] = header.models.get(model, 0) + cost
        for model, bound in of_child.model_bounds.items():
            header.model_bounds[model] = header.model_bounds.get(model, 0) + bound
        header.child_jobs += 1
    return header


def idleness_of(tree: JobTree, now_us: int) -> Idleness | None:
    """The idleness of an external job; None if it is not idle."""
    if not is_idle(tree.job, now_us):
        return None
    return Idleness(tree.job.active_at, last_outcome((event.facts, event.at) for event in reversed(tree.events)))


def idle_text(idleness: Idleness, now_us: int) -> str:
    """The idleness of a job as text: since when, and the last outcome."""
    outcome = f"; last outcome: {idleness.outcome.text()}" if idleness.outcome is not None else ""
    return f"idle for {span_text(now_us - idleness.since)}: no call since {moment_text(idleness.since)}{outcome}"


def _header(job: JobRow, now_us: int) -> Header:
    return Header(
        job_id=job.job_id,
        name=job.name,
        state=job.state,
        waiting=[],
        error=row_error(job) if job.state == "failed" else "",
        tenant_id=job.tenant_id,
        external_id=job.external_id,
        parent_job_id=job.parent_job_id,
        agent_id=job.agent_id,
        attempt=job.attempt,
        created_at=job.created_at,
        finished_at=job.finished_at if job.state in FINISHED else None,
        span_us=span_us(job, now_us),
    )


def span_us(job: JobRow, now_us: int) -> int:
    """From the creation of the job to its end, or until now."""
    end = job.finished_at if job.state in FINISHED and job.finished_at is not None else now_us
    return max(0, end - job.created_at)


def _add(header: Header, event: Recorded, running: bool) -> bool:
    """Count one event; returns whether the job was running after it."""
    facts = event.facts
    detail = facts.detail or {}
    match facts.event:
        case "model_called":
            header.model_calls += 1
            header.retries += _is_again(event)
        case "cache_hit":
            header.cached_calls += 1
        case "model_replayed":
            header.replayed_calls += 1
        case "tool_called":
            header.tool_calls += 1
        case "tool_failed":
            header.retries += facts.error is None
        case "step_committed":
            header.steps += 1
        case "step_failed":
            header.retries += event.path is None
        case "fallback_taken":
            header.fallbacks += 1
        case "review_decided":
            header.human_decisions += 1
        case "worker_lost":
            header.crashes += 1
        case "attempt_started" if detail.get("mode") != "quarantine":
            # An external program that reconnects without having finished was lost.
            crashed = running and detail.get("mode") == "recover"
            header.crashes += crashed
            header.retries += not crashed
        case _:
            pass
    # An external program ends when it requests a review, and is started again later: that is no crash.
    if facts.event in {"completed", "failed", "cancelled", "review_requested"}:
        return False
    return running or facts.event in {"started", "attempt_started", "resumed"}


def _is_again(event: Recorded) -> bool:
    return (event.facts.detail or {}).get("try", 1) != 1


def _add_cost(header: Header, event: Recorded, calls: dict[str, tuple[int, int]]) -> None:
    """Count the end of a call, or its correction, which replaces the earlier booking in `calls`."""
    facts = event.facts
    cost, bound = (each or 0 for each in booked(facts))
    was_cost, was_bound = 0, 0
    if facts.event == "cost_corrected":
        if facts.cost_microusd is None:  # it concerns a call of another job
            return
        was_cost, was_bound = calls.get(facts.call_id or "", (0, 0))
    else:
        free = facts.event == "model_failed" or not {"cache", "degraded"}.isdisjoint(facts.detail or {})
        header.paid_calls += cost + bound > 0 or not free
        header.lost_calls += facts.event == "model_lost"
    if facts.call_id is not None:
        calls[facts.call_id] = cost, bound
    header.cost_microusd += cost - was_cost
    header.bound_microusd += bound - was_bound
    header.input_tokens += facts.input_tokens or 0
    header.output_tokens += facts.output_tokens or 0
    answered = facts.event == "model_succeeded" and "degraded" not in (facts.detail or {})
    if facts.model and (cost or bound or was_bound or answered):
        header.models[facts.model] = header.models.get(facts.model, 0) + cost - was_cost
        header.model_bounds[facts.model] = header.model_bounds.get(facts.model, 0) + bound - was_bound


def _parked_us(events: list[Recorded], now_us: int) -> int:
    parked, since = 0, 0
    for event in events:
        if event.facts.event == "parked":
            since = since or event.at
        elif since and event.facts.event in {"resumed", "scheduled", "started", "completed", "failed", "cancelled"}:
            parked, since = parked + event.at - since, 0
    return parked + (now_us - since if since else 0)
