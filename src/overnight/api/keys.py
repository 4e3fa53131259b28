"""`/api/v1/keys` and `/api/v1/provider-keys`: keys of the tenant. A secret is returned once."""

from __future__ import annotations

import msgspec

from overnight.domain import INSTANCE_SCOPES, Forbidden, expand_scopes
from overnight.gateway import Gateway, HttpResponse
from overnight.keys import (
    KeyRow,
    Keys,
    NewKey,
    Rotation,
    known_provider,
    public_key,
    public_provider_key,
    virtual_key,
)

from .json_bodies import (
    EmptyBody,
    body_of,
    json_answer,
    query_of,
    whole,
)
from .requests import Request

MAX_KEYS = 200


class Secret(msgspec.Struct, forbid_unknown_fields=True):
    """A provider's key."""

    key: str


class KeysApi:
    """All routes are limited to the tenant of the key. Keys of other tenants are reported as not found."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway, self._ring = gateway, gateway.keys
        self._keys = Keys(gateway.store, gateway.keys.masters)

    async def list(self, request: Request) -> HttpResponse:
        """`?before=&limit=`: newest first; `before` is the last key_id of the previous page."""
        query = query_of(request, "before", "limit")
        most = whole(query, "limit", 50, MAX_KEYS)
        rows = await self._keys.list(request.tenant_id, query.get("before", ""), most)
        return json_answer(200, {"keys": [self._shown(row) for row in rows]})

    async def create(self, request: Request) -> HttpResponse:
        new = await body_of(request, NewKey)
        if instance := expand_scopes(new.scopes) & INSTANCE_SCOPES:
            raise Forbidden(f"scopes: only the operator can grant {min(instance)}, with `overnight keys create`")
        row, secret = await self._keys.create(request.tenant_id, new, request.actor, request.key_id)
        return self._with_secret(201, row, secret)

    async def one(self, request: Request) -> HttpResponse:
        return json_answer(200, self._shown(await self._keys.one(request.parts[3], request.tenant_id)))

    async def rotate(self, request: Request) -> HttpResponse:
        how = await body_of(request, Rotation)
        key_id = await self._key_within_rights(request)
        row, secret = await self._keys.rotate(key_id, request.tenant_id, how, request.actor, request.key_id)
        return self._with_secret(200, row, secret)

    async def revoke(self, request: Request) -> HttpResponse:
        await body_of(request, EmptyBody)
        key_id = await self._key_within_rights(request)
        row = await self._keys.revoke(key_id, request.tenant_id, request.actor, request.key_id)
        self._ring.expire()
        return json_answer(200, self._shown(row))

    async def providers(self, request: Request) -> HttpResponse:
        rows = await self._keys.provider_keys(request.tenant_id)
        return json_answer(200, {"provider_keys": [public_provider_key(row) for row in rows]})

    async def set_provider(self, request: Request) -> HttpResponse:
        provider, secret = request.parts[3], (await body_of(request, Secret)).key
        known_provider(provider, [each.name for each in self._gateway.routing.providers])
        tenant_id, actor = request.tenant_id, request.actor
        row = await self._keys.set_provider_key(tenant_id, provider, secret, actor, request.key_id)
        self._ring.expire()
        return json_answer(200, public_provider_key(row))

    async def drop_provider(self, request: Request) -> HttpResponse:
        await self._keys.drop_provider_key(request.tenant_id, request.parts[3], request.actor, request.key_id)
        self._ring.expire()
        return HttpResponse(204, [])

    async def _key_within_rights(self, request: Request) -> str:
        """The id of the key in the path. A new secret carries the scopes of its key, so a tenant's admin can neither rotate nor
        revoke a key of the operator. Raises Forbidden, NotFound."""
        row = await self._keys.one(request.parts[3], request.tenant_id)
        caller_scopes = request.key.scopes if request.key is not None else frozenset[str]()
        if beyond := (virtual_key(row).scopes & INSTANCE_SCOPES) - caller_scopes:
            raise Forbidden(f"{row.name} has the scope {min(beyond)}; only the operator can rotate or revoke it")
        return row.key_id

    def _shown(self, row: KeyRow) -> dict[str, object]:
        return public_key(row, self._gateway.store.clock())

    def _with_secret(self, status: int, row: KeyRow, secret: str) -> HttpResponse:
        self._ring.expire()
        answer = json_answer(status, {"key": secret, **self._shown(row)})
        answer.headers.append((b"cache-control", b"no-store"))
        return answer
