"""Stored responses: `/v1/responses/{id}` and `input_items` below it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from itertools import islice
from urllib.parse import parse_qsl

import msgspec

from overnight.domain import BadInput, KeyScope, parse_whole
from overnight.gateway import RESPONSES, Gateway, HttpResponse, error_response

from .attribution import key_scope_of
from .problems import MethodNotAllowed
from .requests import Request

_JSON = (b"content-type", b"application/json")
_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
MAX_ITEMS = 100
_encode = msgspec.json.Encoder().encode


class ResponsesApi:
    """Retrieval and deletion of stored responses."""

    def __init__(self, gateway: Gateway) -> None:
        self._kept = gateway.responses

    async def answer(self, request: Request) -> HttpResponse:
        """Answer one of the paths, within the tenant and reach of the caller. Raises UnknownResponse, BadInput."""
        response_id, *below = request.parts[2:]
        whose = request.tenant_id, key_scope_of(request.key)
        allowed = ("GET",) if below else ("GET", "DELETE")
        if request.method not in allowed:
            why = str(MethodNotAllowed(request.method, ", ".join(allowed)))
            answer = error_response(BadInput(why), RESPONSES)
            return HttpResponse(405, [*answer.headers, (b"allow", ", ".join(allowed).encode())], answer.body)
        query = dict(parse_qsl(request.query.decode("latin-1")))
        if below:
            return await self._items(response_id, *whose, query)
        if request.method == "DELETE":
            await self._kept.forget(response_id, *whose)
            return HttpResponse(200, [_JSON], _encode({"id": response_id, "object": "response", "deleted": True}))
        body = await self._kept.one(response_id, *whose)
        if query.get("stream") != "true":
            return HttpResponse(200, [_JSON], body)
        after = _number(query, "starting_after", -1, 1_000_000_000)
        pieces = RESPONSES.stream_events(body, None)
        return HttpResponse(200, [*_STREAM], pieces=_each(islice(pieces, after + 1, None)))

    async def _items(
        self, response_id: str, tenant_id: str, key_scope: KeyScope, query: dict[str, str]
    ) -> HttpResponse:
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise BadInput("order: expected asc or desc")
        most = _number(query, "limit", 20, MAX_ITEMS)
        after = query.get("after")
        body = await self._kept.items(response_id, tenant_id, key_scope, order=order, after=after, most=max(1, most))
        return HttpResponse(200, [_JSON], body)


def _number(query: dict[str, str], name: str, default: int, most: int) -> int:
    value = query.get(name)
    if value is None:
        return default
    number = parse_whole(value, most)
    if number is None:
        raise BadInput(f"{name}: expected a whole number up to {most}")
    return number


async def _each(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
