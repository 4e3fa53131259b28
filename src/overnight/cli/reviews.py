"""Work that waits for a person: list, approve, reject."""

import asyncio
import getpass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .jobs import Json, read
from .lookup import (
    AllTenants,
    Tenant,
    for_tenant,
    refuse_early_options,
    tenant_of,
    tenants_of,
)
from .output import say

if TYPE_CHECKING:
    from overnight.ledger import JobRow, Ledger
    from overnight.reviews import ReviewRow
    from overnight.settings import Settings

program = typer.Typer(invoke_without_command=True)

ReviewName = Annotated[str, typer.Argument(metavar="REVIEW", help="A review id or its beginning.")]
Note = Annotated[str | None, typer.Option(help="Why; the story shows it.", metavar="TEXT")]
By = Annotated[str | None, typer.Option(help="Who decides (default: the user of this system).", metavar="NAME")]
LONGEST_NOTE = 2000


def operator(by: str | None = None) -> str:
    """Who acts: the name given, or the user of this system."""
    from overnight.domain import check_identifier

    if by is not None:
        return check_identifier(by, "--by")
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "operator"


@program.callback()
def _default(  # pyright: ignore[reportUnusedFunction]
    context: typer.Context,
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    everything: Annotated[bool, typer.Option("--all", help="Decided ones too.")] = False,
    json: Json = False,
) -> None:
    """Work that waits for a person: list, approve, reject. Without a further word: the open reviews.

    \b
    Examples:
      overnight reviews
      overnight reviews approve rev_01a1b2c3 --note "checked with finance"
      overnight reviews approve rev_01a1b2c3 --done --provider-id MSG-17
      overnight reviews approve rev_01a1b2c3 --not-done
      overnight reviews reject rev_01a1b2c3
    """
    if context.invoked_subcommand is not None:
        return refuse_early_options(context)
    return list_open(tenant, all_tenants, everything, json)


@program.command("list")
def list_open(
    tenant: Tenant = None,
    all_tenants: AllTenants = False,
    everything: Annotated[bool, typer.Option("--all", help="Decided ones too.")] = False,
    json: Json = False,
) -> None:
    """List the open reviews, oldest first.

    \b
    Examples:
      overnight reviews list
      overnight reviews list --all --tenant acme --json
    """

    async def work(ledger: "Ledger", settings: "Settings") -> None:
        from overnight.reviews import list_reviews

        whose, state = tenants_of(tenant, all_tenants, settings), "" if everything else "open"
        found = await list_reviews(ledger.store, tenant_id=whose, state=state, most=1000)
        if json:
            from .output import print_json

            print_json([_public_review(review) for review in found])
        else:
            from .job_view import show_reviews, show_stuck

            stuck, others = await _parked(ledger, whose, {review.review_id for review in found})
            now = ledger.store.clock()
            if not found and not stuck:
                say("No open reviews: nothing waits for a person.")
            show_reviews(found, now, settings)
            show_stuck(stuck, others, now, settings)

    read(work)


async def _parked(ledger: "Ledger", tenant_id: str, shown: set[str]) -> tuple[list["JobRow"], int]:
    """Parked jobs of a tenant (empty: of all) that wait for a person and for none of the reviews `shown`, and how many wait for
    no person."""
    from overnight.story import needs_person

    stuck: list[JobRow] = []
    others, before = 0, ""
    while page := await ledger.jobs(state="parked", tenant_id=tenant_id, before=before, most=500):
        before = page[-1].job_id
        for job in page:
            asked = [wait for wait in job.waits if needs_person(wait)]
            if any(wait.get("review_id") not in shown for wait in asked):
                stuck.append(job)
            others += not asked
    return stuck, others


def _public_review(review: "ReviewRow") -> dict[str, Any]:
    import msgspec

    from overnight.domain import iso_utc

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
        typer.Option("--done/--not-done", help="For an effect: it was done, or it was not and is done again."),
    ] = None,
    provider_id: Annotated[
        str | None, typer.Option(help="With --done: the provider's own id of it.", metavar="ID")
    ] = None,
    result: Annotated[str | None, typer.Option(help="With --done: what the effect returns.", metavar="JSON")] = None,
    tenant: Tenant = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Approve a review; its job goes on.

    \b
    Examples:
      overnight reviews approve rev_01a1b2c3 --note "fine by me"
      overnight reviews approve rev_01a1b2c3 --done --provider-id MSG-17 --result '"MSG-17"'
      overnight reviews approve rev_01a1b2c3 --not-done
    """
    _decide(review, tenant, True, note, done, provider_id, result, by, json)


@program.command()
def reject(review: ReviewName, note: Note = None, tenant: Tenant = None, by: By = None, json: Json = False) -> None:
    """Reject a review: the approval is denied, or the effect counts as not done and fails.

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
    from overnight.app import open_ledger
    from overnight.jobs import Decision, Operations
    from overnight.settings import Settings

    from .lookup import WrongUsage, find_review

    if not done and (provider_id is not None or result is not None):
        raise WrongUsage("--provider-id and --result say how it was done: give --done with them")
    if note is not None and len(note) > LONGEST_NOTE:
        raise WrongUsage(f"--note: {len(note):,} characters; the most is {LONGEST_NOTE:,}")
    answer = _json_of(result)
    settings = Settings.from_environment()
    ledger = open_ledger(settings)

    async def work() -> "tuple[ReviewRow, str]":
        review = await find_review(ledger, name, tenant_of(tenant, settings))
        if review.kind != "quarantine" and done is not None:
            raise WrongUsage(
                f"{review.review_id} asks for an approval, not about an effect: leave --done and --not-done out"
            )
        decision = Decision(approved, operator(by), note, done, provider_id, answer, review.tenant_id)
        decided = await Operations(ledger.store).decide(review.review_id, decision)
        job = await ledger.job(review.job_id)
        if job.runtime == "foreign":
            return decided, "is run by a program of its own: start that again"
        here = for_tenant(f"overnight resume {job.job_id}", job.tenant_id, settings)
        return decided, f"goes on with the next free worker, or here: {here}"

    with ledger.store:
        decided, follows = asyncio.run(work())
    if json:
        from .output import print_json

        print_json(_public_review(decided))
        return
    say(f"{decided.review_id} {decided.state} by {decided.decided_by}")
    say(f"{decided.job_id} {follows}")


def _json_of(result: str | None) -> bytes | None:
    import msgspec

    from .lookup import WrongUsage

    if result is None:
        return None
    try:
        return msgspec.json.encode(msgspec.json.decode(result))
    except (msgspec.DecodeError, RecursionError) as error:
        raise WrongUsage(f"--result is not JSON: {error}. A text needs quotes of its own: '\"MSG-17\"'") from None
