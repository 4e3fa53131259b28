"""`/api/v1/budgets`: limits and spending of the tenant. Top-ups require `budgets.write`, and `instance.admin` where the operator
limits."""

from __future__ import annotations

from typing import Annotated

import msgspec

from overnight.budgets import TopUp, addressed, line_of, list_budgets, operator_limit, top_up_budget
from overnight.domain import BadInput, check_identifier, usd_to_micro
from overnight.gateway import Gateway, HttpResponse
from overnight.ledger import Ledger

from .attribution import key_scope_of
from .json_bodies import (
    body_of,
    json_answer,
    query_of,
    whole,
)
from .requests import Request

MAX_JOBS = 1000
MAX_USD = 1_000_000
Amount = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000_000)]


class NewTopUp(msgspec.Struct, forbid_unknown_fields=True):
    """The budget and the amounts to add. `per` is total, day or month; the default is the period that has a limit."""

    scope: str
    id: str
    per: str | None = None
    usd: Annotated[float, msgspec.Meta(ge=0, le=MAX_USD)] = 0
    tokens: Amount = 0
    calls: Amount = 0
    tool_calls: Amount = 0
    seconds: Amount = 0
    why: Annotated[str, msgspec.Meta(max_length=2000)] = ""


class BudgetsApi:
    """All routes are limited to the tenant of the request, and the agent and workflow of its key."""

    def __init__(self, gateway: Gateway, ledger: Ledger) -> None:
        self._gateway, self._ledger = gateway, ledger

    async def list(self, request: Request) -> HttpResponse:
        """`?job=&all=&limit=`: as `overnight budget --json`."""
        query = query_of(request, "job", "all", "limit")
        if query.get("all", "false") not in {"true", "false"}:
            raise BadInput("all: expected true or false")
        named, key_scope = query.get("job"), key_scope_of(request.key)
        job = await self._ledger.job(check_identifier(named, "job"), request.tenant_id, key_scope) if named else None
        found = await list_budgets(
            self._ledger.store,
            self._gateway.policy,
            tenant_id=request.tenant_id,
            job_id=job.job_id if job else "",
            key_scope=key_scope,
            key_id=request.key.key_id if request.key else "",
            everything=query.get("all") == "true",
            most=max(1, whole(query, "limit", 50, MAX_JOBS)),
        )
        return json_answer(200, {"budgets": [line.public() for line in found]})

    async def top_up(self, request: Request) -> HttpResponse:
        body = await body_of(request, NewTopUp)
        if "\0" in body.why:
            raise BadInput("why: the character '\\x00' is not allowed")
        store, policy = self._ledger.store, self._gateway.policy
        job = None
        if body.scope == "job":
            job = await self._ledger.job(check_identifier(body.id, "id"), request.tenant_id, key_scope_of(request.key))
        if body.scope == "tenant" and body.id != request.tenant_id:
            raise BadInput("id: a key can only access its own tenant")
        name = job.job_id if job else body.id
        wanted = TopUp(
            tenant_id=request.tenant_id,
            scope=body.scope,
            scope_id=name,
            actor=request.actor or "api",
            why=body.why,
            microusd=usd_to_micro(str(body.usd)),
            tokens=body.tokens,
            calls=body.calls,
            tool_calls=body.tool_calls,
            wall_clock_s=body.seconds,
            key_id=request.key_id,
        )
        wanted = addressed(policy, wanted, body.per, store.clock())
        if request.key is None or "instance.admin" not in request.key.scopes:
            wanted.operator_limit = operator_limit(policy, wanted, job)
        row, woken = await top_up_budget(store, wanted)
        return json_answer(201, line_of(policy, row, job, store.clock()).public() | {"woken": woken})
