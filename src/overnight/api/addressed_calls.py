"""Model calls whose path holds a part of the request, such as its model: the handlers of all formats that have such paths."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable

import msgspec

from overnight.domain import CallFacts, allows
from overnight.gateway import CODECS, AddressedCall, ClientPaths, Codec, Gateway, HttpResponse, permitted_decision
from overnight.wire_formats.sse import SseParser

from .body_memory import BodyMemory
from .requests import Request, read_body
from .routes import ADDRESSED, unknown_path

_encode = msgspec.json.Encoder().encode
_JSON = (b"content-type", b"application/json")
Call = Callable[[Codec, Request, Callable[[bytes], bytes]], Awaitable[HttpResponse]]
Handler = Callable[[Request], Awaitable[HttpResponse]]
_SHARED = {"/v1/models": True, "/v1/models/{model}": False}
"""The paths of models that clients of several formats ask, and whether they list all."""


def handlers_of(gateway: Gateway, memory: BodyMemory, call: Call) -> dict[tuple[str, str], Handler]:
    """The handlers of all such paths, by method and template. `call` makes a model call, with the completed body."""
    found: dict[tuple[str, str], Handler] = {}
    for _, paths in ADDRESSED:
        api = _AddressedApi(gateway, memory, call, paths)
        found |= {("POST", template): api.post for template in paths.templates}
        found |= {("GET", paths.models_path): api.models, ("GET", paths.model_path): api.model}
    return found


def handler_of(request: Request, handlers: dict[tuple[str, str], Handler]) -> Handler:
    """The handler of a request. Paths of several formats, such as `/v1/models`, answer a client by the header of its key."""
    method, template = request.route.method, request.route.template
    if method == "GET" and template in _SHARED:
        for codec, paths in ADDRESSED:
            if codec.key_header is not None and request.header(codec.key_header):
                return handlers[method, paths.models_path if _SHARED[template] else paths.model_path]
    return handlers[method, template]


class _AddressedApi:
    """The handlers of one format."""

    def __init__(self, gateway: Gateway, memory: BodyMemory, call: Call, paths: ClientPaths) -> None:
        self._gateway, self._memory, self._call, self._paths = gateway, memory, call, paths

    async def post(self, request: Request) -> HttpResponse:
        """A model call, or an estimate of its tokens. Raises UnknownPath for another method, and the errors of `call`."""
        asked = self._paths.address(request.names[0], request.query)
        if asked is None:
            raise unknown_path(request.route.template.replace("{model}", request.names[0]))
        if asked.count_answer is not None:
            return await self._count(request, asked, asked.count_answer)
        answer = await self._call(CODECS[asked.form], request, asked.complete)
        wait = next((value for name, value in answer.headers if name == b"retry-after" and value.isdigit()), None)
        if wait is not None and answer.status >= 400:
            answer.body = self._paths.with_retry(answer.body, int(wait))
        return _in_array(answer) if asked.is_array else answer

    async def _count(
        self, request: Request, asked: AddressedCall, count_answer: Callable[[int], dict[str, object]]
    ) -> HttpResponse:
        most = self._gateway.routing.limits.max_body_bytes
        with self._memory.holding(request.key) as count:
            body = asked.complete(await read_body(request.receive, most, request.headers, count))
            tokens = self._gateway.count_tokens(CODECS[asked.form], body)
        return HttpResponse(200, [_JSON], _encode(count_answer(tokens)))

    async def models(self, request: Request) -> HttpResponse:
        """The models that the key permits."""
        key = request.key
        known = self._gateway.routing.known_models()
        cards = [self._paths.model_card(model) for model in known if key is None or allows(key.models, model)]
        return HttpResponse(200, [_JSON], _encode(self._paths.model_list(cards)))

    async def model(self, request: Request) -> HttpResponse:
        """Raises Forbidden, UnknownRequestedModel."""
        name = request.names[0]
        permitted_decision(self._gateway.decide(CallFacts(model=name)), request.key)
        return HttpResponse(200, [_JSON], _encode(self._paths.model_card(name)))


def _in_array(answer: HttpResponse) -> HttpResponse:
    """The events of a stream as the elements of one JSON array, as they arrive; an error as its only element."""
    if answer.pieces is None:
        return HttpResponse(answer.status, answer.headers, b"[%b]" % answer.body)
    headers = [_JSON if name == b"content-type" else (name, value) for name, value in answer.headers]
    return HttpResponse(answer.status, headers, pieces=_array(answer.pieces))


async def _array(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    parser, before = SseParser(), b"["
    async for piece in pieces:
        payloads = parser.feed(piece)
        for payload in payloads:
            yield before + payload
            before = b",\r\n"
        if not payloads:
            yield b"\n"  # a sign of life, which JSON ignores
    yield b"]" if before != b"[" else b"[]"
