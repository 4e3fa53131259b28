"""Jobs and timelines as public JSON."""

from collections.abc import Sequence
from typing import Any

import msgspec

from overnight.domain import Recorded, iso_utc, micro_to_usd, public_event
from overnight.ledger import Idleness, JobRow, Ledger

from .lines import Header, Line, Timeline
from .loader import JobTree
from .totals import idleness_of, span_us

LAST_EVENTS = 50


def public_job(
    job: JobRow, calls: int, cost_microusd: int, bound_microusd: int, now_us: int, idleness: Idleness | None = None
) -> dict[str, Any]:
    """A job as JSON, without its content (input, result). `calls` (paid), `cost_microusd` and `bound_microusd` include child
    jobs; the bound is the upper bound of calls of unknown cost, in addition to the cost.

    Spans are in milliseconds, money in dollars, times in UTC. `idleness` is that of a running external job without a call.
    """
    return {
        "job_id": job.job_id,
        "run_id": job.job_id,
        "external_id": job.external_id,
        "name": job.name,
        "state": job.state,
        "waiting": [_public_wait(wait) for wait in job.waits],
        "runtime": job.runtime,
        "tenant_id": job.tenant_id,
        "agent_id": job.agent_id,
        "workflow": job.workflow,
        "session_id": job.session_id,
        "parent_job_id": job.parent_job_id,
        "root_job_id": job.root_job_id,
        "attempt": job.attempt,
        "recoveries": job.recoveries,
        "paid_calls": calls,
        "cost_usd": micro_to_usd(cost_microusd),
        "bound_usd": micro_to_usd(bound_microusd),
        "created_at": iso_utc(job.created_at),
        "started_at": _iso(job.started_at),
        "finished_at": _iso(job.finished_at),
        "duration_ms": round(span_us(job, now_us) / 1000, 3),
        "error": msgspec.json.decode(job.error) if job.error else None,
        "brain_version": job.brain_version,
        "last_seq": job.last_seq,
        "unattributed": bool(job.unattributed),
        "idle": _public_idleness(idleness) if idleness is not None else None,
    }


def _public_idleness(idleness: Idleness) -> dict[str, Any]:
    outcome = idleness.outcome
    public = outcome.public() | {"at": iso_utc(outcome.at)} if outcome is not None else None
    return {"since": iso_utc(idleness.since), "last_outcome": public}


def public_traceback(job: JobRow, events: Sequence[Recorded]) -> msgspec.Raw | None:
    """The traceback of a failed job from its last events: `[{class, frames: [{file, line, function}]}]`, without values."""
    if job.state != "failed":
        return None
    ended = next((event for event in reversed(events) if event.facts.event == "failed"), None)
    return msgspec.Raw(ended.content) if ended is not None and ended.content else None


async def read_traceback(ledger: Ledger, job: JobRow) -> msgspec.Raw | None:
    """As `public_traceback`, read from the end of the job's log."""
    after = job.last_seq
    while job.state == "failed" and after > 0:
        after = max(0, after - LAST_EVENTS)
        events = await ledger.events(job.job_id, after, LAST_EVENTS)
        if any(event.facts.event == "failed" for event in events):
            return public_traceback(job, events)
    return None


def _iso(at_us: int | None) -> str | None:
    return iso_utc(at_us) if at_us else None


def _public_wait(wait: dict[str, Any]) -> dict[str, Any]:
    public = {key: value for key, value in wait.items() if key not in {"due_at", "path", "ordinal"}}
    if isinstance(due := wait.get("due_at"), int):
        public["due_at"] = iso_utc(due)
    if "path" in wait:
        public["position"] = {"path": wait["path"], "ordinal": wait.get("ordinal")}
    return public


def public_timeline(tree: JobTree, story: Timeline, now_us: int, *, with_content: bool = False) -> dict[str, Any]:
    """`{job, header, lines, next, events}`; the events include those of loaded child jobs."""
    header = story.header
    return {
        "job": public_job(
            tree.job, header.paid_calls, header.cost_microusd, header.bound_microusd, now_us, idleness_of(tree, now_us)
        )
        | {"traceback": public_traceback(tree.job, tree.events)},
        "header": _public_header(header),
        "lines": [_public_line(line) for line in story.lines],
        "next": [msgspec.to_builtins(advice) for advice in story.advice],
        "events": _public_events(tree, with_content),
    }


def _public_events(tree: JobTree, with_content: bool) -> list[dict[str, Any]]:
    events = [public_event(event, with_content=with_content) for event in tree.events]
    for child in tree.children.values():
        events += _public_events(child, with_content)
    return events


def _public_header(header: Header) -> dict[str, Any]:
    public: dict[str, Any] = msgspec.to_builtins(header)
    del public["idle"]  # `job.idle` has its parts
    public["created_at"], public["finished_at"] = iso_utc(header.created_at), _iso(header.finished_at)
    public["duration_ms"], public["parked_ms"] = public.pop("span_us") / 1000, public.pop("parked_us") / 1000
    public["cost_usd"] = micro_to_usd(public.pop("cost_microusd"))
    public["bound_usd"] = micro_to_usd(public.pop("bound_microusd"))
    public["cost_usd_by_model"] = {model: micro_to_usd(cost) for model, cost in public.pop("models").items()}
    bounds = {model: micro_to_usd(bound) for model, bound in public.pop("model_bounds").items() if bound}
    public["bound_usd_by_model"] = bounds
    return public


def _public_line(line: Line) -> dict[str, Any]:
    public: dict[str, Any] = msgspec.to_builtins(line)
    public["at"] = iso_utc(line.at)
    return public
