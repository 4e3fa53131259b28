"""`overnight budget bounds` and `settle`: calls of unknown cost, and the correction of their cost."""

import asyncio
from typing import Annotated, Any

import typer

from overnight.budgets import BoundRow, Correction, correct_cost, list_bounds, public_bound
from overnight.domain import check_identifier, usd_text
from overnight.ledger import Ledger
from overnight.process_environment import open_ledger
from overnight.settings import Settings
from overnight.story import clean, cost_text, moment_text

from .actor import operator
from .amounts import dollars
from .ledger_reader import read
from .lookup import SHORT_ID, find_job, tenant_of, tenants_of
from .options import AllTenants, By, Json, Tenant, Tz, Why
from .output import print_json, print_rows, say
from .time_zone import use_zone
from .usage import check_note

MAX_TOKENS = 1_000_000_000_000


def list_them(
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    job: Annotated[str, typer.Option(help="Only calls of this job.", metavar="JOB")] = "",
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, max=1000, help="The maximum number of calls.")
    ] = 50,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """List calls of unknown cost.

    These calls were lost, failed, or answered without usage. Each is booked at its upper bound.

    \b
    Examples:
      overnight budget bounds --job last
      overnight budget bounds --tenant acme --json
    """
    use_zone(tz, json=json)

    async def work(ledger: Ledger, settings: Settings) -> None:

        tenant_id = tenants_of(tenant, all_tenants, settings)
        job_id = (await find_job(ledger, job, tenant_of(tenant, settings))).job_id if job else ""
        found = await list_bounds(ledger.store, tenant_id=tenant_id, job_id=job_id, limit=limit)
        if json:
            print_json([public_bound(row) for row in found])
        else:
            _show(found)

    read(work)


def _show(found: list[BoundRow]) -> None:

    if not found:
        say("no calls of unknown cost: every call is booked at its real cost")
        return
    heads = ("call", "job", "model", "reason", "cost", "bound", "booked")
    rows: list[list[tuple[str, str]]] = []
    for row in found:
        model, why = clean(public_bound(row)["model"], 40), row.why.replace("_", " ")
        sums = (cost_text(row.cost_microusd), cost_text(row.bound_microusd), moment_text(row.booked_at))
        rows.append([(text, "") for text in (row.call_id, row.job_id[:SHORT_ID], model, why, *sums)])
    print_rows(heads, rows, frozenset({"cost", "bound"}))
    say("To book the real cost of a call: overnight budget settle CALL --usd COST --why TEXT")


def settle(
    call: Annotated[str, typer.Argument(metavar="CALL", help="The call id, as `overnight budget bounds` lists it.")],
    usd: Annotated[str, typer.Option(metavar="USD", help="The real cost in dollars; 0 if the call was not billed.")],
    tokens: Annotated[
        int | None, typer.Option(min=0, max=MAX_TOKENS, help="Input and output tokens together, if known.")
    ] = None,
    source: Annotated[str, typer.Option(metavar="SOURCE", help="operator or invoice.")] = "operator",
    why: Why = "",
    by: By = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Book the real cost of a call that was booked at an upper bound. Jobs that wait for its budgets resume automatically.

    A later settlement of the same call replaces the earlier one. Repeating a settlement changes nothing.

    \b
    Examples:
      overnight budget settle call_01a1b2c3 --usd 0.0012 --why "invoice of May" --source invoice
      overnight budget settle call_01a1b2c3 --usd 0 --why "the provider never received it"
    """

    check_note("--why", why)
    settings = Settings.from_environment()
    owner, call_id, cost = tenant_of(tenant, settings), check_identifier(call, "CALL"), dollars(usd)
    facts: dict[str, Any] = {"actor": operator(by), "why": why, "source": source, "tokens": tokens}
    ledger = open_ledger(settings)
    with ledger.store:
        done = asyncio.run(correct_cost(ledger.store, owner, call_id, cost, **facts))
    if json:
        print_json(done.public())
    else:
        _show_correction(done)


def _show_correction(done: Correction) -> None:

    cost = usd_text(done.cost_microusd)
    if not done.changed:
        say(f"{done.call_id} is already booked at {cost}; nothing changed")
        return
    was = usd_text(done.was.cost_microusd)
    if done.was.bound_microusd:
        unknown = f"a bound of {usd_text(done.was.bound_microusd)}"
        was = f"{was} and {unknown}" if done.was.cost_microusd else unknown
    say(f"{done.call_id} of {done.job_id} is now booked at {cost}; before: {was}")
    if done.cost_microusd > done.most_microusd:
        say(
            f"Warning: this exceeds the upper bound of {usd_text(done.most_microusd)}; the limits of its budgets may be"
            " exceeded",
            err=True,
        )
    for job_id in done.woken:
        say(f"{job_id} resumes")
