"""Commands that only read: jobs, explain, events."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .lookup import (
    AllTenants,
    Tenant,
    find_job,
    for_tenant,
    tenant_of,
    tenants_of,
)
from .time_zone import Tz, use_zone

if TYPE_CHECKING:
    from overnight.domain import Recorded
    from overnight.ledger import JobRow, Ledger
    from overnight.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="JSON with stable public names.")]
Content = Annotated[
    bool, typer.Option("--content", help="Also show prompts, answers, arguments and results, shortened.")
]
JobName = Annotated[
    str, typer.Argument(metavar="JOB", help="A job id or its beginning, an id given from outside, or `last`.")
]
PAGE = 200


def read(work: "Callable[[Ledger, Settings], Coroutine[Any, Any, None]]") -> None:
    """Run `work(ledger, settings)` on the ledger of the environment."""
    from overnight.app import open_ledger
    from overnight.settings import Settings

    settings = Settings.from_environment()
    ledger = open_ledger(settings)
    with ledger.store:
        asyncio.run(work(ledger, settings))


def jobs(
    state: Annotated[str, typer.Option(help="Only jobs in this state.", metavar="STATE")] = "",
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many.")] = 50,
    before: Annotated[str, typer.Option(help="The job id that the page before ended with.", metavar="JOB")] = "",
    children: Annotated[bool, typer.Option("--children", help="Child jobs too.")] = False,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """List jobs, newest first.

    \b
    Examples:
      overnight jobs
      overnight jobs --state parked --tenant acme
      overnight jobs -n 500 --json | jq '.[].cost_usd'
    """
    from overnight.domain import job_states

    from .lookup import WrongUsage, is_job_id

    if state and state not in job_states:
        raise WrongUsage(f"--state {state}: no such state; a job is {', '.join(job_states)}")
    if before and not is_job_id(before):
        raise WrongUsage(f"--before {before[:40]}: no id of a job; give the one that the page before ended with")
    use_zone(tz, json=json)

    async def work(ledger: "Ledger", settings: "Settings") -> None:
        from overnight.story import public_job, tree_costs

        whose = tenants_of(tenant, all_tenants, settings)
        found = await _page(ledger, whose, state, before, limit, children)
        costs = await tree_costs(ledger, [job.job_id for job in found])
        if json:
            from .output import print_json

            now = ledger.store.clock()
            print_json([public_job(job, *costs.get(job.job_id, (0, 0, 0)), now) for job in found])
        else:
            from .job_view import show_jobs

            show_jobs(found, costs, ledger.store.clock())

    read(work)


async def _page(ledger: "Ledger", tenant: str, state: str, before: str, limit: int, children: bool) -> "list[JobRow]":
    found: list[JobRow] = []
    while len(found) < limit:
        page = await ledger.jobs(tenant_id=tenant, state=state, before=before, most=PAGE)
        found += [job for job in page if children or job.parent_job_id is None]
        if len(page) < PAGE:
            break
        before = page[-1].job_id
    return found[:limit]


def explain(job: JobName, tenant: Tenant = None, content: Content = False, tz: Tz = None, json: Json = False) -> None:
    """Tell what a job did, and why: a story, with what to do next when it failed or waits.

    \b
    Examples:
      overnight explain last
      overnight explain job_01a1b2c3 --content --tz Europe/Berlin
      overnight explain nightly-2026-01-31 --json | jq .header
    """

    use_zone(tz, json=json)

    async def work(ledger: "Ledger", settings: "Settings") -> None:
        from overnight.story import gather, public_story, tell

        found = await find_job(ledger, job, tenant_of(tenant, settings))
        chapter = await gather(ledger, found, with_content=content)
        now = ledger.store.clock()
        story = tell(chapter, now, with_content=content)
        for advice in story.advice:
            advice.commands = tuple(for_tenant(each, found.tenant_id, settings) for each in advice.commands)
        if json:
            from .output import print_json

            print_json(public_story(chapter, story, now, with_content=content))
        else:
            from .story_view import show_story

            show_story(story)

    read(work)


def events(
    job: JobName,
    tenant: Tenant = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is finished.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Only events after this seq.")] = 0,
    content: Content = False,
    tz: Tz = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with stable public names.")] = False,
) -> None:
    """Show a job's events as they were recorded.

    \b
    Examples:
      overnight events last
      overnight events last --follow
      overnight events job_01a1b2c3 --json | jq 'select(.event == "model_succeeded").cost_usd_est'
    """

    use_zone(tz, json=json)

    async def work(ledger: "Ledger", settings: "Settings") -> None:
        found = await find_job(ledger, job, tenant_of(tenant, settings))
        show = _shower(json, content)
        if follow:
            async for event in ledger.follow(found.job_id, after):
                show(event)
        else:
            for event in await ledger.events(found.job_id, after):
                show(event)

    read(work)


def _shower(json: bool, content: bool) -> "Callable[[Recorded], None]":
    import sys

    from overnight.domain import public_event

    if not json:
        from .event_view import event_line
        from .output import console

        def show(event: "Recorded") -> None:
            console().print(event_line(event, with_content=content), soft_wrap=True)

        return show
    from .output import json_text

    def write(event: "Recorded") -> None:
        sys.stdout.write(json_text(public_event(event, with_content=content)) + "\n")
        sys.stdout.flush()  # a follower reads as they come

    return write
