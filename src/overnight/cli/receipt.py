"""`overnight receipt`: what jobs did to the world, and how Overnight knows it."""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from overnight.domain import NotFound
from overnight.ledger import JobRow, Ledger
from overnight.reports import (
    EffectEntry,
    Receipt,
    Verification,
    load_day,
    load_effects_of_key,
    load_receipt,
    public_day,
    public_entry,
    public_receipt,
    sum_counts,
)
from overnight.settings import Settings
from overnight.story import verification_lines

from .ledger_reader import read
from .lookup import find_job, for_tenant, tenant_of
from .options import Json, Tenant, Tz
from .output import console, print_json, say
from .receipt_view import show_effects, show_line, show_receipt
from .time_zone import use_zone
from .usage import WrongUsage

_Found = Mapping[str, Verification]


def receipt(
    job: Annotated[
        str | None,
        typer.Argument(metavar="JOB", help="A job id or its prefix, an external id, or `last`.", show_default=False),
    ] = None,
    agent: Annotated[str, typer.Option(metavar="AGENT", help="With --day: all jobs of this agent on that day.")] = "",
    day: Annotated[
        str, typer.Option(metavar="DAY", help="The day of --agent in UTC: 2026-01-31, today, yesterday.")
    ] = "",
    key: Annotated[str, typer.Option(metavar="KEY", help="The effects with this idempotency key.")] = "",
    verify: Annotated[
        bool, typer.Option("--verify", help="Ask the status checks of unknown effects again; nothing is changed.")
    ] = False,
    tenant: Tenant = None,
    tz: Tz = None,
    json: Json = False,
) -> None:
    """Show the receipt of a job: each effect, its state, and how Overnight knows it.

    An effect is `executed` by Overnight, `confirmed` by a status check, a webhook or a person, or only `reported` by the program.
    With --verify, the code of the job is imported from the current folder.

    \b
    Examples:
      overnight receipt last
      overnight receipt --agent support --day yesterday
      overnight receipt --key order-4711 --json
      overnight receipt nightly-2026-01-31 --verify
    """
    if sum((job is not None, bool(agent or day), bool(key))) != 1 or bool(agent) != bool(day):
        raise WrongUsage("name one JOB, or --agent and --day, or --key")
    use_zone(tz, json=json)
    span = _span_of(day) if day else None

    async def work(ledger: Ledger, settings: Settings) -> None:
        tenant_id, now = tenant_of(tenant, settings), ledger.store.clock()
        if key:
            entries = await load_effects_of_key(ledger, tenant_id, key)
            if not entries:
                raise NotFound(f"no effect of tenant {tenant_id} has the idempotency key {key[:200]}")
            _show_effects(entries, await _verified(verify, entries, now), now, json)
        elif span is not None:
            receipts, has_more = await load_day(ledger, tenant_id, agent, span)
            found = await _verified(verify, [each for one in receipts for each in one.effects], now)
            _show_day(agent, day, receipts, has_more, found, now, json)
        else:
            loaded: JobRow = await find_job(ledger, job or "", tenant_id)
            made = await load_receipt(ledger, loaded)
            found = await _verified(verify, made.effects, now)
            if json:
                print_json(_with(public_receipt(made, with_content=True), found))
                return
            show_receipt(made, now, with_content=True)
            for line in verification_lines(made.effects, found):
                show_line(line)
            say(for_tenant(f"overnight explain {made.job_id}", tenant_id, settings))

    read(work)


async def _verified(wanted: bool, entries: Sequence[EffectEntry], now_us: int) -> _Found:
    if not wanted:
        return {}
    # Only this option needs the code of jobs.
    from overnight.jobs import add_folder
    from overnight.reports.verification import verify_entries

    add_folder(os.getcwd())
    return await verify_entries(entries, now_us)


def _with(shown: dict[str, Any], found: _Found) -> dict[str, Any]:
    """A public receipt with what the status checks say now."""
    for entry in shown["effects"]:
        if (each := found.get(entry["effect_id"])) is not None:
            entry["verified"] = {"outcome": each.outcome, "provider_id": each.provider_id, "why": each.why or None}
    return shown


def _show_effects(entries: Sequence[EffectEntry], found: _Found, now_us: int, json: bool) -> None:
    if json:
        print_json(_with({"effects": [public_entry(each, with_content=True) for each in entries]}, found))
        return
    show_effects(entries, now_us)
    for line in verification_lines(entries, found):
        show_line(line)


def _show_day(
    agent: str, day: str, receipts: list[Receipt], has_more: bool, found: _Found, now_us: int, json: bool
) -> None:
    if json:
        shown = public_day(agent, day, receipts, has_more, with_content=True)
        print_json(shown | {"receipts": [_with(each, found) for each in shown["receipts"]]})
        return
    idle = [each for each in receipts if each.none and not (each.unexecuted or each.claims or each.reviews)]
    for made in receipts:
        if made not in idle:
            show_receipt(made, now_us, with_content=True)
            for line in verification_lines(made.effects, found):
                show_line(line)
            console().print()
    counts = ", ".join(f"{number:,} {state}" for state, number in sorted(sum_counts(receipts).items()))
    say(f"{agent} {day}: {len(receipts):,} jobs, {len(idle):,} without any effect; effects: {counts or 'none'}")
    if has_more:
        say("Only the first 1,000 jobs of the day are shown.")


def _span_of(day: str) -> tuple[int, int]:
    """A day in UTC as a span of microseconds. Raises WrongUsage."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    named = {"today": today, "yesterday": today - timedelta(days=1)}
    try:
        begin = named.get(day) or datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise WrongUsage(f"--day {day[:40]}: expected a day such as 2026-01-31, today or yesterday") from None
    return int(begin.timestamp() * 1_000_000), int((begin + timedelta(days=1)).timestamp() * 1_000_000)
