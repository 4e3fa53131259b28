"""What the endpoints share: the request that the front let in, their responses, and errors of bodies and queries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import fastapi
import msgspec
from fastapi import Depends, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from overnight.domain import BadInput, KeyScope, OvernightError
from overnight.gateway import HttpResponse
from overnight.jobs import Operations
from overnight.keys import Keys
from overnight.notifications import Addresses

from ..attribution import key_scope_of
from ..event_streams import EventStreams
from ..problems import problem, problem_of
from ..requests import Request, send_answer
from ..rest_services import REQUEST, RestServices
from .validation import invalid_body, invalid_request, unknown_name

log = logging.getLogger("overnight.api")
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What the endpoints work with, for the life of the application."""

    services: RestServices
    operations: Operations
    keys: Keys
    addresses: Addresses
    streams: EventStreams


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One call of an endpoint."""

    request: Request
    tools: Toolbox

    @property
    def tenant_id(self) -> str:
        return self.request.tenant_id

    @property
    def actor(self) -> str:
        return self.request.actor

    @property
    def key_scope(self) -> KeyScope:
        return key_scope_of(self.request.key)

    @property
    def services(self) -> RestServices:
        return self.tools.services


async def _call_of(request: fastapi.Request) -> ApiCall:
    return ApiCall(request.scope[REQUEST], request.app.state.tools)


Call = Annotated[ApiCall, Depends(_call_of)]


class Answer(Response):
    """A finished response, sent as it is."""

    def __init__(self, answer: HttpResponse) -> None:
        super().__init__(status_code=answer.status)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        await send_answer(scope, send, self._answer)


def json_answer(status: int, body: Any, *headers: tuple[bytes, bytes]) -> Answer:
    return Answer(HttpResponse(status, [(b"content-type", b"application/json"), *headers], _encode(body)))


class _JsonRequest(fastapi.Request):
    """The body was read by the front, and parsed by msgspec, which refuses what JSON does not have, such as NaN."""

    def __init__(self, scope: Scope, receive: Receive, value: Any) -> None:
        super().__init__(scope, receive)
        self._value = value

    async def body(self) -> bytes:
        return self.scope[REQUEST].body

    async def json(self) -> Any:
        return self._value


class ApiRoute(APIRoute):
    """Turns errors into problems, so that FastAPI's own error responses are never sent."""

    def get_route_handler(self) -> Callable[[fastapi.Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        fields = _fields_of([self.body_field] if self.body_field is not None else [])
        has_body, parameters = self.body_field is not None, _fields_of(self.dependant.query_params)

        async def checked(request: fastapi.Request) -> Response:
            asked: Request = request.scope[REQUEST]
            try:
                for name in request.query_params:
                    if name not in parameters:
                        raise unknown_name("query parameter", name, parameters)
                value = _json_of(asked.body, fields) if has_body else None
                return await handle(_JsonRequest(request.scope, request.receive, value))
            except RequestValidationError as error:
                return Answer(problem(invalid_request(error.errors(), fields)))
            except OvernightError as error:
                return Answer(problem(error))
            except Exception:
                log.exception("internal error in a request: %s", asked.method)
                return Answer(problem_of(500, "Internal server error", "see the log of the gateway"))

        return checked


def _fields_of(models: Sequence[Any]) -> list[str]:
    """The names that clients use for the fields of Pydantic models."""
    found = [each.field_info.annotation.model_fields for each in models]
    return [field.alias or name for fields in found for name, field in fields.items()]


def _json_of(body: bytes, fields: list[str]) -> Any:
    """Raises BadInput, with the fields that there are."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_body(str(error), fields) from None


def no_nul(value: str, place: str) -> str:
    """The text, if a store can hold it. Raises BadInput."""
    if "\0" in value:
        raise BadInput(f"{place}: the character '\\x00' is not allowed")
    return value
