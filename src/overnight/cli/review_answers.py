"""The answers of `overnight reviews`: one command for each of the usual ones, and `decide` for the others."""

import asyncio
from typing import Annotated

import msgspec
import typer

from overnight.jobs import Decision, Operations
from overnight.ledger import JobRow
from overnight.process_environment import load_settings_brain, open_ledger
from overnight.reviews import VERBS, Amounts, ReviewRow, public_review
from overnight.settings import Settings
from overnight.tools import policy_of

from .actor import operator
from .amounts import dollars
from .lookup import find_review, for_tenant, tenant_of
from .options import By, Json, Tenant
from .output import print_json, say
from .usage import WrongUsage, check_note

MAX_AMOUNT = 1_000_000_000_000

ReviewName = Annotated[str, typer.Argument(metavar="REVIEW", help="A review id or its prefix.")]
Note = Annotated[str | None, typer.Option(help="The reason, which the timeline shows.", metavar="TEXT")]
Digest = Annotated[
    str | None,
    typer.Option(help="The digest of the card that you read; with another one, nothing is decided.", metavar="DIGEST"),
]
Amount = Annotated[int, typer.Option(min=0, max=MAX_AMOUNT, show_default=False)]
ProviderId = Annotated[str | None, typer.Option(help="The provider's id of the effect.", metavar="ID")]
Result = Annotated[str | None, typer.Option(help="The return value of the effect.", metavar="JSON")]


def approve(
    review: ReviewName,
    note: Note = None,
    done: Annotated[
        bool | None,
        typer.Option("--done/--not-done", help="For an unknown effect: as `done` or `not-done`.", show_default=False),
    ] = None,
    provider_id: ProviderId = None,
    result: Result = None,
    digest: Digest = None,
    tenant: Tenant = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Approve a review. Its job continues. For a loop, a budget or code: continue, or run the job again.

    \b
    Examples:
      overnight reviews approve rev_01a1b2c3 --note "fine by me"
      overnight reviews approve rev_01a1b2c3 --done --provider-id MSG-17 --result '"MSG-17"'
      overnight reviews approve rev_01a1b2c3 --not-done
    """
    if not done and (provider_id is not None or result is not None):
        raise WrongUsage("--provider-id and --result require --done")
    answer = "approve" if done is None else "done" if done else "not_done"
    given = Decision(answer, "", note, provider_id=provider_id, result=_json_of("--result", result), digest=digest)
    _decide(review, given, tenant, by, json)


def edit(
    review: ReviewName,
    arguments: Annotated[str, typer.Option(help="All arguments of the effect.", metavar="JSON")],
    note: Note = None,
    digest: Digest = None,
    tenant: Tenant = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Approve an effect with other arguments. Its schema and the rules are checked again.

    \b
    Example:
      overnight reviews edit rev_01a1b2c3 --arguments '{"payment": "pay_7", "usd": 40}'
    """
    _decide(
        review,
        Decision("edit", "", note, arguments=_json_of("--arguments", arguments), digest=digest),
        tenant,
        by,
        json,
    )


def reject(
    review: ReviewName,
    note: Note = None,
    digest: Digest = None,
    tenant: Tenant = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Reject a review. The approval is denied, or the effect fails as not done; the agent reads the note as the reason.

    \b
    Example:
      overnight reviews reject rev_01a1b2c3 --note "wrong customer"
    """
    _decide(review, Decision("reject", "", note, digest=digest), tenant, by, json)


def answer(
    review: ReviewName,
    text: Annotated[str, typer.Option(help="The result that the agent receives.", metavar="TEXT")],
    note: Note = None,
    digest: Digest = None,
    tenant: Tenant = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Answer by hand: the agent receives your text as the result, and the effect is not executed.

    \b
    Example:
      overnight reviews answer rev_01a1b2c3 --text "Use the blue template."
    """
    _decide(review, Decision("answer", "", note, text=text, digest=digest), tenant, by, json)


def done(
    review: ReviewName,
    provider_id: ProviderId = None,
    result: Result = None,
    note: Note = None,
    digest: Digest = None,
    tenant: Tenant = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Record that an effect with unknown outcome was done.

    \b
    Example:
      overnight reviews done rev_01a1b2c3 --provider-id MSG-17 --result '"MSG-17"'
    """
    body = _json_of("--result", result)
    given = Decision("done", "", note, provider_id=provider_id, result=body, digest=digest)
    _decide(review, given, tenant, by, json)


def not_done(
    review: ReviewName,
    note: Note = None,
    digest: Digest = None,
    tenant: Tenant = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Record that an effect with unknown outcome was not done. It may be executed again.

    \b
    Example:
      overnight reviews not-done rev_01a1b2c3 --note "their log has no such order"
    """
    _decide(review, Decision("not_done", "", note, digest=digest), tenant, by, json)


def continue_(
    review: ReviewName,
    usd: Annotated[str | None, typer.Option(metavar="USD", help="Dollars to add to the budget.")] = None,
    tokens: Amount = 0,
    calls: Amount = 0,
    tool_calls: Amount = 0,
    seconds: Amount = 0,
    note: Note = None,
    digest: Digest = None,
    tenant: Tenant = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Continue a job that a budget or the loop guard has stopped. Amounts are added to the budget before.

    \b
    Examples:
      overnight reviews continue rev_01a1b2c3 --usd 5
      overnight reviews continue rev_01a1b2c3
    """
    amounts = Amounts(microusd=dollars(usd), tokens=tokens, calls=calls, tool_calls=tool_calls, seconds=seconds)
    given = Decision("continue", "", note, amounts=amounts if amounts != Amounts() else None, digest=digest)
    _decide(review, given, tenant, by, json)


def decide(
    review: ReviewName,
    answer: Annotated[str, typer.Argument(metavar="ANSWER", help="An answer that `overnight reviews show` lists.")],
    note: Note = None,
    digest: Digest = None,
    tenant: Tenant = None,
    by: By = None,
    json: Json = False,
) -> None:
    """Give any answer that needs no value, such as retry, cancel, stop, accept, ack, good or bad.

    \b
    Example:
      overnight reviews decide rev_01a1b2c3 retry
    """
    if answer.replace("-", "_") not in VERBS:
        raise WrongUsage(f"ANSWER {answer[:40]}: expected one of {', '.join(VERBS)}")
    _decide(review, Decision(answer.replace("-", "_"), "", note, digest=digest), tenant, by, json)


def _decide(name: str, decision: Decision, tenant: str | None, by: str | None, json: bool) -> None:
    check_note("--note", decision.note or "")
    settings = Settings.from_environment()
    ledger = open_ledger(settings)

    async def work() -> tuple[ReviewRow, str]:
        review = await find_review(ledger, name, tenant_of(tenant, settings))
        if review.kind != "quarantine" and decision.answer in {"done", "not_done"}:
            raise WrongUsage(
                f"{review.review_id} is of kind {review.kind}, not about the outcome of an effect: omit --done, --not-done"
            )
        given = msgspec.structs.replace(decision, by=operator(by), tenant_id=review.tenant_id)
        operations = Operations(ledger.store, lambda: policy_of(load_settings_brain(settings).tools))
        decided = await operations.decide(review.review_id, given)
        return decided, _what_follows(await ledger.job(review.job_id), settings)

    with ledger.store:
        decided, follows = asyncio.run(work())
    if json:
        print_json(public_review(decided))
        return
    verb: str = public_review(decided)["answer"]
    say(f"{decided.review_id} {_PAST.get(verb, f'answered {verb}')} by {decided.decided_by}")
    say(f"{decided.job_id} {follows}")


def _what_follows(job: JobRow, settings: Settings) -> str:
    if job.state in {"succeeded", "failed", "cancelled"}:
        return f"has ended: {job.state}"
    if job.runtime == "foreign":
        return "belongs to an external program; start that program again"
    here = for_tenant(f"overnight resume {job.job_id}", job.tenant_id, settings)
    return f"resumes on the next free worker, or here: {here}"


def _json_of(option: str, text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return msgspec.json.encode(msgspec.json.decode(text))
    except (msgspec.DecodeError, RecursionError) as error:
        raise WrongUsage(f"{option} is not JSON: {error}. Quote a string twice: '\"MSG-17\"'") from None


_PAST = {
    "approve": "approved",
    "edit": "approved with edited arguments",
    "reject": "rejected",
    "answer": "answered",
    "done": "recorded as done",
    "not_done": "recorded as not done",
    "continue": "continued",
    "stop": "stopped",
}
COMMANDS = {
    "approve": approve,
    "edit": edit,
    "reject": reject,
    "answer": answer,
    "done": done,
    "not-done": not_done,
    "continue": continue_,
    "decide": decide,
}
"""By their names on the command line."""
