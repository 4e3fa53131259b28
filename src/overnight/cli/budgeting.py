"""What may be spent, and adding to it."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from .reading import Json, read
from .reviewing import LONGEST_NOTE, By, operator

if TYPE_CHECKING:
    from overnight.budgets import BudgetLine, Policy, TopUp
    from overnight.ledger import Ledger
    from overnight.settings import Settings

program = typer.Typer(invoke_without_command=True)
MOST = 1_000_000_000_000
Amount = Annotated[int, typer.Option(min=0, max=MOST, show_default=False)]
Tenant = Annotated[str | None, typer.Option(metavar="TENANT", help="Whose it is (default: OVERNIGHT_TENANT).")]
_HEADS = ("budget", "per", "measure", "limit", "spent", "reserved", "left")


@program.callback()
def _default(  # pyright: ignore[reportUnusedFunction]
    context: typer.Context,
    tenant: Annotated[str, typer.Option(help="Only this tenant's (default: all).", metavar="TENANT")] = "",
    job: Annotated[str, typer.Option(help="Only this job's.", metavar="JOB")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Those without a limit too.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many jobs.")] = 50,
    json: Json = False,
) -> None:
    """What may be spent and what is left of it. Without a further word: the budgets in force.

    \b
    Examples:
      overnight budget
      overnight budget --tenant acme --json
      overnight budget top-up tenant acme --per day --usd 10 --why "month end"
    """
    if context.invoked_subcommand is not None:
        return

    async def work(ledger: "Ledger", settings: "Settings") -> None:
        from overnight.budgets import list_budgets

        from .finding import find_job

        job_id = (await find_job(ledger, job, settings.tenant_id)).job_id if job else ""
        found = await list_budgets(
            ledger.store, _policy(settings), tenant_id=tenant, job_id=job_id, everything=everything, most=limit
        )
        if json:
            from .printing import print_json

            print_json([line.public() for line in found])
        else:
            _show(found)

    read(work)


def _policy(settings: "Settings") -> "Policy":
    from overnight.app import load_settings_brain
    from overnight.budgets import Policy

    routing = load_settings_brain(settings).routing
    return Policy(routing.budgets, routing.rate_limits)


def _show(found: "list[BudgetLine]") -> None:
    from overnight.domain import iso_utc

    from .printing import print_rows

    if not found:
        typer.echo("no budget has a limit in force; routing.yaml sets them under budgets")
        return
    rows: list[list[tuple[str, str]]] = []
    for line in found:
        whose = f"{line.scope} {line.name}"
        per = line.window or "total"
        if line.resets_at is not None:
            per += f" until {iso_utc(line.resets_at)[:16]}Z"
        for name, each in line.measures.items():
            if each.allowed is None:
                continue
            used_up = "red" if each.left == 0 else ""
            texts = [_amount(name, value) for value in (each.allowed, each.spent, each.reserved, each.left or 0)]
            tenant = "" if line.scope == "tenant" or line.tenant_id == "default" else f" of {line.tenant_id}"
            cells = [f"{whose}{tenant}", per, name.replace("_", " "), *texts]
            rows.append([(text, used_up if head == "left" else "") for head, text in zip(_HEADS, cells, strict=True)])
    print_rows(_HEADS, rows, frozenset({"limit", "spent", "reserved", "left"}))


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

    from .finding import WrongUsage

    if len(why) > LONGEST_NOTE:
        raise WrongUsage(f"--why: {len(why):,} characters; the most is {LONGEST_NOTE:,}")
    wanted = TopUp("", scope, name, operator(by), why, _micro(usd), tokens, calls, tool_calls, seconds)
    line, woken = _commit(wanted, per, tenant)
    if json:
        from .printing import print_json

        print_json(line.public() | {"woken": woken})
        return
    added = ", ".join(_added(name, amount) for name, amount in wanted.amounts().items())
    typer.echo(f"{line.scope} {line.name} ({line.window or 'total'}) has more now: {added}")
    typer.echo(f"{len(woken)} jobs that waited for it go on" if len(woken) != 1 else f"{woken[0]} goes on")


def _commit(wanted: "TopUp", per: str | None, tenant: str | None) -> "tuple[BudgetLine, list[str]]":
    import msgspec

    from overnight.app import open_ledger
    from overnight.budgets import addressed, line_of, top_up_budget
    from overnight.domain import check_identifier
    from overnight.settings import Settings

    from .finding import find_job

    settings = Settings.from_environment()
    ledger, policy = open_ledger(settings), _policy(settings)

    async def work() -> "tuple[BudgetLine, list[str]]":
        job = await find_job(ledger, wanted.scope_id, settings.tenant_id) if wanted.scope == "job" else None
        owner = check_identifier(tenant, "--tenant") if tenant is not None else settings.tenant_id
        if wanted.scope == "tenant":
            owner = wanted.scope_id
        named = msgspec.structs.replace(wanted, tenant_id=owner)
        if job is not None:
            named = msgspec.structs.replace(wanted, tenant_id=job.tenant_id, scope_id=job.job_id)
        row, woken = await top_up_budget(ledger.store, addressed(policy, named, per, ledger.store.clock()))
        return line_of(policy, row, job, ledger.store.clock()), woken

    with ledger.store:
        return asyncio.run(work())


def _micro(usd: str | None) -> int:
    from decimal import Decimal, InvalidOperation

    from overnight.domain import usd_to_micro

    from .finding import WrongUsage

    if usd is None:
        return 0
    try:
        found = Decimal(usd.removeprefix("$"))
    except InvalidOperation:
        found = Decimal(-1)
    if not found.is_finite() or not 0 <= found <= 1_000_000:
        raise WrongUsage(f"--usd {usd[:40]}: give dollars, such as 2.50, up to a million")
    return usd_to_micro(found)
