"""`/api/v1/bounds`: calls of unknown cost, and the correction of their cost."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from overnight.budgets import correct_cost, list_bounds, public_bound
from overnight.domain import check_identifier, usd_to_micro

from .calls import Answer, ApiRoute, Call, json_answer, no_nul
from .models import Body, Parameters, PathName, ResponseModel, Text, responses, whole

MAX_CALLS = 1000
MAX_USD = 1_000_000
MAX_TOKENS = 1_000_000_000_000
router = APIRouter(route_class=ApiRoute)


class BoundQuery(Parameters):
    """`job`: only the calls of this job."""

    job: Text | None = None
    limit: Annotated[int, Field(ge=0, le=MAX_CALLS), whole(MAX_CALLS)] = 50


class NewSettlement(Body):
    """The real cost of a call. `tokens`: input and output together; None leaves them. `source` is operator or invoice."""

    usd: float = Field(ge=0, le=MAX_USD)
    tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    source: str = Field("operator", json_schema_extra={"enum": ["operator", "invoice"]})
    why: str = Field("", max_length=2000)


class BoundList(ResponseModel):
    bounds: list[dict[str, Any]]


class SettledBound(ResponseModel):
    call_id: str
    cost_usd: float
    changed: bool
    woken: list[str]


@router.get(
    "/bounds",
    summary="Calls of unknown cost, booked at an upper bound",
    responses=responses(200, "The calls.", BoundList),
)
async def list_unknown(call: Call, query: Annotated[BoundQuery, Query()]) -> Answer:
    """As `overnight budget bounds --json`."""
    ledger, tenant_id = call.services.ledger, call.tenant_id
    job = await ledger.job(check_identifier(query.job, "job"), tenant_id) if query.job else None
    found = await list_bounds(
        ledger.store, tenant_id=tenant_id, job_id=job.job_id if job else "", limit=max(1, query.limit)
    )
    return json_answer(200, {"bounds": [public_bound(row) for row in found]})


@router.post(
    "/bounds/{call}/settle",
    summary="Book the real cost of a call, and wake the jobs that wait for its budgets",
    responses=responses(200, "The correction.", SettledBound),
)
async def settle(asked: Call, call: PathName, body: NewSettlement) -> Answer:  # noqa: ARG001 - see PathName
    """A repetition changes nothing; another cost replaces the earlier one."""
    done = await correct_cost(
        asked.services.ledger.store,
        asked.tenant_id,
        check_identifier(asked.request.names[0], "the call's id"),
        usd_to_micro(str(body.usd)),
        actor=asked.actor,
        why=no_nul(body.why, "why"),
        source=body.source,
        tokens=body.tokens,
        key_id=asked.request.key_id,
    )
    return json_answer(200, done.public())
