"""Calls of unknown cost: list them, and book what one really cost."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .jobs import Json, read
from .lookup import (
    SHORT_ID,
    AllTenants,
    Tenant,
    WrongUsage,
    find_job,
    tenant_of,
    tenants_of,
)
from .output import say
from .reviews import LONGEST_NOTE, By, operator
from .time_zone import Tz, use_zone

if TYPE_CHECKING:
    from overnight.budgets import BoundRow, Correction
    from overnight.ledger import Ledger
    from overnight.settings import Settings

MOST_TOKENS = 1_000_000_000_000


def list_them(
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    job: Annotated[str, typer.Option(help="Only this job's.", metavar="JOB")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many calls.")] = 50,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """List the calls of unknown cost: lost, failed or answered without usage. Each is booked at the most it can have cost.

    \b
    Examples:
      overnight budget bounds --job last
      overnight budget bounds --tenant acme --json
    """
    use_zone(tz, json=json)

    async def work(ledger: "Ledger", settings: "Settings") -> None:
        from overnight.budgets import list_bounds, public_bound

        whose = tenants_of(tenant, all_tenants, settings)
        job_id = (await find_job(ledger, job, tenant_of(tenant, settings))).job_id if job else ""
        found = await list_bounds(ledger.store, tenant_id=whose, job_id=job_id, most=limit)
        if json:
            from .output import print_json

            print_json([public_bound(row) for row in found])
        else:
            _show(found)

    read(work)


def _show(found: "list[BoundRow]") -> None:
    from overnight.budgets import public_bound
    from overnight.story import clean, cost_text, moment_text

    from .output import print_rows

    if not found:
        say("no call of unknown cost: every call is booked at what it cost")
        return
    heads = ("call", "job", "model", "why", "cost", "bound", "booked")
    rows: list[list[tuple[str, str]]] = []
    for row in found:
        model, why = clean(public_bound(row)["model"], 40), row.why.replace("_", " ")
        sums = (cost_text(row.cost_microusd), cost_text(row.bound_microusd), moment_text(row.booked_at))
        rows.append([(text, "") for text in (row.call_id, row.job_id[:SHORT_ID], model, why, *sums)])
    print_rows(heads, rows, frozenset({"cost", "bound"}))
    say("book what one cost: overnight budget settle CALL --usd COST --why TEXT")


def settle(
    call: Annotated[str, typer.Argument(metavar="CALL", help="The call, as `overnight budget bounds` lists it.")],
    usd: Annotated[str, typer.Option(metavar="USD", help="What it really cost, in dollars; 0 if it was not billed.")],
    tokens: Annotated[
        int | None, typer.Option(min=0, max=MOST_TOKENS, help="Input and output tokens together, where known.")
    ] = None,
    source: Annotated[str, typer.Option(metavar="SOURCE", help="operator or invoice.")] = "operator",
    why: Annotated[str, typer.Option(help="Why; the story shows it.", metavar="TEXT")] = "",
    by: By = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Book the real cost of a call that was booked at a bound. The jobs that wait for its budgets go on by themselves.

    A later settlement of the same call replaces the earlier one; the same again changes nothing.

    \b
    Examples:
      overnight budget settle call_01a1b2c3 --usd 0.0012 --why "invoice of May" --source invoice
      overnight budget settle call_01a1b2c3 --usd 0 --why "the provider never saw it"
    """
    from overnight.app import open_ledger
    from overnight.budgets import correct_cost
    from overnight.domain import check_identifier
    from overnight.settings import Settings

    from .budget import dollars

    if len(why) > LONGEST_NOTE:
        raise WrongUsage(f"--why: {len(why):,} characters; the most is {LONGEST_NOTE:,}")
    settings = Settings.from_environment()
    owner, call_id, cost = tenant_of(tenant, settings), check_identifier(call, "CALL"), dollars(usd)
    facts: dict[str, Any] = {"actor": operator(by), "why": why, "source": source, "tokens": tokens}
    ledger = open_ledger(settings)
    with ledger.store:
        done = asyncio.run(correct_cost(ledger.store, owner, call_id, cost, **facts))
    if json:
        from .output import print_json

        print_json(done.public())
    else:
        _show_correction(done)


def _show_correction(done: "Correction") -> None:
    from overnight.domain import usd_text

    cost = usd_text(done.cost_microusd)
    if not done.changed:
        say(f"{done.call_id} is booked at {cost} already; nothing was changed")
        return
    was = usd_text(done.was.cost_microusd)
    if done.was.bound_microusd:
        unknown = f"a bound of {usd_text(done.was.bound_microusd)}"
        was = f"{was} and {unknown}" if done.was.cost_microusd else unknown
    say(f"{done.call_id} of {done.job_id} is booked at {cost} now; before, at {was}")
    if done.cost_microusd > done.most_microusd:
        say(
            f"warning: that is more than the {usd_text(done.most_microusd)} that it was thought to cost at most; the limits"
            " of its budgets may be passed",
            err=True,
        )
    for job_id in done.woken:
        say(f"{job_id} goes on")
