"""`/api/v1/bounds`: calls of unknown cost, and the correction of their cost. Requires `instance.admin`."""

from __future__ import annotations

from typing import Annotated

import msgspec

from overnight.budgets import correct_cost, list_bounds, public_bound
from overnight.domain import BadInput, check_identifier, usd_to_micro
from overnight.gateway import HttpResponse
from overnight.ledger import Ledger

from .json_bodies import body_of, json_answer, query_of, whole
from .requests import Request

MAX_CALLS = 1000
MAX_USD = 1_000_000
MAX_TOKENS = 1_000_000_000_000


class NewSettlement(msgspec.Struct, forbid_unknown_fields=True):
    """The real cost of a call. `tokens`: input and output together; None leaves them. `source` is operator or invoice."""

    usd: Annotated[float, msgspec.Meta(ge=0, le=MAX_USD)]
    tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)] | None = None
    source: str = "operator"
    why: Annotated[str, msgspec.Meta(max_length=2000)] = ""


class BoundsApi:
    """All routes are limited to the tenant of the request."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def list(self, request: Request) -> HttpResponse:
        """`?job=&limit=`: as `overnight budget bounds --json`."""
        query, tenant_id = query_of(request, "job", "limit"), request.tenant_id
        named = query.get("job")
        job = await self._ledger.job(check_identifier(named, "job"), tenant_id) if named else None
        found = await list_bounds(
            self._ledger.store,
            tenant_id=tenant_id,
            job_id=job.job_id if job else "",
            most=max(1, whole(query, "limit", 50, MAX_CALLS)),
        )
        return json_answer(200, {"bounds": [public_bound(row) for row in found]})

    async def settle(self, request: Request) -> HttpResponse:
        call_id = check_identifier(request.parts[3], "the call's id")
        body = await body_of(request, NewSettlement)
        if "\0" in body.why:
            raise BadInput("why: the character '\\x00' is not allowed")
        done = await correct_cost(
            self._ledger.store,
            request.tenant_id,
            call_id,
            usd_to_micro(str(body.usd)),
            actor=request.actor,
            why=body.why,
            source=body.source,
            tokens=body.tokens,
            key_id=request.key_id,
        )
        return json_answer(200, done.public())
