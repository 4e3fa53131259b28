"""Kept responses by their id: `/v1/responses/{id}`, and below it `input_items`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from itertools import islice
from urllib.parse import parse_qsl

import msgspec

from overnight.domain import BadInput, Reach, parse_whole
from overnight.gateway import RESPONSES, Answer, Gateway, refusal

from .attribution import reach_of
from .problems import MethodNotAllowed
from .requests import Request

_JSON = (b"content-type", b"application/json")
_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
MOST_ITEMS = 100
_encode = msgspec.json.Encoder().encode


class ResponsesApi:
    """What clients ask of responses that are kept."""

    def __init__(self, gateway: Gateway) -> None:
        self._kept = gateway.responses

    async def answer(self, request: Request) -> Answer:
        """One of the paths. Each shows what is within its caller's tenant and reach. Raises UnknownResponse, BadInput."""
        response_id, *below = request.parts[2:]
        whose = request.tenant_id, reach_of(request.key)
        allowed = ("GET",) if below else ("GET", "DELETE")
        if request.method not in allowed:
            why = str(MethodNotAllowed(request.method, ", ".join(allowed)))
            answer = refusal(BadInput(why), RESPONSES)
            return Answer(405, [*answer.headers, (b"allow", ", ".join(allowed).encode())], answer.body)
        asked = dict(parse_qsl(request.query.decode("latin-1")))
        if below:
            return await self._items(response_id, *whose, asked)
        if request.method == "DELETE":
            await self._kept.forget(response_id, *whose)
            return Answer(200, [_JSON], _encode({"id": response_id, "object": "response", "deleted": True}))
        body = await self._kept.one(response_id, *whose)
        if asked.get("stream") != "true":
            return Answer(200, [_JSON], body)
        after = _number(asked, "starting_after", -1, 1_000_000_000)
        pieces = RESPONSES.taken_apart(body, None)
        return Answer(200, [*_STREAM], pieces=_each(islice(pieces, after + 1, None)))

    async def _items(self, response_id: str, tenant_id: str, reach: Reach, asked: dict[str, str]) -> Answer:
        order = asked.get("order", "desc")
        if order not in ("asc", "desc"):
            raise BadInput("order: must be asc or desc")
        most = _number(asked, "limit", 20, MOST_ITEMS)
        after = asked.get("after")
        body = await self._kept.items(response_id, tenant_id, reach, order=order, after=after, most=max(1, most))
        return Answer(200, [_JSON], body)


def _number(asked: dict[str, str], name: str, usual: int, most: int) -> int:
    value = asked.get(name)
    if value is None:
        return usual
    number = parse_whole(value, most)
    if number is None:
        raise BadInput(f"{name}: must be a whole number up to {most}")
    return number


async def _each(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
