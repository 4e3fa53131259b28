"""`overnight audit`: changes of keys, budgets, circuits and the brain."""

from typing import Annotated, Any

import typer

from overnight.ledger import AuditEntry, Ledger, list_audit
from overnight.settings import Settings
from overnight.story import clean, moment_text

from .keys_view import value_text
from .ledger_reader import read
from .lookup import tenants_of
from .options import AllTenants, Json, Tenant, Tz
from .output import print_json, print_rows, say
from .since import since_us_of
from .time_zone import use_zone

HEADS = ("time", "actor", "action", "subject", "changes")


def audit(
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
    """List changes of keys, budgets, circuits and the brain. The newest come first.

    Without --tenant, changes of the whole instance, such as those of the brain, are listed too.

    \b
    Examples:
      overnight audit --since 7d
      overnight audit --tenant acme --json | jq '.[] | select(.action == "budget.topped_up")'
    """
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
