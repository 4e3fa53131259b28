"""The way from the front to the FastAPI application below `/api/v1`. FastAPI is imported with the first such request."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

from overnight.gateway import HttpResponse
from overnight.http_server import Message, Scope, Send

from .problems import problem_of
from .requests import Request, read_body
from .rest_services import REQUEST, RestServices

if TYPE_CHECKING:
    from starlette.types import ASGIApp

log = logging.getLogger("overnight.api")
MAX_BODY = 8 * 1024 * 1024
_JSON = (b"content-type", b"application/json")


class RestApplication:
    """Serves requests that the front has let in."""

    def __init__(self, services: RestServices) -> None:
        self._services = services
        self._app: asyncio.Task[ASGIApp] | None = None

    async def answer(self, request: Request, scope: Scope, send: Send) -> HttpResponse | None:
        """Read the body and run the application; the response, or None if it is sent. Raises BodyTooLarge, RateLimited,
        Overloaded, ClientLeft."""
        if self._app is None:
            self._app = asyncio.create_task(asyncio.to_thread(_create, self._services))
        app = await asyncio.shield(self._app)
        with self._services.memory.holding(request.key) as count:
            if request.method in ("POST", "PUT", "PATCH"):
                request.body = await read_body(request.receive, MAX_BODY, request.headers, count) or b"{}"
            return await self._run(app, request, scope, send)

    async def _run(self, app: ASGIApp, request: Request, scope: Scope, send: Send) -> HttpResponse | None:
        has_begun = False

        async def begin(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await app(_inner_scope(request, scope), request.receive, begin)
        except Exception:
            if has_begun:
                raise
            log.exception("internal error in a request: %s", request.method)
            return problem_of(500, "Internal server error", "see the log of the gateway")
        return None


def _create(services: RestServices) -> ASGIApp:
    from .rest.application import create

    return create(services)


def _inner_scope(request: Request, scope: Scope) -> Scope:
    """The scope for FastAPI: the path of the table's row, with its names encoded, since a name may hold slashes. HEAD becomes
    GET; the server sends no body to it. A body is always JSON."""
    names = iter(request.names)
    parts = [
        quote(next(names), safe="") if part.startswith("{") else part for part in request.route.template.split("/")
    ]
    path = "/".join(parts)
    headers = [each for each in request.headers if each[0] != _JSON[0]]
    return {
        **scope,
        "method": request.route.method,
        "path": path,
        "raw_path": path.encode(),
        "headers": [*headers, _JSON],
        REQUEST: request,
    }
