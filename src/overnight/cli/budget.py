"""What may be spent, and adding to it."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from . import bounds
from .jobs import Json, read
from .lookup import (
    AllTenants,
    Tenant,
    find_job,
    refuse_early_options,
    tenant_of,
    tenants_of,
)
from .output import say
from .reviews import LONGEST_NOTE, By, operator
from .time_zone import Tz, use_zone

if TYPE_CHECKING:
    from overnight.budgets import BudgetLine, Policy, TopUp
    from overnight.ledger import Ledger
    from overnight.settings import Settings

program = typer.Typer(invoke_without_command=True)
program.command("bounds")(bounds.list_them)
program.command("settle")(bounds.settle)
MOST = 1_000_000_000_000
Amount = Annotated[int, typer.Option(min=0, max=MOST, show_default=False)]
_HEADS = ("budget", "per", "measure", "limit", "spent", "bound", "reserved", "left")


@program.callback()
def _default(  # pyright: ignore[reportUnusedFunction]
    context: typer.Context,
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    job: Annotated[str, typer.Option(help="Only this job's.", metavar="JOB")] = "",
    limits: Annotated[bool, typer.Option("--limits", help="Only the limits, as routing.yaml sets them.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Those without a limit too.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many jobs.")] = 50,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """What may be spent and what is left of it. Without a further word: the limits, and the budgets that are in use.

    \b
    Examples:
      overnight budget
      overnight budget --tenant acme --json
      overnight budget top-up tenant acme --per day --usd 10 --why "month end"
      overnight budget bounds

    `spent` is known cost; `bound` is what calls of unknown cost may have cost at most, and counts against the limit too.
    """
    if context.invoked_subcommand is not None:
        return refuse_early_options(context)
    use_zone(tz, json=json)
    if (limits or not json) and not job:
        _show_limits(tenant, all_tenants, json)
    if limits:
        return None

    async def work(ledger: "Ledger", settings: "Settings") -> None:
        from overnight.budgets import list_budgets

        whose = tenants_of(tenant, all_tenants, settings)
        job_id = (await find_job(ledger, job, tenant_of(tenant, settings))).job_id if job else ""
        found = await list_budgets(
            ledger.store, _policy(settings), tenant_id=whose, job_id=job_id, everything=everything, most=limit
        )
        if json:
            from .output import print_json

            print_json([line.public() for line in found])
        else:
            _show(found)

    return None if not job and not _spends(json) else read(work)


def _show_limits(tenant: str | None, all_tenants: bool, json: bool) -> None:
    from overnight.app import load_settings_brain
    from overnight.settings import Settings

    from .limits_view import limits_in_force, show_limits

    settings = Settings.from_environment()
    brain = load_settings_brain(settings)
    found = limits_in_force(brain, tenants_of(tenant, all_tenants, settings))
    if json:
        from .output import print_json

        print_json(found)
    else:
        show_limits(found, brain, settings)


def _spends(json: bool) -> bool:
    """Whether there is a ledger, in which something can be spent; says so where there is none."""
    from overnight.settings import Settings

    file = Settings.from_environment().ledger_file
    if file is None or file.exists():
        return True
    if json:
        say("[]")
    else:
        say(f"nothing is spent yet: there is no ledger at {file}")
    return False


def _policy(settings: "Settings") -> "Policy":
    from overnight.app import load_settings_brain
    from overnight.budgets import Policy

    routing = load_settings_brain(settings).routing
    return Policy(routing.budgets, routing.rate_limits)


def _show(found: "list[BudgetLine]") -> None:
    from overnight.story import moment_text

    from .output import print_rows

    if not found:
        say("nothing is spent yet of any limit that is still running")
        return
    say("")
    rows: list[list[tuple[str, str]]] = []
    for line in found:
        whose = f"{line.scope} {line.name}"
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
            cells = [f"{whose}{tenant}", per, name.replace("_", " "), *texts]
            rows.append([(text, used_up if head == "left" else "") for head, text in zip(_HEADS, cells, strict=True)])
    print_rows(_HEADS, rows, frozenset({"limit", "spent", "bound", "reserved", "left"}))


def _amount(measure: str, value: int) -> str:
    from overnight.domain import usd_text

    return usd_text(value) if measure == "cost" else f"{value:,}"


def _added(name: str, amount: int) -> str:
    what = name.removeprefix("added_")
    return _amount("cost", amount) if what == "microusd" else f"{amount:,} {what.replace('_', ' ')}"


@program.command("top-up")
def top_up(
    scope: Annotated[str, typer.Argument(metavar="SCOPE", help="job, step, agent, session, tenant, workflow or key.")],
    name: Annotated[str, typer.Argument(metavar="ID", help="Whose: a job as elsewhere, else the name as listed.")],
    usd: Annotated[str | None, typer.Option(metavar="USD", help="Dollars to add.")] = None,
    tokens: Amount = 0,
    calls: Annotated[int, typer.Option(min=0, max=MOST, help="Model calls to add.", show_default=False)] = 0,
    tool_calls: Amount = 0,
    seconds: Annotated[int, typer.Option(min=0, max=MOST, help="To the time of a job.", show_default=False)] = 0,
    per: Annotated[
        str | None, typer.Option(metavar="PERIOD", help="total, day or month (default: the one that is limited).")
    ] = None,
    why: Annotated[str, typer.Option(help="Why; the story shows it.", metavar="TEXT")] = "",
    by: By = None,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Add to a budget, on top of whatever limit holds. The jobs that wait for it go on by themselves.

    \b
    Examples:
      overnight budget top-up job last --usd 0.50 --why "worth it"
      overnight budget top-up tenant acme --per day --usd 10 --by ann --why "month end"
      overnight budget top-up agent support-eu --tokens 200000 --why "long tickets"
    """
    from overnight.budgets import TopUp

    from .lookup import WrongUsage

    if len(why) > LONGEST_NOTE:
        raise WrongUsage(f"--why: {len(why):,} characters; the most is {LONGEST_NOTE:,}")
    wanted = TopUp("", scope, name, operator(by), why, dollars(usd), tokens, calls, tool_calls, seconds)
    line, woken = _commit(wanted, per, tenant)
    if json:
        from .output import print_json

        print_json(line.public() | {"woken": woken})
        return
    added = ", ".join(_added(name, amount) for name, amount in wanted.amounts().items())
    say(f"{line.scope} {line.name} ({line.window or 'total'}) has more now: {added}")
    say(f"{len(woken)} jobs that waited for it go on" if len(woken) != 1 else f"{woken[0]} goes on")


def _commit(wanted: "TopUp", per: str | None, tenant: str | None) -> "tuple[BudgetLine, list[str]]":
    import msgspec

    from overnight.app import open_ledger
    from overnight.budgets import addressed, line_of, top_up_budget
    from overnight.settings import Settings

    settings = Settings.from_environment()
    ledger, policy = open_ledger(settings), _policy(settings)

    async def work() -> "tuple[BudgetLine, list[str]]":
        owner = _owner(wanted, tenant, settings)
        job = await find_job(ledger, wanted.scope_id, owner) if wanted.scope == "job" else None
        named = msgspec.structs.replace(wanted, tenant_id=owner)
        if job is not None:
            named = msgspec.structs.replace(wanted, tenant_id=job.tenant_id, scope_id=job.job_id)
        row, woken = await top_up_budget(ledger.store, addressed(policy, named, per, ledger.store.clock()))
        return line_of(policy, row, job, ledger.store.clock()), woken

    with ledger.store:
        return asyncio.run(work())


def _owner(wanted: "TopUp", tenant: str | None, settings: "Settings") -> str:
    """The tenant whose budget is meant; of `budget top-up tenant NAME`, NAME itself. Raises WrongUsage where the two differ."""
    from .lookup import WrongUsage

    owner = tenant_of(tenant, settings)
    if wanted.scope != "tenant" or wanted.scope_id == owner:
        return owner
    if tenant is not None:
        raise WrongUsage(f"tenant {wanted.scope_id[:60]} and --tenant {tenant[:60]}: name one tenant")
    return wanted.scope_id


def dollars(usd: str | None) -> int:
    from decimal import Decimal, InvalidOperation

    from overnight.domain import usd_to_micro

    from .lookup import WrongUsage

    if usd is None:
        return 0
    try:
        found = Decimal(usd.removeprefix("$"))
    except InvalidOperation:
        found = Decimal(-1)
    if not found.is_finite() or not 0 <= found <= 1_000_000:
        raise WrongUsage(f"--usd {usd[:40]}: give dollars, such as 2.50, up to a million")
    return usd_to_micro(found)
