"""The plain ASGI handlers below `/v1`: model calls in every format, stored responses and models."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from overnight.domain import CallFacts, OvernightError, allows
from overnight.gateway import CODECS, Codec, Gateway, HttpResponse, error_response, permitted_decision
from overnight.http_server import Headers, Receive
from overnight.keys import VirtualKey

from .addressed_calls import handler_of, handlers_of
from .attribution import attribution, with_headers
from .body_memory import BodyMemory
from .requests import Request, read_body
from .responses import ResponsesApi
from .routes import COUNT_TOKENS

_encode = msgspec.json.Encoder().encode


class ModelCalls:
    """`/v1`: model calls in every format, and models. Errors follow the format."""

    def __init__(self, gateway: Gateway, memory: BodyMemory) -> None:
        self._gateway, self._memory = gateway, memory
        responses = ResponsesApi(gateway)
        self._handlers: dict[tuple[str, str], Callable[[Request], Awaitable[HttpResponse]]] = {
            ("POST", COUNT_TOKENS): self.count_tokens,
            ("GET", "/v1/models"): self.models,
            ("GET", "/v1/models/{model}"): self.model,
            ("GET", "/v1/responses/{response}"): responses.one,
            ("DELETE", "/v1/responses/{response}"): responses.delete,
            ("GET", "/v1/responses/{response}/input_items"): responses.items,
            **handlers_of(gateway, memory, self._addressed_call),
        }

    async def answer(self, request: Request) -> HttpResponse:
        """The response of every path but those of the calls themselves. Raises OvernightError."""
        return await handler_of(request, self._handlers)(request)

    async def call(
        self,
        form: Codec,
        headers: Headers,
        receive: Receive,
        key: VirtualKey | None,
        disconnected: Callable[[], bool] | None = None,
        complete: Callable[[bytes], bytes] | None = None,
    ) -> HttpResponse:
        """A model call in one of the wire formats.

        Args:
            disconnected: whether the client has disconnected.
            complete: completes the body with what its path says.
        """
        try:
            with self._memory.holding(key) as count:
                body = await read_body(receive, self._gateway.routing.limits.max_body_bytes, headers, count)
                if complete is not None:
                    body = complete(body)
                who = attribution(headers, key)
                if self._gateway.routing.header_names:
                    who = with_headers(who, headers, self._gateway.routing.header_names)
                return await self._gateway.call(form, body, who, headers, disconnected)
        except OvernightError as error:
            return error_response(error, form)

    async def _addressed_call(self, form: Codec, request: Request, complete: Callable[[bytes], bytes]) -> HttpResponse:
        return await self.call(form, request.headers, request.receive, request.key, request.detect_disconnect, complete)

    async def count_tokens(self, request: Request) -> HttpResponse:
        """Anthropic's count_tokens: an estimate, without cost."""
        most = self._gateway.routing.limits.max_body_bytes
        with self._memory.holding(request.key) as count:
            body = await read_body(request.receive, most, request.headers, count)
            tokens = self._gateway.count_tokens(CODECS["messages"], body)
        return HttpResponse(200, [(b"content-type", b"application/json")], _encode({"input_tokens": tokens}))

    async def models(self, request: Request) -> HttpResponse:
        """The models that the key permits."""
        key = request.key
        known = self._gateway.routing.known_models()
        cards = [self._card(model) for model in known if key is None or allows(key.models, model)]
        page = (
            {"first_id": cards[0]["id"], "last_id": cards[-1]["id"]} if cards else {"first_id": None, "last_id": None}
        )
        body = {"object": "list", "data": cards, "has_more": False, **page}
        return HttpResponse(200, [(b"content-type", b"application/json")], _encode(body))

    async def model(self, request: Request) -> HttpResponse:
        """Raises Forbidden, UnknownRequestedModel."""
        name = request.names[0]
        permitted_decision(self._gateway.decide(CallFacts(model=name)), request.key)
        self._gateway.check_model_name(name)
        return HttpResponse(200, [(b"content-type", b"application/json")], _encode(self._card(name)))

    def _card(self, model: str) -> dict[str, object]:
        """A model with the fields of OpenAI and Anthropic."""
        provider = self._gateway.routing.provider_for(model)
        owner = provider.name if provider else "overnight"
        card: dict[str, object] = {"id": model, "object": "model", "created": 0, "owned_by": owner}
        return card | {"type": "model", "display_name": model, "created_at": "1970-01-01T00:00:00Z"}
