"""`overnight reviews`: list, approve, reject."""

import asyncio
from typing import Annotated, Any

import msgspec
import typer

from overnight.domain import iso_utc
from overnight.jobs import Decision, Operations
from overnight.ledger import JobRow, Ledger
from overnight.process_environment import open_ledger
from overnight.reviews import ReviewRow, list_reviews
from overnight.settings import Settings
from overnight.story import needs_person

from .actor import operator
from .job_view import show_reviews, show_stuck
from .ledger_reader import read
from .lookup import find_review, for_tenant, tenant_of, tenants_of
from .options import AllTenants, By, Json, Tenant
from .output import print_json, say
from .usage import WrongUsage, check_note, reject_early_options

program = typer.Typer(invoke_without_command=True, rich_markup_mode=None)

ReviewName = Annotated[str, typer.Argument(metavar="REVIEW", help="A review id or its prefix.")]
Note = Annotated[str | None, typer.Option(help="The reason, which the timeline shows.", metavar="TEXT")]


@program.callback()
def _default(  # pyright: ignore[reportUnusedFunction]
    context: typer.Context,
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    everything: Annotated[bool, typer.Option("--all", help="Include decided reviews.")] = False,
    json: Json = False,
) -> None:
    """List, approve and reject reviews. Without a subcommand, lists open reviews.

    \b
    Examples:
      overnight reviews
      overnight reviews approve rev_01a1b2c3 --note "checked with finance"
      overnight reviews approve rev_01a1b2c3 --done --provider-id MSG-17
      overnight reviews approve rev_01a1b2c3 --not-done
      overnight reviews reject rev_01a1b2c3
    """
    if context.invoked_subcommand is not None:
        return reject_early_options(context)
    return list_open(tenant, all_tenants, everything, json)


@program.command("list")
def list_open(
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    everything: Annotated[bool, typer.Option("--all", help="Include decided reviews.")] = False,
    json: Json = False,
) -> None:
    """List the open reviews, oldest first.

    \b
    Examples:
      overnight reviews list
      overnight reviews list --all --tenant acme --json
    """

    async def work(ledger: Ledger, settings: Settings) -> None:

        tenant_id, state = tenants_of(tenant, all_tenants, settings), "" if everything else "open"
        found = await list_reviews(ledger.store, tenant_id=tenant_id, state=state, most=1000)
        if json:
            print_json([_public_review(review) for review in found])
        else:
            stuck, others = await _parked(ledger, tenant_id, {review.review_id for review in found})
            now = ledger.store.clock()
            if not found and not stuck:
                say("No open reviews.")
            show_reviews(found, now, settings)
            show_stuck(stuck, others, now, settings)

    read(work)


async def _parked(ledger: Ledger, tenant_id: str, shown: set[str]) -> tuple[list[JobRow], int]:
    """Parked jobs of a tenant ("": all) that wait for a person, without those that wait for a review in `shown`.

    Also returns the number of other parked jobs.
    """

    stuck: list[JobRow] = []
    others, before = 0, ""
    while page := await ledger.jobs(state="parked", tenant_id=tenant_id, before=before, most=500):
        before = page[-1].job_id
        for job in page:
            for_person = [wait for wait in job.waits if needs_person(wait)]
            if any(wait.get("review_id") not in shown for wait in for_person):
                stuck.append(job)
            others += not for_person
    return stuck, others


def _public_review(review: ReviewRow) -> dict[str, Any]:

    return {
        "review_id": review.review_id,
        "job_id": review.job_id,
        "tenant_id": review.tenant_id,
        "kind": review.kind,
        "state": review.state,
        "question": review.question,
        "detail": msgspec.json.decode(review.detail),
        "digest": review.digest,
        "requested_at": iso_utc(review.requested_at),
        "decided_at": iso_utc(review.decided_at) if review.decided_at else None,
        "decided_by": review.decided_by,
        "note": review.note,
    }


@program.command()
def approve(
    review: ReviewName,
    note: Note = None,
    done: Annotated[
        bool | None,
        typer.Option("--done/--not-done", help="For an effect: it was done; or it was not done and may be repeated."),
    ] = None,
    provider_id: Annotated[
        str | None, typer.Option(help="With --done: the provider's id of the effect.", metavar="ID")
    ] = None,
    result: Annotated[
        str | None, typer.Option(help="With --done: the return value of the effect.", metavar="JSON")
    ] = None,
    tenant: Tenant = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Approve a review. Its job resumes.

    \b
    Examples:
      overnight reviews approve rev_01a1b2c3 --note "fine by me"
      overnight reviews approve rev_01a1b2c3 --done --provider-id MSG-17 --result '"MSG-17"'
      overnight reviews approve rev_01a1b2c3 --not-done
    """
    _decide(review, tenant, True, note, done, provider_id, result, by, json)


@program.command()
def reject(review: ReviewName, note: Note = None, tenant: Tenant = None, by: By = None, json: Json = False) -> None:
    """Reject a review. The approval is denied, or the effect fails as not done.

    \b
    Example:
      overnight reviews reject rev_01a1b2c3 --note "wrong customer"
    """
    _decide(review, tenant, False, note, None, None, None, by, json)


def _decide(
    name: str,
    tenant: str | None,
    approved: bool,
    note: str | None,
    done: bool | None,
    provider_id: str | None,
    result: str | None,
    by: str | None,
    json: bool,
) -> None:

    if not done and (provider_id is not None or result is not None):
        raise WrongUsage("--provider-id and --result require --done")
    check_note("--note", note or "")
    answer = _json_of(result)
    settings = Settings.from_environment()
    ledger = open_ledger(settings)

    async def work() -> tuple[ReviewRow, str]:
        review = await find_review(ledger, name, tenant_of(tenant, settings))
        if review.kind != "quarantine" and done is not None:
            raise WrongUsage(
                f"{review.review_id} is an approval, not a question about an effect: omit --done and --not-done"
            )
        decision = Decision(
            approved=approved,
            by=operator(by),
            note=note,
            done=done,
            provider_id=provider_id,
            result=answer,
            tenant_id=review.tenant_id,
        )
        decided = await Operations(ledger.store).decide(review.review_id, decision)
        job = await ledger.job(review.job_id)
        if job.runtime == "foreign":
            return decided, "belongs to an external program; start that program again"
        here = for_tenant(f"overnight resume {job.job_id}", job.tenant_id, settings)
        return decided, f"resumes on the next free worker, or here: {here}"

    with ledger.store:
        decided, follows = asyncio.run(work())
    if json:
        print_json(_public_review(decided))
        return
    say(f"{decided.review_id} {decided.state} by {decided.decided_by}")
    say(f"{decided.job_id} {follows}")


def _json_of(result: str | None) -> bytes | None:

    if result is None:
        return None
    try:
        return msgspec.json.encode(msgspec.json.decode(result))
    except (msgspec.DecodeError, RecursionError) as error:
        raise WrongUsage(f"--result is not JSON: {error}. Quote a string twice: '\"MSG-17\"'") from None
