"""`/api/v1/keys` and `/api/v1/provider-keys`: keys of the tenant. A secret is returned once."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Query
from pydantic import Field

from overnight.domain import INSTANCE_SCOPES, BadInput, Forbidden, expand_scopes
from overnight.gateway import HttpResponse
from overnight.keys import (
    Allowance,
    KeyRow,
    NewKey,
    Rotation,
    check_provider,
    public_key,
    public_provider_key,
    virtual_key,
)

from .calls import Answer, ApiCall, ApiRoute, Call, json_answer
from .models import Body, EmptyBody, Parameters, PathName, ResponseModel, Text, responses, whole

MAX_KEYS = 200
DAY_MS = 86_400_000
Span = Annotated[int, Field(ge=1, le=3650 * DAY_MS)]
router = APIRouter(route_class=ApiRoute)


class KeyQuery(Parameters):
    """`before` is the last key_id of the previous page."""

    before: Text = ""
    limit: Annotated[int, Field(ge=0, le=MAX_KEYS), whole(MAX_KEYS)] = 50


class NewKeyBody(Body):
    """What a key is to be. `models`, `routes`, `tools` and `jobs` are names or globs; empty allow all. `expires_in_ms` absent:
    never."""

    name: str
    scopes: list[str] = Field(default_factory=list)
    agent_id: str | None = None
    workflow: str | None = None
    models: list[str] = Field(default_factory=list)
    routes: list[str] = Field(default_factory=list)
    tools: list[str] = Field(default_factory=list)
    jobs: list[str] = Field(default_factory=list)
    expires_in_ms: Span | None = None


class RotationBody(Body):
    """How long the old secret stays valid (0: not at all), and how long the key lives from now (absent: as long as before)."""

    overlap_ms: int = Field(DAY_MS, ge=0, le=90 * DAY_MS)
    expires_in_ms: Span | None = None


class AllowanceBody(Body):
    """The names or globs of tools and jobs that the key may use from now on. Empty allow all; absent ones stay as they are."""

    tools: list[str] | None = None
    jobs: list[str] | None = None


class ProviderSecret(Body):
    """A provider's key."""

    key: str


class KeyShown(ResponseModel):
    key_id: str
    name: str
    state: str


class KeyWithSecret(KeyShown):
    key: str


class KeyList(ResponseModel):
    keys: list[KeyShown]


class ProviderKeyShown(ResponseModel):
    provider: str


class ProviderKeyList(ResponseModel):
    provider_keys: list[ProviderKeyShown]


@router.get("/keys", summary="Keys of the tenant, newest first", responses=responses(200, "A page of keys.", KeyList))
async def list_keys(call: Call, query: Annotated[KeyQuery, Query()]) -> Answer:
    rows = await call.tools.keys.list(call.tenant_id, query.before, query.limit)
    return json_answer(200, {"keys": [_shown(call, row) for row in rows]})


@router.post(
    "/keys",
    status_code=201,
    summary="Make a key; its secret is told this once",
    responses=responses(201, "The key.", KeyWithSecret),
)
async def create(call: Call, body: NewKeyBody) -> Answer:
    given: dict[str, Any] = {name: getattr(body, name) for name in body.model_fields_set}
    for name, value in given.items():
        if isinstance(value, list):
            given[name] = tuple(cast("list[str]", value))
    new = NewKey(**given)
    if instance := expand_scopes(new.scopes) & INSTANCE_SCOPES:
        raise Forbidden(f"scopes: only the operator can grant {min(instance)}, with `overnight keys create`")
    row, secret = await call.tools.keys.create(call.tenant_id, new, call.actor, call.request.key_id)
    return _with_secret(call, 201, row, secret)


@router.get("/keys/{key}", summary="One key", responses=responses(200, "The key.", KeyShown))
async def one(call: Call, key: PathName) -> Answer:  # noqa: ARG001 - see PathName
    return json_answer(200, _shown(call, await call.tools.keys.one(call.request.names[0], call.tenant_id)))


@router.post(
    "/keys/{key}/rotate",
    summary="A new secret; the old one holds for a while",
    responses=responses(200, "The key.", KeyWithSecret),
)
async def rotate(call: Call, key: PathName, body: RotationBody) -> Answer:  # noqa: ARG001 - see PathName
    key_id = await _key_within_rights(call)
    how = Rotation(overlap_ms=body.overlap_ms, expires_in_ms=body.expires_in_ms)
    row, secret = await call.tools.keys.rotate(key_id, call.tenant_id, how, call.actor, call.request.key_id)
    return _with_secret(call, 200, row, secret)


@router.post(
    "/keys/{key}/allow",
    summary="Replace the tools or jobs that a key may use",
    responses=responses(200, "The key.", KeyShown),
)
async def allow(call: Call, key: PathName, body: AllowanceBody) -> Answer:  # noqa: ARG001 - see PathName
    key_id = await _key_within_rights(call)
    if body.tools is None and body.jobs is None:
        raise BadInput("body: tools or jobs is required; an empty list allows all")
    tools, jobs = (None if globs is None else tuple(globs) for globs in (body.tools, body.jobs))
    new = Allowance(tools=tools, jobs=jobs)
    row = await call.tools.keys.allow(key_id, call.tenant_id, new, call.actor, call.request.key_id)
    call.services.keyring.expire()
    return json_answer(200, _shown(call, row))


@router.post("/keys/{key}/revoke", summary="End a key", responses=responses(200, "The key.", KeyShown))
async def revoke(call: Call, key: PathName, body: EmptyBody) -> Answer:  # noqa: ARG001 - see PathName
    key_id = await _key_within_rights(call)
    row = await call.tools.keys.revoke(key_id, call.tenant_id, call.actor, call.request.key_id)
    call.services.keyring.expire()
    return json_answer(200, _shown(call, row))


@router.get(
    "/provider-keys",
    summary="Providers that the tenant has a key of its own for",
    responses=responses(200, "The providers, without the keys.", ProviderKeyList),
)
async def list_provider_keys(call: Call) -> Answer:
    rows = await call.tools.keys.provider_keys(call.tenant_id)
    return json_answer(200, {"provider_keys": [public_provider_key(row) for row in rows]})


@router.put(
    "/provider-keys/{provider}",
    summary="Set the key for a provider",
    responses=responses(200, "It is set.", ProviderKeyShown),
)
async def set_provider_key(call: Call, provider: PathName, body: ProviderSecret) -> Answer:
    provider = call.request.names[0]
    check_provider(provider, call.services.providers())
    row = await call.tools.keys.set_provider_key(call.tenant_id, provider, body.key, call.actor, call.request.key_id)
    call.services.keyring.expire()
    return json_answer(200, public_provider_key(row))


@router.delete(
    "/provider-keys/{provider}",
    status_code=204,
    summary="Drop the key for a provider",
    responses=responses(204, "It is gone."),
)
async def drop_provider_key(call: Call, provider: PathName) -> Answer:  # noqa: ARG001 - see PathName
    request = call.request
    await call.tools.keys.drop_provider_key(call.tenant_id, request.names[0], call.actor, request.key_id)
    call.services.keyring.expire()
    return Answer(HttpResponse(204, []))


async def _key_within_rights(call: ApiCall) -> str:
    """The id of the key in the path. A new secret carries the scopes of its key, so a tenant's admin can change no key of the
    operator. Raises Forbidden, NotFound."""
    row = await call.tools.keys.one(call.request.names[0], call.tenant_id)
    caller_scopes = call.request.key.scopes if call.request.key is not None else frozenset[str]()
    if beyond := (virtual_key(row).scopes & INSTANCE_SCOPES) - caller_scopes:
        raise Forbidden(f"{row.name} has the scope {min(beyond)}; only the operator can change it")
    return row.key_id


def _shown(call: ApiCall, row: KeyRow) -> dict[str, Any]:
    return public_key(row, call.services.ledger.store.clock())


def _with_secret(call: ApiCall, status: int, row: KeyRow, secret: str) -> Answer:
    call.services.keyring.expire()
    return json_answer(status, {"key": secret, **_shown(call, row)}, (b"cache-control", b"no-store"))
