"""The ASGI application: routing of paths, authentication, and responses to unexpected errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from functools import partial

from overnight.domain import BadInput, Forbidden, OvernightError
from overnight.gateway import (
    CHAT,
    CODECS,
    Codec,
    Gateway,
    HttpResponse,
    RateLimited,
    UnknownPath,
    error_response,
    internal_error_response,
)
from overnight.http_server import DIRECT, Direct, Receive, Scope, Send
from overnight.http_server.connection_limits import ConnectionLimits
from overnight.keys import VirtualKey
from overnight.ledger import Ledger

from . import openapi
from .api_relay import ApiRelay
from .attribution import tenant_of
from .authentication import Authenticator, scope_of
from .body_memory import BodyMemory
from .bounds import BoundsApi
from .browser_guard import BrowserGuard, check_content_type
from .budgets import BudgetsApi
from .circuits import Circuits
from .jobs import Jobs
from .keys import KeysApi
from .openai import OpenAI
from .problems import MethodNotAllowed, problem, problem_of
from .readiness import ReadyApi
from .requests import ClientLeft, Request, parts_of, send_answer
from .responses import ResponsesApi

log = logging.getLogger("overnight.api")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_KEY = "overnight.key"
"""Where a request's scope holds its key while it is counted."""
Handler = Callable[[Request], Awaitable[HttpResponse]]
_COUNT = "/v1/messages/count_tokens"
_CALLS = {f"/v1{codec.path}": codec for codec in CODECS.values()}


class Application:
    """A plain ASGI application. `hosts` are the accepted host names (None: any), which protects against DNS rebinding: a web
    page that resolves its own name to this address can neither spend money nor read jobs."""

    def __init__(
        self, gateway: Gateway, ledger: Ledger, hosts: Collection[str] | None, auth: str, requests_per_key: int
    ) -> None:
        self._memory = BodyMemory(lambda: gateway.routing.limits.max_body_bytes)
        self._requests, self._requests_per_key = dict[str, int](), requests_per_key
        self._openai = OpenAI(gateway, self._memory)
        self._responses = ResponsesApi(gateway)
        self._ready = ReadyApi(ledger.store)
        self._authenticator = Authenticator(gateway.keys, loopback=hosts is not None, auth=auth)
        jobs, keys, budgets = Jobs(gateway, ledger), KeysApi(gateway), BudgetsApi(gateway, ledger)
        bounds = BoundsApi(ledger)
        self._guard = None if hosts is None else BrowserGuard(hosts)
        # Below /api/v1, the second part stands for any name.
        self.routes: dict[tuple[str, ...], dict[str, Handler]] = {
            ("jobs",): {"GET": jobs.list},
            ("jobs", ""): {"GET": jobs.one},
            ("jobs", "", "events"): {"GET": jobs.events},
            ("jobs", "", "attempts"): {"POST": jobs.attempts},
            ("jobs", "", "complete"): {"POST": jobs.complete},
            ("jobs", "", "cancel"): {"POST": jobs.cancel},
            ("budgets",): {"GET": budgets.list, "POST": budgets.top_up},
            ("bounds",): {"GET": bounds.list},
            ("bounds", "", "settle"): {"POST": bounds.settle},
            ("circuits",): {"GET": Circuits(ledger.store).list},
            ("keys",): {"GET": keys.list, "POST": keys.create},
            ("keys", ""): {"GET": keys.one},
            ("keys", "", "rotate"): {"POST": keys.rotate},
            ("keys", "", "revoke"): {"POST": keys.revoke},
            ("provider-keys",): {"GET": keys.providers},
            ("provider-keys", ""): {"PUT": keys.set_provider, "DELETE": keys.drop_provider},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _other(scope, receive, send)
            return
        try:
            await self._serve(scope, receive, send)
        finally:
            self._release(scope)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._answer(scope, receive)
        except ClientLeft:
            return
        except Exception:
            log.exception("internal error in a request: %s", scope["method"])
            path = str(scope["path"])
            own = path.startswith("/api/")
            answer = (
                problem_of(500, "Internal server error", "see the log of the gateway")
                if own
                else internal_error_response(_format_of(path))
            )
        await send_answer(scope, send, answer)

    async def _answer(self, scope: Scope, receive: Receive) -> HttpResponse:
        path: str = scope["path"]
        method: str = scope["method"]
        origin = self._guard.forbidden_origin(method, scope["headers"]) if self._guard else None
        if origin is not None:
            if path.startswith("/v1/"):
                return error_response(Forbidden(f"cross-origin request: {origin}"), _format_of(path))
            return problem_of(403, "Forbidden", f"cross-origin request: {origin}")
        if path == "/healthz":
            return HttpResponse(200, [(b"content-type", b"application/json")], b'{"status":"ok"}')
        if path == "/readyz":
            return await self._ready.answer()
        if path == "/openapi.json" and method == "GET":
            return await asyncio.to_thread(openapi.answer)
        form, headers, parts = _CALLS.get(path), scope["headers"], parts_of(scope)
        own = len(parts) > 1 and parts[0] == "api"
        try:
            check_content_type(method, headers)
            if form is not None and method == "POST":
                key = await self._authenticator.authenticate(headers, "calls")
                self._count(scope, key)
                direct: Direct | None = scope.get("extensions", {}).get(DIRECT)
                return await self._openai.call(form, headers, receive, key, direct.has_left if direct else None)
            needed = scope_of(path, method)
            again = partial(self._authenticator.authenticate, headers, needed)
            request = Request(
                method=method,
                path=path,
                parts=parts,
                query=scope["query_string"],
                headers=headers,
                receive=receive,
                memory=self._memory,
                authenticate=again,
            )
            handler = self._handler(request) if own else self._v1
            key = request.key = await self._authenticator.authenticate(headers, needed)
            self._count(scope, key)
            request.tenant_id = tenant_of(headers, key)
            return await handler(request)
        except OvernightError as error:
            return problem(error) if own else error_response(error, _format_of(path))

    async def _v1(self, request: Request) -> HttpResponse:
        parts = request.parts
        if parts[:2] == ["v1", "models"] and request.method == "GET":
            name = "/".join(parts[2:])
            return self._openai.model(name, request.key) if name else self._openai.models(request.key)
        if parts[:2] == ["v1", "responses"] and (len(parts) == 3 or parts[3:] == ["input_items"]):
            return await self._responses.answer(request)
        if request.path == _COUNT and request.method == "POST":
            return await self._openai.count_tokens(request.headers, request.receive, request.key)
        if request.path in (*_CALLS, _COUNT) or request.path == "/v1/models":
            allowed = "GET" if request.path == "/v1/models" else "POST"
            answer = error_response(BadInput(str(MethodNotAllowed(request.method, allowed))), _format_of(request.path))
            return HttpResponse(405, [*answer.headers, (b"allow", allowed.encode())], answer.body)
        raise _unknown_path(request.path)

    def _handler(self, request: Request) -> Handler:
        _, version, *parts = request.parts
        named = (parts[0], "", *parts[2:]) if len(parts) > 1 else tuple(parts)
        methods = self.routes.get(named) if version == "v1" else None
        if methods is None:
            raise _unknown_path(request.path)
        handler = methods.get(request.method)
        if handler is None:
            raise MethodNotAllowed(request.method, ", ".join(methods))
        return handler

    def _count(self, scope: Scope, key: VirtualKey | None) -> None:
        """Count a request of a key until its response is sent. Raises RateLimited."""
        if key is None:
            return
        count = self._requests.get(key.key_id, 0)
        if count >= self._requests_per_key:
            limit = f"maximum of {self._requests_per_key:,} concurrent requests"
            raise RateLimited(f"key {key.name}: {limit} reached (OVERNIGHT_MAX_CONNECTIONS_PER_KEY)", 1)
        self._requests[key.key_id] = count + 1
        scope[_KEY] = key.key_id

    def _release(self, scope: Scope) -> None:
        key_id = scope.get(_KEY)
        if key_id is not None:
            self._requests[key_id] -= 1
            if not self._requests[key_id]:
                del self._requests[key_id]


def _format_of(path: str) -> Codec:
    """The format in which errors of a path are written."""
    return _CALLS.get(path) or (CODECS["messages"] if path.startswith("/v1/messages/") else CHAT)


def _unknown_path(path: str) -> UnknownPath:
    known = ", ".join((*_CALLS, "/v1/models", "/api/v1/jobs"))
    return UnknownPath(f"path {ascii(path[:200])[1:-1]}; available: {known}")


async def _other(scope: Scope, receive: Receive, send: Send) -> None:
    """Acknowledge start and stop; close WebSockets, which are not supported."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await send({"type": "websocket.close"})


def application(
    gateway: Gateway,
    ledger: Ledger,
    *,
    hosts: Collection[str] | None = LOOPBACK,
    auth: str = "auto",
    requests_per_key: int = ConnectionLimits().per_key,
    api_socket: str | None = None,
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The application to serve with `Server`; the gateway must be started. `hosts`: accepted host names; None accepts any and
    always requires keys. `auth` is OVERNIGHT_AUTH: auto, required or off. `api_socket`: the unix socket of the process that
    serves all but model calls."""
    served = Application(gateway, ledger, hosts, auth, requests_per_key)
    return served if api_socket is None else ApiRelay(served, api_socket)
