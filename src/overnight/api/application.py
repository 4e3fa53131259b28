"""The front of all paths, in plain ASGI: it checks Host, Origin, content type, key and scope before a body is read.

Behind it are two halves that need not be in one process: the model calls, in plain ASGI, and `/api/v1`, in FastAPI.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from functools import partial

from overnight.domain import BadInput, Forbidden, OvernightError
from overnight.gateway import (
    Gateway,
    HttpResponse,
    Overloaded,
    RateLimited,
    UnknownPath,
    error_response,
    internal_error_response,
)
from overnight.http_server import DIRECT, Direct, Message, Receive, Scope, Send
from overnight.http_server.connection_limits import ConnectionLimits
from overnight.http_server.relay import RelayBroken, RelayUnavailable, UnixRelay
from overnight.keys import Keyring, VirtualKey
from overnight.ledger import Ledger
from overnight.outgoing import AddressPolicy
from overnight.tools import ToolPolicy

from .access_log import KEY, KEY_NAME, TEMPLATE, AccessLog
from .attribution import tenant_of
from .authentication import Authenticator
from .body_memory import BodyMemory
from .browser_guard import BrowserGuard, check_content_type
from .effect_problems import effect_problem
from .effects import PATH as EFFECTS
from .effects import EffectsApi
from .model_calls import ModelCalls
from .problems import MethodNotAllowed, problem, problem_of
from .readiness import ReadyApi
from .requests import ClientLeft, Request, send_answer
from .rest_application import RestApplication
from .rest_services import RestServices
from .review_links import ReviewLinksApi, is_link_path
from .routes import CALLS, PathRoute, find_route, format_of, is_call_path

log = logging.getLogger("overnight.api")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
AsgiApplication = Callable[[Scope, Receive, Send], Awaitable[None]]


class Application:
    """A plain ASGI application. `hosts` are the accepted host names (None: any), which protects against DNS rebinding: a web
    page that resolves its own name to this address can neither spend money nor read jobs.

    `calls` serves model calls, `effects` claims of effects. `rest` serves `/api/v1` and `links` one-time links, or `forward`
    passes their requests on to the process that does.
    """

    def __init__(
        self,
        ledger: Ledger,
        keyring: Keyring,
        *,
        hosts: Collection[str] | None,
        auth: str,
        requests_per_key: int,
        calls: ModelCalls | None = None,
        effects: EffectsApi | None = None,
        rest: RestApplication | None = None,
        links: ReviewLinksApi | None = None,
        forward: AsgiApplication | None = None,
        access_log: AccessLog | None = None,
    ) -> None:
        self._requests, self._requests_per_key = dict[str, int](), requests_per_key
        self._calls, self._effects, self._rest, self._links = calls, effects, rest, links
        self._forward = forward
        self._ready = ReadyApi(ledger.store)
        self._authenticator = Authenticator(keyring, loopback=hosts is not None, auth=auth)
        self._guard = None if hosts is None else BrowserGuard(hosts)
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _other(scope, receive, send)
            return
        if scope.get("root_path"):
            scope = _below_root(scope)
        if self._access_log is not None:
            await self._access_log.write(scope, receive, send, self._counted)
        else:
            await self._counted(scope, receive, send)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._serve(scope, receive, send)
        finally:
            self._release(scope)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def tracked(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            answer = await self._answer(scope, receive, tracked)
        except ClientLeft:
            return
        except OvernightError as error:
            answer = _error_answer(scope, error)
        except Exception:
            if has_begun:
                raise  # the server closes the connection, so that the part does not look whole
            log.exception("internal error in a request: %s", scope["method"])
            answer = _internal_error(scope)
        if answer is not None:
            await send_answer(scope, send, answer)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> HttpResponse | None:
        """The response; None if another application has sent it."""
        path: str = scope["path"]
        method: str = scope["method"]
        headers = scope["headers"]
        guard = None if is_link_path(path) else self._guard  # links compare origins by themselves
        origin = guard.forbidden_origin(method, headers) if guard else None
        if origin is not None:
            raise Forbidden(f"cross-origin request: {origin}")
        form = CALLS.get(path)
        if form is not None and method == "POST" and self._calls is not None:
            check_content_type(method, headers)
            key = await self._authenticator.authenticate(headers, "calls", scope)
            self._count(scope, key)
            direct: Direct | None = scope.get("extensions", {}).get(DIRECT)
            return await self._calls.call(form, headers, receive, key, direct.detect_disconnect if direct else None)
        return await self._answer_other(scope, receive, send)

    async def _answer_other(self, scope: Scope, receive: Receive, send: Send) -> HttpResponse | None:
        """As `_answer`, for all paths but those of model calls."""
        route, names = find_route(scope)
        scope[TEMPLATE] = route.template
        if route.part == "probes":
            return await self._probe(route)
        method, headers = scope["method"], scope["headers"]
        if route.part != "links":
            check_content_type(method, headers)
        needed = route.scope
        check = self._authenticator.authenticate
        request = Request(
            route=route,
            names=names,
            method=method,
            query=scope["query_string"],
            headers=headers,
            receive=receive,
            authenticate=_public if needed is None else partial(check, headers, needed, scope),
        )
        direct: Direct | None = scope.get("extensions", {}).get(DIRECT)
        request.detect_disconnect = direct.detect_disconnect if direct else None
        if needed is not None:
            request.key = await check(headers, needed, scope)
            self._count(scope, request.key)
            request.tenant_id = tenant_of(headers, request.key)
        if route.part == "calls" and self._calls is not None:
            return await self._calls.answer(request)
        if route.part == "effects" and self._effects is not None:
            return await self._effects.answer(request)
        if route.part == "rest" and self._rest is not None:
            return await self._rest.answer(request, scope, send)
        if route.part == "links" and self._links is not None:
            return await self._links.answer(request)
        if self._forward is None:
            raise UnknownPath(f"{route.template} is not served by this process; send model calls to the gateway")
        return await self._forwarded(self._forward, scope, receive, send)

    async def _forwarded(
        self, forward: AsgiApplication, scope: Scope, receive: Receive, send: Send
    ) -> HttpResponse | None:
        self._release(scope)  # the api process counts its own requests
        try:
            await forward(scope, receive, send)
        except RelayUnavailable as error:
            log.warning("the api process did not take a request: %s", error)
            raise Overloaded("the API process is starting; try again") from None
        except RelayBroken as error:
            log.warning("the api process did not answer: %s", error)
            if scope["method"] in ("GET", "HEAD"):
                raise Overloaded("the API process is starting; try again") from None
            return problem_of(502, "Bad gateway", "the API process ended; check whether the request was executed")
        return None

    async def _probe(self, route: PathRoute) -> HttpResponse:
        if route.template == "/readyz":
            return await self._ready.answer()
        return HttpResponse(200, [(b"content-type", b"application/json")], b'{"status":"ok"}')

    def _count(self, scope: Scope, key: VirtualKey | None) -> None:
        """Count a request of a key until its response is sent. Raises RateLimited."""
        if key is None:
            return
        count = self._requests.get(key.key_id, 0)
        if count >= self._requests_per_key:
            limit = f"maximum of {self._requests_per_key:,} concurrent requests"
            raise RateLimited(f"key {key.name}: {limit} reached (OVERNIGHT_MAX_CONNECTIONS_PER_KEY)", 1)
        self._requests[key.key_id] = count + 1
        scope[KEY] = key.key_id
        if self._access_log is not None:
            scope[KEY_NAME] = key.name

    def _release(self, scope: Scope) -> None:
        key_id = scope.pop(KEY, None)
        if key_id is not None:
            self._requests[key_id] -= 1
            if not self._requests[key_id]:
                del self._requests[key_id]


def _below_root(scope: Scope) -> Scope:
    """The scope without the prefix under which a proxy serves this application."""
    root: str = scope["root_path"]
    path, raw = scope["path"], scope.get("raw_path") or b""
    below = {**scope, "root_path": "", "path": path.removeprefix(root) or "/"}
    below["raw_path"] = raw.removeprefix(root.encode()) or b"/"
    return below


def _error_answer(scope: Scope, error: OvernightError) -> HttpResponse:
    """An expected error in the format of the path."""
    method, path = scope["method"], scope["path"]
    if path.startswith(EFFECTS):
        return effect_problem(error)
    if not is_call_path(method, path):
        return problem(error)
    if not isinstance(error, MethodNotAllowed):
        return error_response(error, format_of(method, path))
    answer = error_response(BadInput(str(error)), format_of(method, path))
    return HttpResponse(405, [*answer.headers, (b"allow", error.allowed.encode())], answer.body)


def _internal_error(scope: Scope) -> HttpResponse:
    method, path = scope["method"], scope["path"]
    if is_call_path(method, path):
        return internal_error_response(format_of(method, path))
    return problem_of(500, "Internal server error", "see the log of the gateway")


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


async def _public() -> None:
    """Authenticate a request of a path that needs no key."""


def application(
    gateway: Gateway,
    ledger: Ledger,
    *,
    hosts: Collection[str] | None = LOOPBACK,
    auth: str = "auto",
    requests_per_key: int = ConnectionLimits().per_key,
    public_url: str = "",
    outgoing: AddressPolicy | None = None,
    tool_policy: Callable[[], ToolPolicy | None] = lambda: None,
    access_log: AccessLog | None = None,
    api_socket: str | None = None,
) -> Application:
    """The application to serve with `Server`; the gateway must be started. `hosts`: accepted host names; None accepts any and
    always requires keys. `auth` is OVERNIGHT_AUTH: auto, required or off. `public_url` is where clients reach it, for links.
    `outgoing` are the hosts that addresses of tenants may reach. `tool_policy` returns the present contracts and rules of tools.
    `api_socket`: the unix socket of the process that serves `/api/v1`; without one, this process does."""
    memory = BodyMemory(lambda: gateway.routing.limits.max_body_bytes)
    services = RestServices(
        ledger=ledger,
        keyring=gateway.keys,
        start_job=gateway.start_job,
        policy=lambda: gateway.policy,
        providers=lambda: [each.name for each in gateway.routing.providers],
        memory=memory,
        public_url=public_url,
        outgoing=outgoing or AddressPolicy(),
        tool_policy=tool_policy,
    )
    return Application(
        ledger,
        gateway.keys,
        hosts=hosts,
        auth=auth,
        requests_per_key=requests_per_key,
        calls=ModelCalls(gateway, memory),
        effects=EffectsApi(gateway, memory),
        rest=RestApplication(services) if api_socket is None else None,
        links=ReviewLinksApi(ledger, public_url, memory) if api_socket is None else None,
        forward=UnixRelay(api_socket) if api_socket is not None else None,
        access_log=access_log,
    )


def rest_application(
    services: RestServices,
    *,
    hosts: Collection[str] | None = LOOPBACK,
    auth: str = "auto",
    requests_per_key: int = ConnectionLimits().per_key,
    access_log: AccessLog | None = None,
) -> Application:
    """The application of a process that serves `/api/v1` alone, and no model calls."""
    return Application(
        services.ledger,
        services.keyring,
        hosts=hosts,
        auth=auth,
        requests_per_key=requests_per_key,
        rest=RestApplication(services),
        links=ReviewLinksApi(services.ledger, services.public_url, services.memory),
        access_log=access_log,
    )
