"""`/api/v1/notifications`: where people are told about reviews, and what was sent to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from overnight.gateway import HttpResponse
from overnight.notifications import (
    AddressRow,
    Delivered,
    DeliveryFilter,
    NewAddress,
    SecretRotation,
    outcome_name,
    public_address,
    public_delivery,
)

from .calls import Answer, ApiRoute, Call, json_answer
from .models import Body, EmptyBody, Parameters, PathName, ResponseModel, Text, responses, whole

MAX_DELIVERIES = 200
DAY_MS = 86_400_000
router = APIRouter(route_class=ApiRoute, prefix="/notifications")


class NewAddressBody(Body):
    """A new address: `url` for webhook and slack; the other fields for email. `kinds` empty: all kinds of reviews."""

    name: str
    kind: Literal["webhook", "email", "slack"]
    url: str = ""
    to: list[str] = Field(default_factory=list)
    sender: str = ""
    server: str = ""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    security: Literal["starttls", "tls", "none"] = "starttls"
    username: str = ""
    password: str = ""
    links: Literal["decide", "show", "none"] = "decide"
    content: bool = True
    repeat_safe: bool = True
    kinds: list[str] = Field(default_factory=list)


class SecretRotationBody(Body):
    """How long the old secret signs too (0: not at all)."""

    overlap_ms: int = Field(DAY_MS, ge=0, le=90 * DAY_MS)


class DeliveryQuery(Parameters):
    """`before` is the last delivery_id of the previous page."""

    state: Literal["", "waiting", "sending", "delivered", "failed", "unknown", "withdrawn"] = ""
    review: Text = ""
    job: Text = ""
    before: Text = ""
    limit: Annotated[int, Field(ge=0, le=MAX_DELIVERIES), whole(MAX_DELIVERIES)] = 50


class AddressShown(ResponseModel):
    address_id: str
    name: str
    kind: str
    state: str


class AddressWithSecret(AddressShown):
    secret: str | None


class AddressList(ResponseModel):
    addresses: list[AddressShown]


class TestResult(ResponseModel):
    outcome: str
    why: str | None


class DeliveryShown(ResponseModel):
    delivery_id: str
    review_id: str
    state: str


class DeliveryList(ResponseModel):
    deliveries: list[DeliveryShown]


@router.get("/addresses", summary="Addresses of the tenant", responses=responses(200, "The addresses.", AddressList))
async def list_addresses(call: Call) -> Answer:
    rows = await call.tools.addresses.list(call.tenant_id)
    return json_answer(200, {"addresses": [public_address(row) for row in rows]})


@router.post(
    "/addresses",
    status_code=201,
    summary="Register an address; the signing secret of a webhook is told this once",
    responses=responses(201, "The address.", AddressWithSecret),
)
async def add(call: Call, body: NewAddressBody) -> Answer:
    given: dict[str, Any] = {name: getattr(body, name) for name in body.model_fields_set}
    for name in ("to", "kinds"):
        if name in given:
            given[name] = tuple(given[name])
    row, secret = await call.tools.addresses.add(call.tenant_id, NewAddress(**given), call.actor, call.request.key_id)
    return _with_secret(201, row, secret)


@router.get("/addresses/{address}", summary="One address", responses=responses(200, "The address.", AddressShown))
async def one(call: Call, address: PathName) -> Answer:  # noqa: ARG001 - see PathName
    return json_answer(200, public_address(await call.tools.addresses.one(call.request.names[0], call.tenant_id)))


@router.delete(
    "/addresses/{address}",
    status_code=204,
    summary="Remove an address; its links end",
    responses=responses(204, "It is removed."),
)
async def remove(call: Call, address: PathName) -> Answer:  # noqa: ARG001 - see PathName
    request = call.request
    await call.tools.addresses.remove(request.names[0], call.tenant_id, call.actor, request.key_id)
    return Answer(HttpResponse(204, []))


@router.post(
    "/addresses/{address}/rotate",
    summary="A new signing secret; the old one signs too for a while",
    responses=responses(200, "The address.", AddressWithSecret),
)
async def rotate(call: Call, address: PathName, body: SecretRotationBody) -> Answer:  # noqa: ARG001 - see PathName
    request, how = call.request, SecretRotation(overlap_ms=body.overlap_ms)
    row, secret = await call.tools.addresses.rotate(request.names[0], call.tenant_id, how, call.actor, request.key_id)
    return _with_secret(200, row, secret)


@router.post(
    "/addresses/{address}/test",
    summary="Send a sample, once",
    responses=responses(200, "What became of it: delivered, not_delivered or unknown.", TestResult),
)
async def test(call: Call, address: PathName, body: EmptyBody) -> Answer:  # noqa: ARG001 - see PathName
    request = call.request
    outcome = await call.tools.addresses.test(request.names[0], call.tenant_id, call.actor, request.key_id)
    why = None if isinstance(outcome, Delivered) else outcome.why
    return json_answer(200, {"outcome": outcome_name(outcome), "why": why})


@router.get(
    "/deliveries",
    summary="What was sent or is to be sent",
    responses=responses(200, "A page of deliveries.", DeliveryList),
)
async def list_deliveries(call: Call, query: Annotated[DeliveryQuery, Query()]) -> Answer:
    wanted = DeliveryFilter(
        tenant_id=call.tenant_id,
        state=query.state,
        review_id=query.review,
        job_id=query.job,
        before=query.before,
        most=query.limit,
    )
    found = await call.tools.addresses.deliveries(wanted)
    return json_answer(200, {"deliveries": [public_delivery(row, name) for row, name in found]})


@router.post(
    "/deliveries/{delivery}/retry",
    summary="Try again what failed or has an unknown outcome",
    responses=responses(200, "It waits for its next attempt.", DeliveryShown),
)
async def retry(call: Call, delivery: PathName, body: EmptyBody) -> Answer:  # noqa: ARG001 - see PathName
    request = call.request
    row = await call.tools.addresses.retry(request.names[0], call.tenant_id, call.actor, request.key_id)
    return json_answer(200, public_delivery(row, None))


def _with_secret(status: int, row: AddressRow, secret: str | None) -> Answer:
    return json_answer(status, {"secret": secret, **public_address(row)}, (b"cache-control", b"no-store"))
