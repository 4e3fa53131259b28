"""`overnight jobs`, `explain` and `events`: commands that only read."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from overnight.domain import Recorded, job_states, public_event
from overnight.ledger import JobRow, Ledger, read_idleness
from overnight.reports import load_receipt, public_receipt
from overnight.settings import Settings
from overnight.story import (
    build_timeline,
    load_job_tree,
    public_job,
    public_timeline,
    tree_costs,
)

from .event_view import event_line
from .job_view import show_jobs
from .ledger_reader import PAGE, read
from .lookup import find_job, for_tenant, is_job_id, tenant_of, tenants_of
from .options import AllTenants, Content, JobName, Json, Tenant, Tz
from .output import console, json_text, print_json
from .receipt_view import summary_lines
from .time_zone import use_zone
from .timeline_view import show_timeline
from .usage import WrongUsage


def jobs(
    state: Annotated[str, typer.Option(help="Only jobs in this state.", metavar="STATE")] = "",
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, max=10_000, help="The maximum number of jobs.")
    ] = 50,
    before: Annotated[
        str,
        typer.Option(
            help="Only jobs older than this job id; for the next page, the last id of the previous page.", metavar="JOB"
        ),
    ] = "",
    children: Annotated[bool, typer.Option("--children", help="Include child jobs.")] = False,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """List jobs, newest first. `bound` is the upper bound of calls of unknown cost.

    \b
    Examples:
      overnight jobs
      overnight jobs --state parked --tenant acme
      overnight jobs -n 500 --json | jq '.[].cost_usd'
    """

    if state and state not in job_states:
        raise WrongUsage(f"--state {state}: unknown state; expected one of {', '.join(job_states)}")
    if before and not is_job_id(before):
        raise WrongUsage(f"--before {before[:40]}: not a job id; give the last job id of the previous page")
    use_zone(tz, json=json)

    async def work(ledger: Ledger, settings: Settings) -> None:

        tenant_id = tenants_of(tenant, all_tenants, settings)
        found = await _page(ledger, tenant_id, state, before, limit, children)
        costs = await tree_costs(ledger, [job.job_id for job in found])
        now = ledger.store.clock()
        idle = await read_idleness(ledger.store, found, now)
        if json:
            print_json([public_job(job, *costs.get(job.job_id, (0, 0, 0)), now, idle.get(job.job_id)) for job in found])
        else:
            show_jobs(found, costs, now, idle)

    read(work)


async def _page(ledger: Ledger, tenant: str, state: str, before: str, limit: int, children: bool) -> list[JobRow]:
    found: list[JobRow] = []
    while len(found) < limit:
        page = await ledger.jobs(tenant_id=tenant, state=state, before=before, most=PAGE)
        found += [job for job in page if children or job.parent_job_id is None]
        if len(page) < PAGE:
            break
        before = page[-1].job_id
    return found[:limit]


def explain(job: JobName, tenant: Tenant = None, content: Content = False, tz: Tz = None, json: Json = False) -> None:
    """Show the timeline of a job: what it did, why, and what to do next.

    \b
    Examples:
      overnight explain last
      overnight explain job_01a1b2c3 --content --tz Europe/Berlin
      overnight explain nightly-2026-01-31 --json | jq .header
    """

    use_zone(tz, json=json)

    async def work(ledger: Ledger, settings: Settings) -> None:

        found = await find_job(ledger, job, tenant_of(tenant, settings))
        tree = await load_job_tree(ledger, found, with_content=content)
        now = ledger.store.clock()
        timeline = build_timeline(tree, now, with_content=content)
        receipt = await load_receipt(ledger, found)
        for advice in timeline.advice:
            advice.commands = tuple(for_tenant(each, found.tenant_id, settings) for each in advice.commands)
        if json:
            shown = {"receipt": public_receipt(receipt, with_content=content)}
            print_json(public_timeline(tree, timeline, now, with_content=content) | shown)
        else:
            show_timeline(timeline, summary_lines(receipt, now, with_content=content))

    read(work)


def events(
    job: JobName,
    tenant: Tenant = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing new events until the job finishes.")
    ] = False,
    after: Annotated[int, typer.Option(min=0, help="Only events with a greater seq.")] = 0,
    content: Content = False,
    tz: Tz = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line, with stable public names.")
    ] = False,
) -> None:
    """Show the recorded events of a job.

    \b
    Examples:
      overnight events last
      overnight events last --follow
      overnight events job_01a1b2c3 --json | jq 'select(.event == "model_succeeded").cost_usd_est'
    """

    use_zone(tz, json=json)

    async def work(ledger: Ledger, settings: Settings) -> None:
        found = await find_job(ledger, job, tenant_of(tenant, settings))
        show = _shower(json, content)
        if follow:
            async for event in ledger.follow(found.job_id, after):
                show(event)
        else:
            for event in await ledger.events(found.job_id, after):
                show(event)

    read(work)


def _shower(json: bool, content: bool) -> Callable[[Recorded], None]:

    if not json:

        def show(event: Recorded) -> None:
            console().print(event_line(event, with_content=content), soft_wrap=True)

        return show

    def write(event: Recorded) -> None:
        sys.stdout.write(json_text(public_event(event, with_content=content)) + "\n")
        sys.stdout.flush()  # for readers that follow

    return write
