"""`overnight audit`: changes of keys, budgets, circuits and the brain; effects."""

from typing import Annotated, Any

import typer

from overnight.ledger import AuditEntry, Ledger, list_audit
from overnight.reports import AuditFilter, audit_effects
from overnight.settings import Settings
from overnight.story import clean, moment_text

from .keys_view import value_text
from .ledger_reader import read
from .lookup import find_job, tenants_of
from .options import AllTenants, Json, Tenant, Tz
from .output import json_text, print_json, print_rows, say
from .receipt_view import show_audited
from .since import since_us_of
from .time_zone import use_zone
from .usage import reject_early_options

HEADS = ("time", "actor", "action", "subject", "changes")


program = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@program.callback()
def audit(
    context: typer.Context,
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="Only changes since 7d or 12h ago, or since 2026-01-31 or 2026-01-31T02:00 (UTC)."
        ),
    ] = "",
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, max=1000, help="The maximum number of entries.")
    ] = 50,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """List changes of keys, budgets, circuits and the brain. The newest come first. `audit effects` lists effects.

    Without --tenant, changes of the whole instance, such as those of the brain, are listed too.

    \b
    Examples:
      overnight audit --since 7d
      overnight audit --tenant acme --json | jq '.[] | select(.action == "budget.topped_up")'
      overnight audit effects --tool refund --since 30d --json
    """
    if context.invoked_subcommand is not None:
        return reject_early_options(context)
    use_zone(tz, json=json)

    async def work(ledger: Ledger, settings: Settings) -> None:
        begin = since_us_of(since, ledger.store.clock())
        tenants = tenants_of(tenant, all_tenants, settings)
        found = await list_audit(ledger.store, tenants, begin, limit, instance=tenant is None)
        if json:
            print_json([entry.public() for entry in found])
        elif not found:
            say("No changes of keys, budgets, circuits or the brain.")
        else:
            print_rows(HEADS, [[(text, "") for text in _row(entry)] for entry in found], frozenset())

    return read(work)


@program.command("effects")
def effects(
    tool: Annotated[str, typer.Option(metavar="TOOL", help="Only effects of this tool.")] = "",
    about: Annotated[str, typer.Option(metavar="RECORD", help="Only effects about this record.")] = "",
    person: Annotated[str, typer.Option("--by", metavar="NAME", help="Only effects that this person decided.")] = "",
    agent: Annotated[str, typer.Option(metavar="AGENT", help="Only effects of this agent.")] = "",
    job: Annotated[str, typer.Option(metavar="JOB", help="Only effects of this job.")] = "",
    state: Annotated[str, typer.Option(metavar="STATE", help="Only effects in this state, such as unknown.")] = "",
    since: Annotated[
        str, typer.Option(metavar="TIME", help="Only effects since 7d or 12h ago, or since 2026-01-31T02:00 (UTC).")
    ] = "",
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    tz: Tz = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line, with stable public names.")
    ] = False,
) -> None:
    """List effects, oldest first: what was done, how it is known, and who decided. Arguments are not shown.

    \b
    Examples:
      overnight audit effects --tool refund --since 30d --json
      overnight audit effects --about order-4711
      overnight audit effects --by mia --all-tenants
    """
    use_zone(tz, json=json)

    async def work(ledger: Ledger, settings: Settings) -> None:
        tenant_id = tenants_of(tenant, all_tenants, settings)
        job_id = (await find_job(ledger, job, tenant_id)).job_id if job else ""
        now = ledger.store.clock()
        wanted = AuditFilter(
            tenant_id=tenant_id,
            tool=tool,
            about=about,
            person=person,
            agent_id=agent,
            job_id=job_id,
            state=state,
            since=since_us_of(since, now),
        )
        found = False
        async for effect in audit_effects(ledger, wanted):
            found = True
            if json:
                say(json_text(effect.public()))
            else:
                show_audited(effect, now)
        if not found and not json:
            say("No effects.")

    read(work)


def _row(entry: AuditEntry) -> tuple[str, ...]:
    shown = entry.public()
    before: dict[str, Any] = shown["before"]
    after: dict[str, Any] = shown["after"]
    names = [name for name in {**before, **after} if before.get(name) or after.get(name)]
    changes = ", ".join(f"{name} {_text(before.get(name))} → {_text(after.get(name))}" for name in names)
    who = f"{entry.actor} ({entry.key_id})" if entry.key_id else entry.actor
    return moment_text(entry.at), who, entry.action, clean(entry.subject, 80), clean(changes, 300)


def _text(value: Any) -> str:
    return str(value) if isinstance(value, (int, float)) else value_text(value) or "-"
