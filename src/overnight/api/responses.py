"""Stored responses: `/v1/responses/{id}` and `input_items` below it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from itertools import islice
from urllib.parse import parse_qsl

import msgspec

from overnight.domain import BadInput, parse_whole
from overnight.gateway import RESPONSES, Gateway, HttpResponse

from .attribution import key_scope_of
from .requests import Request

_JSON = (b"content-type", b"application/json")
_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
MAX_ITEMS = 100
_encode = msgspec.json.Encoder().encode


class ResponsesApi:
    """Retrieval and deletion of stored responses."""

    def __init__(self, gateway: Gateway) -> None:
        self._kept = gateway.responses

    async def one(self, request: Request) -> HttpResponse:
        """One response, or its events with `stream=true`. Raises UnknownResponse, BadInput."""
        query = _query(request)
        body = await self._kept.one(request.names[0], request.tenant_id, key_scope_of(request.key))
        if query.get("stream") != "true":
            return HttpResponse(200, [_JSON], body)
        after = _number(query, "starting_after", -1, 1_000_000_000)
        pieces = RESPONSES.stream_events(body, None)
        return HttpResponse(200, [*_STREAM], pieces=_each(islice(pieces, after + 1, None)))

    async def delete(self, request: Request) -> HttpResponse:
        """Raises UnknownResponse."""
        response_id = request.names[0]
        await self._kept.forget(response_id, request.tenant_id, key_scope_of(request.key))
        return HttpResponse(200, [_JSON], _encode({"id": response_id, "object": "response", "deleted": True}))

    async def items(self, request: Request) -> HttpResponse:
        """A page of the input items of a response. Raises UnknownResponse, BadInput."""
        query = _query(request)
        order, most = query.get("order", "desc"), _number(query, "limit", 20, MAX_ITEMS)
        if order not in ("asc", "desc"):
            raise BadInput("order: expected asc or desc")
        body = await self._kept.items(
            request.names[0],
            request.tenant_id,
            key_scope_of(request.key),
            order=order,
            after=query.get("after"),
            most=max(1, most),
        )
        return HttpResponse(200, [_JSON], body)


def _query(request: Request) -> dict[str, str]:
    return dict(parse_qsl(request.query.decode("latin-1")))


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
