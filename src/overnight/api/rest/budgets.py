"""`/api/v1/budgets`: limits and spending of the tenant, and top-ups."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from overnight.budgets import SCOPES, TopUp, line_of, list_budgets, operator_limit, resolve_top_up, top_up_budget
from overnight.domain import BadInput, check_identifier, usd_to_micro

from .calls import Answer, ApiRoute, Call, json_answer, no_nul
from .models import IDENTIFIER, Body, Parameters, ResponseModel, Text, responses, whole

MAX_JOBS = 1000
MAX_USD = 1_000_000
Amount = Annotated[int, Field(ge=0, le=1_000_000_000_000)]
router = APIRouter(route_class=ApiRoute)


class BudgetQuery(Parameters):
    """`all`: also budgets without a limit."""

    job: Text | None = None
    all: Literal["true", "false"] = "false"
    limit: Annotated[int, Field(ge=0, le=MAX_JOBS), whole(MAX_JOBS)] = 50


class NewTopUp(Body):
    """The budget and the amounts to add. `per` is total, day or month; the default is the period that has a limit."""

    scope: str = Field(json_schema_extra={"enum": [*SCOPES]})
    id: str = Field(json_schema_extra=IDENTIFIER)
    per: str | None = Field(None, json_schema_extra={"enum": ["total", "day", "month", None]})
    usd: float = Field(0, ge=0, le=MAX_USD)
    tokens: Amount = 0
    calls: Amount = 0
    tool_calls: Amount = 0
    seconds: Amount = 0
    why: str = Field("", max_length=2000)


class BudgetList(ResponseModel):
    budgets: list[dict[str, Any]]


class ToppedUp(ResponseModel):
    scope: str
    id: str
    woken: list[str]


@router.get(
    "/budgets",
    summary="Budgets with a limit in force, and what is left of them",
    responses=responses(200, "The budgets.", BudgetList),
)
async def list_limits(call: Call, query: Annotated[BudgetQuery, Query()]) -> Answer:
    """As `overnight budget --json`, within the agent and workflow of the key."""
    services, key_scope, key = call.services, call.key_scope, call.request.key
    job = None
    if query.job:
        job = await services.ledger.job(check_identifier(query.job, "job"), call.tenant_id, key_scope)
    found = await list_budgets(
        services.ledger.store,
        services.policy(),
        tenant_id=call.tenant_id,
        job_id=job.job_id if job else "",
        key_scope=key_scope,
        key_id=key.key_id if key else "",
        everything=query.all == "true",
        limit=max(1, query.limit),
    )
    return json_answer(200, {"budgets": [line.public() for line in found]})


@router.post(
    "/budgets",
    status_code=201,
    summary="Add to a budget, and wake the jobs that wait for it",
    responses=responses(201, "The budget, and the jobs that go on.", ToppedUp),
)
async def top_up(call: Call, body: NewTopUp) -> Answer:
    """The scope of the budget and its name choose it. What the operator limits requires `instance.admin`."""
    store, policy = call.services.ledger.store, call.services.policy()
    why, job = no_nul(body.why, "why"), None
    if body.scope == "job":
        job = await call.services.ledger.job(check_identifier(body.id, "id"), call.tenant_id, call.key_scope)
    if body.scope == "tenant" and body.id != call.tenant_id:
        raise BadInput("id: a key can only access its own tenant")
    wanted = TopUp(
        tenant_id=call.tenant_id,
        scope=body.scope,
        scope_id=job.job_id if job else body.id,
        actor=call.actor or "api",
        why=why,
        microusd=usd_to_micro(str(body.usd)),
        tokens=body.tokens,
        calls=body.calls,
        tool_calls=body.tool_calls,
        wall_clock_s=body.seconds,
        key_id=call.request.key_id,
    )
    wanted, key = resolve_top_up(policy, wanted, body.per, store.clock()), call.request.key
    if key is None or "instance.admin" not in key.scopes:
        wanted.operator_limit = operator_limit(policy, wanted, job)
    row, woken = await top_up_budget(store, wanted)
    return json_answer(201, line_of(policy, row, job, store.clock()).public() | {"woken": woken})
