"""The OpenAI-compatible routes."""

from __future__ import annotations

import msgspec

from overnight.domain import CallFacts, OvernightError
from overnight.gateway import Answer, Codec, Gateway, refusal

from .attributing import attribution
from .http import Headers, Receive, read_body

_encode = msgspec.json.Encoder().encode


class OpenAI:
    """`/v1`: chat completions and models. Errors have the shape of OpenAI's."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def call(self, form: Codec, headers: Headers, receive: Receive) -> Answer:
        """A model call in one of the wire formats."""
        try:
            body = await read_body(receive, self._gateway.routing.limits.max_body_bytes)
            return await self._gateway.call(form, body, attribution(headers))
        except OvernightError as error:
            return refusal(error, form)

    def models(self) -> Answer:
        cards = [self._card(model) for model in self._gateway.routing.known_models()]
        return Answer(200, [(b"content-type", b"application/json")], _encode({"object": "list", "data": cards}))

    def model(self, name: str) -> Answer:
        try:
            self._gateway.decide(CallFacts(model=name))
        except OvernightError as error:
            return refusal(error)
        return Answer(200, [(b"content-type", b"application/json")], _encode(self._card(name)))

    def _card(self, model: str) -> dict[str, object]:
        provider = self._gateway.routing.provider_for(model)
        return {"id": model, "object": "model", "created": 0, "owned_by": provider.name if provider else "overnight"}
