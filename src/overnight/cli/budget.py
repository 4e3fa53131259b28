"""`overnight budget`: limits, spending, top-ups."""

import asyncio
from typing import Annotated

import msgspec
import typer

from overnight.budgets import BudgetLine, Policy, TopUp, line_of, list_budgets, resolve_top_up, top_up_budget
from overnight.domain import usd_text
from overnight.ledger import Ledger
from overnight.process_environment import load_settings_brain, open_ledger
from overnight.settings import Settings
from overnight.story import moment_text

from . import bounds
from .actor import operator
from .amounts import dollars
from .ledger_reader import read
from .limits_view import limits_in_force, show_limits
from .lookup import find_job, tenant_of, tenants_of
from .options import AllTenants, By, Json, Tenant, Tz, Why
from .output import print_json, print_rows, say
from .time_zone import use_zone
from .usage import WrongUsage, check_note, reject_early_options

program = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
program.command("bounds")(bounds.list_them)
program.command("settle")(bounds.settle)
MAX_AMOUNT = 1_000_000_000_000
Amount = Annotated[int, typer.Option(min=0, max=MAX_AMOUNT, show_default=False)]
_HEADS = ("budget", "per", "measure", "limit", "spent", "bound", "reserved", "left")


@program.callback()
def _default(  # pyright: ignore[reportUnusedFunction]
    context: typer.Context,
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    job: Annotated[str, typer.Option(help="Only budgets of this job.", metavar="JOB")] = "",
    limits: Annotated[bool, typer.Option("--limits", help="Only the limits of routing.yaml.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Include budgets without a limit.")] = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, max=1000, help="The maximum number of jobs.")
    ] = 50,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """Show limits and budgets, add to a budget, and correct costs. Without a subcommand, lists limits and budgets in use.

    \b
    Examples:
      overnight budget
      overnight budget --tenant acme --json
      overnight budget top-up tenant acme --per day --usd 10 --why "month end"
      overnight budget bounds

    `spent` is known cost. `bound` is the upper bound of calls of unknown cost; it counts against the limit too.
    """
    if context.invoked_subcommand is not None:
        return reject_early_options(context)
    use_zone(tz, json=json)
    if (limits or not json) and not job:
        _show_limits(tenant, all_tenants, json)
    if limits:
        return None

    async def work(ledger: Ledger, settings: Settings) -> None:

        tenant_id = tenants_of(tenant, all_tenants, settings)
        job_id = (await find_job(ledger, job, tenant_of(tenant, settings))).job_id if job else ""
        found = await list_budgets(
            ledger.store, _policy(settings), tenant_id=tenant_id, job_id=job_id, everything=everything, limit=limit
        )
        if json:
            print_json([line.public() for line in found])
        else:
            _show(found)

    return None if not job and not _has_ledger(json) else read(work)


def _show_limits(tenant: str | None, all_tenants: bool, json: bool) -> None:

    settings = Settings.from_environment()
    brain = load_settings_brain(settings)
    found = limits_in_force(brain, tenants_of(tenant, all_tenants, settings))
    if json:
        print_json(found)
    else:
        show_limits(found, brain, settings)


def _has_ledger(json: bool) -> bool:
    """Whether a ledger exists; prints a message where none does."""

    file = Settings.from_environment().ledger_file
    if file is None or file.exists():
        return True
    if json:
        say("[]")
    else:
        say(f"no spending yet: no ledger at {file}")
    return False


def _policy(settings: Settings) -> Policy:

    routing = load_settings_brain(settings).routing
    return Policy(routing.budgets, routing.rate_limits)


def _show(found: list[BudgetLine]) -> None:

    if not found:
        say("no spending yet in any current budget")
        return
    say("")
    rows: list[list[tuple[str, str]]] = []
    for line in found:
        owner = f"{line.scope} {line.name}"
        per = line.window or "total"
        if line.resets_at is not None:
            per += f" until {moment_text(line.resets_at)}"
        for name, each in line.measures.items():
            if each.allowed is None:
                continue
            used_up = "red" if each.left == 0 else ""
            texts = [_amount(name, value) for value in (each.allowed, each.spent, each.bound or 0, each.reserved)]
            texts.append(_amount(name, each.left or 0))
            tenant = "" if line.scope == "tenant" or line.tenant_id == "default" else f" of {line.tenant_id}"
            cells = [f"{owner}{tenant}", per, name.replace("_", " "), *texts]
            rows.append([(text, used_up if head == "left" else "") for head, text in zip(_HEADS, cells, strict=True)])
    print_rows(_HEADS, rows, frozenset({"limit", "spent", "bound", "reserved", "left"}))


def _amount(measure: str, value: int) -> str:

    return usd_text(value) if measure == "cost" else f"{value:,}"


def _added(name: str, amount: int) -> str:
    what = name.removeprefix("added_")
    return _amount("cost", amount) if what == "microusd" else f"{amount:,} {what.replace('_', ' ')}"


@program.command("top-up")
def top_up(
    scope: Annotated[str, typer.Argument(metavar="SCOPE", help="job, step, agent, session, tenant, workflow or key.")],
    name: Annotated[str, typer.Argument(metavar="ID", help="The job (see JOB), or the name as listed.")],
    usd: Annotated[str | None, typer.Option(metavar="USD", help="Dollars to add.")] = None,
    tokens: Amount = 0,
    calls: Annotated[int, typer.Option(min=0, max=MAX_AMOUNT, help="Model calls to add.", show_default=False)] = 0,
    tool_calls: Amount = 0,
    seconds: Annotated[
        int,
        typer.Option(
            min=0, max=MAX_AMOUNT, help="Seconds to add to the wall-clock limit of a job.", show_default=False
        ),
    ] = 0,
    per: Annotated[
        str | None, typer.Option(metavar="PERIOD", help="total, day or month (default: the period that has a limit).")
    ] = None,
    why: Why = "",
    by: By = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Add to a budget, on top of its limit. Jobs that wait for it resume automatically.

    \b
    Examples:
      overnight budget top-up job last --usd 0.50 --why "worth it"
      overnight budget top-up tenant acme --per day --usd 10 --by ann --why "month end"
      overnight budget top-up agent support-eu --tokens 200000 --why "long tickets"
    """

    check_note("--why", why)
    wanted = TopUp(
        tenant_id="",
        scope=scope,
        scope_id=name,
        actor=operator(by),
        why=why,
        microusd=dollars(usd),
        tokens=tokens,
        calls=calls,
        tool_calls=tool_calls,
        wall_clock_s=seconds,
    )
    line, woken = _commit(wanted, per, tenant)
    if json:
        print_json(line.public() | {"woken": woken})
        return
    added = ", ".join(_added(name, amount) for name, amount in wanted.amounts().items())
    say(f"Added {added} to {line.scope} {line.name} ({line.window or 'total'})")
    if woken:
        say(f"{woken[0]} resumes" if len(woken) == 1 else f"{len(woken)} waiting jobs resume")


def _commit(wanted: TopUp, per: str | None, tenant: str | None) -> tuple[BudgetLine, list[str]]:

    settings = Settings.from_environment()
    ledger, policy = open_ledger(settings), _policy(settings)

    async def work() -> tuple[BudgetLine, list[str]]:
        owner = _owner(wanted, tenant, settings)
        job = await find_job(ledger, wanted.scope_id, owner) if wanted.scope == "job" else None
        named = msgspec.structs.replace(wanted, tenant_id=owner)
        if job is not None:
            named = msgspec.structs.replace(wanted, tenant_id=job.tenant_id, scope_id=job.job_id)
        row, woken = await top_up_budget(ledger.store, resolve_top_up(policy, named, per, ledger.store.clock()))
        return line_of(policy, row, job, ledger.store.clock()), woken

    with ledger.store:
        return asyncio.run(work())


def _owner(wanted: TopUp, tenant: str | None, settings: Settings) -> str:
    """The tenant of the budget; for `budget top-up tenant NAME`, NAME. Raises WrongUsage where --tenant names another one."""

    owner = tenant_of(tenant, settings)
    if wanted.scope != "tenant" or wanted.scope_id == owner:
        return owner
    if tenant is not None:
        raise WrongUsage(f"tenant {wanted.scope_id[:60]} and --tenant {tenant[:60]}: these differ; name one tenant")
    return wanted.scope_id
