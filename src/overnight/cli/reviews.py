"""`overnight reviews`: list, show, decide, renew."""

import asyncio
from typing import Annotated

import typer

from overnight.jobs import Operations
from overnight.ledger import JobRow, Ledger
from overnight.process_environment import open_ledger
from overnight.reviews import (
    KINDS,
    PublicState,
    ReviewFilter,
    ReviewRow,
    find_reviews,
    list_reviews,
    public_review,
    public_state,
)
from overnight.settings import Settings
from overnight.story import needs_person

from . import review_answers
from .actor import operator
from .job_view import show_stuck
from .ledger_reader import read
from .lookup import find_job, find_review, tenant_of, tenants_of
from .options import AllTenants, By, Json, Tenant
from .output import print_json, say
from .review_answers import ReviewName
from .review_view import show_card, show_reviews
from .usage import WrongUsage, reject_early_options

program = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
for name, command in review_answers.COMMANDS.items():
    program.command(name)(command)
MAX_SHOWN = 1000

State = Annotated[str, typer.Option(help="pending, decided, expired or superseded.", metavar="STATE")]
Kind = Annotated[str, typer.Option(help=f"Only this kind: {', '.join(KINDS)}.", metavar="KIND")]
Everything = Annotated[bool, typer.Option("--all", help="Include decided, expired and superseded reviews.")]
InJob = Annotated[str, typer.Option("--job", help="Only reviews of this job.", metavar="JOB")]


@program.callback()
def _default(  # pyright: ignore[reportUnusedFunction]
    context: typer.Context,
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    everything: Everything = False,
    json: Json = False,
) -> None:
    """List, show, decide and renew reviews. Without a subcommand, lists pending reviews.

    \b
    Examples:
      overnight reviews
      overnight reviews show rev_01a1b2c3
      overnight reviews approve rev_01a1b2c3 --note "checked with finance"
      overnight reviews done rev_01a1b2c3 --provider-id MSG-17
      overnight reviews reject rev_01a1b2c3
    """
    if context.invoked_subcommand is not None:
        return reject_early_options(context)
    return list_pending(tenant, all_tenants, everything, json=json)


@program.command("list")
def list_pending(
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    everything: Everything = False,
    state: State = "",
    kind: Kind = "",
    job: InJob = "",
    json: Json = False,
) -> None:
    """List the pending reviews, oldest first: everything that waits for a person.

    \b
    Examples:
      overnight reviews list --kind approval
      overnight reviews list --state expired
      overnight reviews list --all --tenant acme --json
    """
    if state and state not in PublicState.__args__:
        raise WrongUsage(f"--state {state[:40]}: expected {', '.join(PublicState.__args__)}")
    if kind and kind not in KINDS:
        raise WrongUsage(f"--kind {kind[:40]}: expected {', '.join(KINDS)}")
    if everything and state:
        raise WrongUsage("--all and --state exclude each other")
    shown_state = "" if everything else state or "pending"

    async def work(ledger: Ledger, settings: Settings) -> None:
        tenant_id = tenants_of(tenant, all_tenants, settings)
        job_id = (await find_job(ledger, job, tenant_of(tenant, settings))).job_id if job else ""
        found = await _found(ledger, tenant_id, shown_state, kind, job_id)
        if json:
            print_json([public_review(review) for review in found])
            return
        stuck, others = await _parked(ledger, tenant_id)
        if shown_state != "pending" or kind or job:
            stuck, others = [], 0
        if not found and not stuck:
            say("No pending reviews." if shown_state == "pending" else "No reviews.")
        now = ledger.store.clock()
        show_reviews(found, now, settings)
        show_stuck(stuck, others, now, settings)
        if len(found) >= MAX_SHOWN:
            say(f"The first {MAX_SHOWN:,} are shown; --kind, --job and --json narrow the list.")

    read(work)


async def _found(ledger: Ledger, tenant_id: str, state: str, kind: str, job_id: str) -> list[ReviewRow]:
    if tenant_id:
        wanted = ReviewFilter(tenant_id=tenant_id, state=state, kind=kind, job_id=job_id, most=MAX_SHOWN)
        return await find_reviews(ledger.store, wanted)
    stored = "open" if state == "pending" else ""
    rows = await list_reviews(ledger.store, state=stored, job_id=job_id, most=MAX_SHOWN)
    return [row for row in rows if kind in {"", row.kind} and state in {"", public_state(row)}]


async def _parked(ledger: Ledger, tenant_id: str) -> tuple[list[JobRow], int]:
    """Parked jobs of a tenant ("": all) that wait for a person without a review, as earlier versions parked them.

    Also returns the number of other parked jobs.
    """

    stuck: list[JobRow] = []
    others, before = 0, ""
    while page := await ledger.jobs(state="parked", tenant_id=tenant_id, before=before, most=500):
        before = page[-1].job_id
        for job in page:
            for_person = [wait for wait in job.waits if needs_person(wait)]
            if any(wait.get("review_id") is None for wait in for_person):
                stuck.append(job)
            others += not for_person
    return stuck, others


@program.command()
def show(review: ReviewName, tenant: Tenant = None, json: Json = False) -> None:
    """Show one review: what, why, arguments, key, rule, expiry, and what each answer does.

    \b
    Example:
      overnight reviews show rev_01a1b2c3
    """

    async def work(ledger: Ledger, settings: Settings) -> None:
        found = await find_review(ledger, review, tenant_of(tenant, settings))
        if json:
            print_json(public_review(found))
        else:
            show_card(found, ledger.store.clock(), settings)

    read(work)


@program.command()
def renew(
    review: ReviewName,
    hours: Annotated[
        float | None,
        typer.Option(metavar="HOURS", min=0.001, max=8760, help="How long (default: as long as at first)."),
    ] = None,
    tenant: Tenant = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Ask again after nobody decided in time, or extend a pending review.

    \b
    Example:
      overnight reviews renew rev_01a1b2c3 --hours 24
    """
    extend_us = round(hours * 3_600_000_000) if hours is not None else None

    async def work(ledger: Ledger, settings: Settings) -> ReviewRow:
        found = await find_review(ledger, review, tenant_of(tenant, settings))
        return await Operations(ledger.store).renew(found.review_id, operator(by), extend_us)

    settings = Settings.from_environment()
    ledger = open_ledger(settings)
    with ledger.store:
        renewed = asyncio.run(work(ledger, settings))
    if json:
        print_json(public_review(renewed))
    else:
        say(f"{renewed.review_id} waits again, until {public_review(renewed)['expires_at']}")
