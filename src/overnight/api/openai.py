"""Routes for clients of OpenAI and Anthropic."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from overnight.domain import CallFacts, OvernightError, allows
from overnight.gateway import CODECS, Codec, Gateway, HttpResponse, error_response, permitted_decision
from overnight.http_server import Headers, Receive
from overnight.keys import VirtualKey

from .attribution import attribution, with_headers
from .body_memory import BodyMemory
from .requests import read_body

_encode = msgspec.json.Encoder().encode


class OpenAI:
    """`/v1`: model calls in every format, and models. Errors follow the format."""

    def __init__(self, gateway: Gateway, memory: BodyMemory) -> None:
        self._gateway, self._memory = gateway, memory

    async def call(
        self,
        form: Codec,
        headers: Headers,
        receive: Receive,
        key: VirtualKey | None,
        disconnected: Callable[[], bool] | None = None,
    ) -> HttpResponse:
        """A model call in one of the wire formats. `disconnected` returns whether the client has disconnected."""
        try:
            with self._memory.holding(key) as count:
                body = await read_body(receive, self._gateway.routing.limits.max_body_bytes, headers, count)
                who = attribution(headers, key)
                if self._gateway.routing.header_names:
                    who = with_headers(who, headers, self._gateway.routing.header_names)
                return await self._gateway.call(form, body, who, headers, disconnected)
        except OvernightError as error:
            return error_response(error, form)

    async def count_tokens(self, headers: Headers, receive: Receive, key: VirtualKey | None) -> HttpResponse:
        """Anthropic's count_tokens: an estimate, without cost."""
        try:
            with self._memory.holding(key) as count:
                body = await read_body(receive, self._gateway.routing.limits.max_body_bytes, headers, count)
                tokens = self._gateway.count_tokens(body)
        except OvernightError as error:
            return error_response(error, CODECS["messages"])
        return HttpResponse(200, [(b"content-type", b"application/json")], _encode({"input_tokens": tokens}))

    def models(self, key: VirtualKey | None) -> HttpResponse:
        """The models that the key permits."""
        known = self._gateway.routing.known_models()
        cards = [self._card(model) for model in known if key is None or allows(key.models, model)]
        page = (
            {"first_id": cards[0]["id"], "last_id": cards[-1]["id"]} if cards else {"first_id": None, "last_id": None}
        )
        body = {"object": "list", "data": cards, "has_more": False, **page}
        return HttpResponse(200, [(b"content-type", b"application/json")], _encode(body))

    def model(self, name: str, key: VirtualKey | None) -> HttpResponse:
        """Raises Forbidden, UnknownRequestedModel."""
        permitted_decision(self._gateway.decide(CallFacts(model=name)), key)
        return HttpResponse(200, [(b"content-type", b"application/json")], _encode(self._card(name)))

    def _card(self, model: str) -> dict[str, object]:
        """A model with the fields of OpenAI and Anthropic."""
        provider = self._gateway.routing.provider_for(model)
        owner = provider.name if provider else "overnight"
        card: dict[str, object] = {"id": model, "object": "model", "created": 0, "owned_by": owner}
        return card | {"type": "model", "display_name": model, "created_at": "1970-01-01T00:00:00Z"}
