"""Jobs as tables."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from overnight.ledger import Idleness, JobRow
from overnight.settings import Settings
from overnight.story import (
    advise,
    clean,
    content_text,
    cost_text,
    count_text,
    idle_text,
    moment_text,
    span_text,
    span_us,
    waiting_list,
)

from .lookup import SHORT_ID, for_tenant
from .output import STATE_STYLES, console, print_rows, styled


def show_jobs(
    jobs: Sequence[JobRow], costs: Mapping[str, tuple[int, int, int]], now_us: int, idle: Mapping[str, Idleness]
) -> None:
    """One line per job; the last column is the reason it waits, is idle or failed."""
    if not jobs:
        console().print("No jobs. Create one with `overnight demo` or `overnight run module:function`.")
        return
    tenants = len({job.tenant_id for job in jobs}) > 1
    heads = [
        "job",
        "state",
        "name",
        *(["tenant"] if tenants else []),
        "took",
        "cost",
        "bound",
        "calls",
        "created",
        "",
    ]
    rows: list[list[tuple[str, str]]] = []
    for job in jobs:
        calls, cost, bound = costs.get(job.job_id, (0, 0, 0))
        name = clean(job.name, 32) if job.parent_job_id is None else f"└ {clean(job.name, 30)}"
        row = [(job.job_id[:SHORT_ID], ""), (job.state, STATE_STYLES.get(job.state, "")), (name, "")]
        row += [(clean(job.tenant_id, 30), "")] if tenants else []
        row += [(span_text(span_us(job, now_us)), ""), (cost_text(cost) if calls else "-", "")]
        row += [(cost_text(bound) if bound else "-", ""), (str(calls or "-"), "")]
        rows.append([*row, (moment_text(job.created_at), ""), (_remark(job, idle.get(job.job_id), now_us), "dim")])
    print_rows(heads, rows, frozenset({"took", "calls", "cost", "bound"}))


def show_end(job: JobRow, calls: int, cost_microusd: int, bound_microusd: int, now_us: int, following: str) -> None:
    """The state of a job after a foreground command, and the next command."""

    facts = f"{span_text(span_us(job, now_us))} · {count_text(calls, 'paid model call')} · {cost_text(cost_microusd)}"
    if bound_microusd:
        facts += f" · unknown cost: at most {cost_text(bound_microusd)}"
    out = console()
    out.print(styled((job.state, STATE_STYLES.get(job.state, "")), f"  {clean(job.name, 60)}  {facts}"), soft_wrap=True)
    remark = _remark(job)
    if job.state in {"failed", "parked"} and remark:
        out.print(remark, soft_wrap=True)
    if job.state == "succeeded" and job.result not in {None, b"null"}:
        out.print(f"result  {content_text(job.result)}", soft_wrap=True)
    out.print(following, style="cyan", soft_wrap=True)


def _remark(job: JobRow, idleness: Idleness | None = None, now_us: int = 0) -> str:
    if idleness is not None:
        return idle_text(idleness, now_us)
    if job.state == "parked":
        return "waits for " + ", ".join(sorted({_wait_text(wait) for wait in job.waits}))
    if job.state == "failed" and job.error:
        error: dict[str, Any] = json.loads(job.error)
        return clean(f"{error.get('class')}: {error.get('message')}", 120)
    return f"crashes survived: {job.recoveries}" if job.recoveries else ""


def _wait_text(wait: Mapping[str, Any]) -> str:
    """The reason of a wait; for a budget, also its calls of unknown cost."""
    bounds = [f"{clean(each['call_id'], 60)} ≤ ${each['bound_usd']:.4f}" for each in wait.get("bounds", ())]
    booked = f" (booked at a bound: {', '.join(bounds)})" if bounds else ""
    return f"{wait.get('for')}{booked}"


def show_stuck(jobs: Sequence[JobRow], others: int, now_us: int, settings: Settings) -> None:
    """Parked jobs that wait for a person without a review, with commands; and the number of other parked jobs."""

    out = console()
    for job in jobs:
        waits = "; ".join(waiting_list(job.waits, now_us))
        out.print(styled((clean(job.name, 80), "bold"), f"\n  {job.job_id}  parked: waits for {waits}"), soft_wrap=True)
        for advice in advise(job, {}, now_us):
            for command in advice.commands:
                out.print("    " + for_tenant(command, job.tenant_id, settings), style="cyan", soft_wrap=True)
        out.print()
    if others:
        out.print(f"Parked jobs that resume automatically: {others:,}.")
