"""`overnight cache`: hits and savings of the response caches."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from overnight.domain import day_of
from overnight.gateway import CacheUsage, cache_usage
from overnight.ledger import Ledger
from overnight.settings import Settings
from overnight.story import clean, cost_text

from .ledger_reader import read
from .lookup import tenants_of
from .options import AllTenants, Json, Tenant
from .output import console, print_json, print_rows

DAY_US = 86_400_000_000
SHADOW = "Shadow mode serves no responses: hits and savings are those that the semantic cache would have had."


def cache(
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    days: Annotated[int, typer.Option(min=1, max=3660, help="The number of days, including today.")] = 30,
    json: Json = False,
) -> None:
    """Show cache hits and savings of each agent. In shadow mode, also show the agreement with the model.

    \b
    Examples:
      overnight cache
      overnight cache --tenant acme --days 7
      overnight cache --json | jq '.[] | select(.kind == "shadow") | {agent_id, agreement_rate, saved_usd}'
    """

    async def work(ledger: Ledger, settings: Settings) -> None:

        now = ledger.store.clock()
        tenant_id = tenants_of(tenant, all_tenants, settings)
        found = await cache_usage(ledger.store, tenant_id, day_of(now - (days - 1) * DAY_US), day_of(now))
        if json:
            print_json([_public(each) for each in found])
        else:
            _show(found, days)

    read(work)


def _public(used: CacheUsage) -> dict[str, Any]:
    return {
        "tenant_id": used.tenant_id,
        "agent_id": used.agent_id or None,
        "kind": used.kind,
        "asked": used.asked,
        "hits": used.hits,
        "hit_rate": used.hit_rate,
        "same": used.same if used.kind == "shadow" else None,
        "agreement_rate": used.agreement_rate,
        "mean_overlap": used.mean_overlap,
        "saved_usd": used.saved_microusd / 1_000_000,
        "embeddings_usd": used.spent_microusd / 1_000_000,
    }


def _show(found: Sequence[CacheUsage], days: int) -> None:

    if not found:
        console().print(f"No cache lookups in {days} days. Enable caches in the section `cache` of routing.yaml.")
        return
    several = len({each.tenant_id for each in found}) > 1
    heads = ["agent", "cache", "lookups", "hits", "hit rate", "agreement", "overlap", "saved", "embeddings"]
    rows = [
        [
            (clean(each.agent_id or "(none)", 40), ""),
            (each.kind.replace("_", " "), "dim" if each.kind == "shadow" else ""),
            (f"{each.asked:,}", ""),
            (f"{each.hits:,}", ""),
            (_percent(each.hit_rate), ""),
            (_percent(each.agreement_rate), ""),
            (_percent(each.mean_overlap), ""),
            (cost_text(each.saved_microusd), ""),
            (cost_text(each.spent_microusd) if each.spent_microusd else "", ""),
        ]
        for each in found
    ]
    if several:
        heads.insert(0, "tenant")
        rows = [[(clean(each.tenant_id, 40), ""), *row] for each, row in zip(found, rows, strict=True)]
    print_rows(heads, rows, frozenset(heads[-7:]))
    if any(each.kind == "shadow" for each in found):
        console().print(SHADOW, style="dim")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
