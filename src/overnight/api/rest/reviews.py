"""`/api/v1/reviews`: what waits for people, and their decisions.

All are limited to the tenant of the request, and the agent and workflow of its key. Other reviews are reported as not found.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query
from pydantic import Field

from overnight.budgets import Limit, TopUp, operator_limit
from overnight.domain import BadInput, Forbidden, NotFound, check_identifier, usd_to_micro
from overnight.gateway import parse_job_name
from overnight.jobs import Decision
from overnight.ledger import JobRow
from overnight.reviews import KINDS, VERBS, Amounts, ReviewFilter, ReviewRow, find_reviews, public_review

from ..content import reads_content
from .budgets import MAX_USD, Amount
from .calls import Answer, ApiCall, ApiRoute, Call, json_answer, no_nul
from .models import Body, Parameters, PathName, ResponseModel, Text, responses, whole

MAX_REVIEWS = 200
YEAR_MS = 365 * 86_400_000
router = APIRouter(route_class=ApiRoute)
States = Literal["", "pending", "decided", "expired", "superseded"]


class ReviewQuery(Parameters):
    """`after` is the last review_id of the previous page. `job` is a job id or an external id."""

    state: States = ""
    kind: Text = Field("", json_schema_extra={"enum": ["", *KINDS]})
    job: Text = ""
    after: Text = ""
    limit: Annotated[int, Field(ge=0, le=MAX_REVIEWS), whole(MAX_REVIEWS)] = 50


class BudgetAddition(Body):
    """What `continue` adds to the budget of a review. It requires the scope budgets.write."""

    usd: float = Field(0, ge=0, le=MAX_USD)
    tokens: Amount = 0
    calls: Amount = 0
    tool_calls: Amount = 0
    seconds: Amount = 0


class NewDecision(Body):
    """A decision. `digest` is that of the card that was shown. `arguments` belong to edit, `text` to answer, `provider_id` and
    `result` to done, `top_up` to continue."""

    answer: str = Field(json_schema_extra={"enum": [*VERBS]})
    digest: str
    note: str | None = Field(None, max_length=2000)
    arguments: dict[str, Any] | None = None
    text: str | None = Field(None, max_length=65536)
    provider_id: str | None = Field(None, max_length=500)
    result: Any = None
    top_up: BudgetAddition | None = None


class Renewal(Body):
    """How long the review waits from now on; absent: as long as at first."""

    expires_in_ms: Annotated[int, Field(ge=1, le=YEAR_MS)] | None = None


class ReviewShown(ResponseModel):
    review_id: str
    job_id: str
    kind: str = Field(json_schema_extra={"enum": [*KINDS]})
    state: Literal["pending", "decided", "expired", "superseded"]
    answer: str | None
    answers: dict[str, str]
    digest: str
    expires_at: str | None


class ReviewList(ResponseModel):
    reviews: list[ReviewShown]


class _RawValues(msgspec.Struct):
    """Arguments and result as they were sent, so that no number in them changes."""

    arguments: msgspec.Raw = msgspec.Raw(b"null")
    result: msgspec.Raw = msgspec.Raw(b"null")


@router.get("/reviews", summary="Reviews, oldest first", responses=responses(200, "A page of reviews.", ReviewList))
async def list_reviews(call: Call, query: Annotated[ReviewQuery, Query()]) -> Answer:
    if query.kind and query.kind not in KINDS:
        raise BadInput(f"kind: {query.kind[:40]!r} is not one of {', '.join(KINDS)}")
    if query.after and not query.after.startswith("rev_"):
        raise BadInput(f"after: {query.after[:40]!r} is not a review id; send the last review_id of the previous page")
    ledger, job_id = call.services.ledger, ""
    if query.job:
        parse_job_name(query.job, "job")
        job_id = (await ledger.job(query.job, call.tenant_id, call.key_scope)).job_id
    wanted = ReviewFilter(
        tenant_id=call.tenant_id,
        state=query.state,
        kind=query.kind,
        job_id=job_id,
        after=query.after,
        most=query.limit,
        key_scope=call.key_scope,
    )
    found = await find_reviews(ledger.store, wanted)
    return json_answer(200, {"reviews": [_shown(call, each) for each in found]})


@router.get(
    "/reviews/{review}",
    summary="One review: what it asks, and what each answer does",
    responses=responses(200, "The review.", ReviewShown),
)
async def one(call: Call, review: PathName) -> Answer:  # noqa: ARG001 - see PathName
    return json_answer(200, _shown(call, await _review(call)))


@router.post(
    "/reviews/{review}/decide",
    summary="Decide a review, once",
    responses=responses(200, "The review with its decision; also if the same answer was given before.", ReviewShown),
)
async def decide(call: Call, review: PathName, body: NewDecision) -> Answer:  # noqa: ARG001 - see PathName
    """409: another answer was given before, the digest is not that of the review, or a yes comes after its end."""
    found = await _review(call)
    raw = msgspec.json.decode(call.request.body, type=_RawValues)
    decision = Decision(
        answer=body.answer,
        by=call.actor,
        note=None if body.note is None else no_nul(body.note, "note"),
        arguments=None if body.arguments is None else bytes(raw.arguments),
        text=None if body.text is None else no_nul(body.text, "text"),
        provider_id=None if body.provider_id is None else no_nul(body.provider_id, "provider_id"),
        result=None if body.result is None else bytes(raw.result),
        amounts=_amounts(call, body.top_up),
        digest=body.digest,
        tenant_id=call.tenant_id,
        key_id=call.request.key_id,
    )
    decided = await call.tools.operations.decide(
        found.review_id, decision, key=call.request.key, over_http=True, limit_of=_limits(call)
    )
    return json_answer(200, _shown(call, decided))


@router.post(
    "/reviews/{review}/renew",
    summary="Ask again after nobody decided in time",
    responses=responses(200, "The review, pending again.", ReviewShown),
)
async def renew(call: Call, review: PathName, body: Renewal) -> Answer:  # noqa: ARG001 - see PathName
    found = await _review(call)
    extend_us = body.expires_in_ms * 1000 if body.expires_in_ms is not None else None
    renewed = await call.tools.operations.renew(
        found.review_id, call.actor, extend_us, tenant_id=call.tenant_id, key=call.request.key, over_http=True
    )
    return json_answer(200, _shown(call, renewed))


async def _review(call: ApiCall) -> ReviewRow:
    """The review in the path, if its job is in the scope of the key. Raises NotFound."""
    name = check_identifier(call.request.names[0], "the review's id")
    found = await call.tools.operations.review(name, call.tenant_id)
    try:
        await call.services.ledger.job(found.job_id, call.tenant_id, call.key_scope)
    except NotFound:
        raise NotFound(f"review {name}; `overnight reviews` lists pending reviews") from None
    return found


def _amounts(call: ApiCall, added: BudgetAddition | None) -> Amounts | None:
    if added is None:
        return None
    key = call.request.key
    if key is None or "budgets.write" not in key.scopes:
        raise Forbidden("top_up: the key lacks scope budgets.write; without top_up, `continue` checks the budget again")
    return Amounts(
        microusd=usd_to_micro(str(added.usd)),
        tokens=added.tokens,
        calls=added.calls,
        tool_calls=added.tool_calls,
        seconds=added.seconds,
    )


def _limits(call: ApiCall) -> Any:
    """The limits that a top-up must not exceed: for the operator's keys none."""
    key, policy = call.request.key, call.services.policy
    if key is not None and "instance.admin" in key.scopes:
        return None

    def limit_of(top_up: TopUp, job: JobRow) -> Limit:
        return operator_limit(policy(), top_up, job)

    return limit_of


def _shown(call: ApiCall, row: ReviewRow) -> dict[str, Any]:
    return public_review(row, with_content=reads_content(call.request.key))
