"""`/api/v1/budgets`: what the tenant may spend and what is left of it; adding to it is the operator's (`instance.admin`)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from overnight.budgets import TopUp, addressed, line_of, list_budgets, top_up_budget
from overnight.domain import BadInput, check_identifier, usd_to_micro
from overnight.gateway import Answer, Gateway
from overnight.ledger import Ledger

from .attribution import reach_of
from .json_bodies import (
    body_of,
    json_answer,
    query_of,
    whole,
)
from .requests import Request

MOST_JOBS = 1000
MOST_USD = 1_000_000
Amount = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000_000)]


class NewTopUp(msgspec.Struct, forbid_unknown_fields=True):
    """Whose budget, and what is added to it. `per` is total, day or month: the one that is limited, where it is left out."""

    scope: str
    id: str
    per: str | None = None
    usd: Annotated[float, msgspec.Meta(ge=0, le=MOST_USD)] = 0
    tokens: Amount = 0
    calls: Amount = 0
    tool_calls: Amount = 0
    seconds: Amount = 0
    why: Annotated[str, msgspec.Meta(max_length=2000)] = ""


class Budgets:
    """Everything is within the request's tenant, and the agent and workflow that its key is bound to."""

    def __init__(self, gateway: Gateway, ledger: Ledger) -> None:
        self._gateway, self._ledger = gateway, ledger

    async def list(self, request: Request) -> Answer:
        """`?job=&all=&limit=`: as `overnight budget --json` shows them."""
        query = query_of(request, "job", "all", "limit")
        if query.get("all", "false") not in {"true", "false"}:
            raise BadInput("all: must be true or false")
        named, reach = query.get("job"), reach_of(request.key)
        job = await self._ledger.job(check_identifier(named, "job"), request.tenant_id, reach) if named else None
        found = await list_budgets(
            self._ledger.store,
            self._gateway.policy,
            tenant_id=request.tenant_id,
            job_id=job.job_id if job else "",
            reach=reach,
            key_id=request.key.key_id if request.key else "",
            everything=query.get("all") == "true",
            most=max(1, whole(query, "limit", 50, MOST_JOBS)),
        )
        return json_answer(200, {"budgets": [line.public() for line in found]})

    async def top_up(self, request: Request) -> Answer:
        said = await body_of(request, NewTopUp)
        if "\0" in said.why:
            raise BadInput("why: the character '\\x00' cannot stand in a text; leave it out")
        store, policy = self._ledger.store, self._gateway.policy
        job = None
        if said.scope == "job":
            job = await self._ledger.job(check_identifier(said.id, "id"), request.tenant_id)
        if said.scope == "tenant" and said.id != request.tenant_id:
            raise BadInput("id: a key reaches its own tenant alone")
        name = job.job_id if job else said.id
        wanted = TopUp(
            request.tenant_id,
            said.scope,
            name,
            request.actor or "api",
            said.why,
            usd_to_micro(str(said.usd)),
            said.tokens,
            said.calls,
            said.tool_calls,
            said.seconds,
        )
        row, woken = await top_up_budget(store, addressed(policy, wanted, said.per, store.clock()))
        return json_answer(201, line_of(policy, row, job, store.clock()).public() | {"woken": woken})
