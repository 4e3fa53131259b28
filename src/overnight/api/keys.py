"""`/api/v1/keys` and `/api/v1/provider-keys`: the keys of the tenant whose admin key asks. A secret is in one answer, once."""

from __future__ import annotations

import msgspec

from overnight.domain import Forbidden
from overnight.gateway import Answer, Gateway
from overnight.keys import (
    INSTANCE_ADMIN,
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
    body_of,
    json_answer,
    query_of,
    whole,
)
from .requests import Request

MOST_KEYS = 200


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """No fields."""


class Secret(msgspec.Struct, forbid_unknown_fields=True):
    """A provider's key."""

    key: str


class KeysApi:
    """Everything is within the tenant of the key that asks: another tenant's key does not exist."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway, self._ring = gateway, gateway.keys
        self._keys = Keys(gateway.store, gateway.keys.masters)

    async def list(self, request: Request) -> Answer:
        """`?before=&limit=`: newest first; `before` is the key_id that the page before ended with."""
        query = query_of(request, "before", "limit")
        most = whole(query, "limit", 50, MOST_KEYS)
        rows = await self._keys.list(request.tenant_id, query.get("before", ""), most)
        return json_answer(200, {"keys": [self._shown(row) for row in rows]})

    async def create(self, request: Request) -> Answer:
        new = await body_of(request, NewKey)
        if INSTANCE_ADMIN in new.scopes:
            raise Forbidden(
                f"scopes: {INSTANCE_ADMIN} is given by `overnight keys create` alone, which the operator runs"
            )
        row, secret = await self._keys.create(request.tenant_id, new, request.actor)
        return self._with_secret(201, row, secret)

    async def one(self, request: Request) -> Answer:
        return json_answer(200, self._shown(await self._keys.one(request.parts[3], request.tenant_id)))

    async def rotate(self, request: Request) -> Answer:
        how = await body_of(request, Rotation)
        key_id = await self._key_within_rights(request)
        row, secret = await self._keys.rotate(key_id, request.tenant_id, how, request.actor)
        return self._with_secret(200, row, secret)

    async def revoke(self, request: Request) -> Answer:
        await body_of(request, Nothing)
        row = await self._keys.revoke(await self._key_within_rights(request), request.tenant_id, request.actor)
        self._ring.expire()
        return json_answer(200, self._shown(row))

    async def providers(self, request: Request) -> Answer:
        rows = await self._keys.provider_keys(request.tenant_id)
        return json_answer(200, {"provider_keys": [public_provider_key(row) for row in rows]})

    async def set_provider(self, request: Request) -> Answer:
        provider, secret = request.parts[3], (await body_of(request, Secret)).key
        known_provider(provider, [each.name for each in self._gateway.routing.providers])
        row = await self._keys.set_provider_key(request.tenant_id, provider, secret, request.actor)
        self._ring.expire()
        return json_answer(200, public_provider_key(row))

    async def drop_provider(self, request: Request) -> Answer:
        await self._keys.drop_provider_key(request.tenant_id, request.parts[3], request.actor)
        self._ring.expire()
        return Answer(204, [])

    async def _key_within_rights(self, request: Request) -> str:
        """The id of the key in the path. Whoever gets its new secret gets its scopes, so a key of the operator's is not for a
        tenant's admin to rotate, nor to end. Raises Forbidden, NotFound."""
        row = await self._keys.one(request.parts[3], request.tenant_id)
        theirs = request.key.scopes if request.key is not None else frozenset[str]()
        if INSTANCE_ADMIN in virtual_key(row).scopes and INSTANCE_ADMIN not in theirs:
            raise Forbidden(f"{row.name} has the scope {INSTANCE_ADMIN}: the operator rotates and revokes it")
        return row.key_id

    def _shown(self, row: KeyRow) -> dict[str, object]:
        return public_key(row, self._gateway.store.clock())

    def _with_secret(self, status: int, row: KeyRow, secret: str) -> Answer:
        self._ring.expire()
        answer = json_answer(status, {"key": secret, **self._shown(row)})
        answer.headers.append((b"cache-control", b"no-store"))
        return answer
