"""The gateway's port in front of the `api` process: model calls stay here, everything else goes there."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from overnight.http_server import Receive, Scope, Send
from overnight.http_server.relay import RelayUnavailable, UnixRelay

from .problems import problem_of
from .requests import send_answer

log = logging.getLogger("overnight.api")
_HERE = ("/healthz", "/readyz")
_RETRY_S = b"1"


class ApiRelay:
    """An ASGI application: `gateway` serves model calls and the probes, the process on the unix socket `path` all other paths.

    That process checks keys, hosts and origins as the gateway does. While it restarts, its paths return 503 with `retry-after`.
    """

    def __init__(self, gateway: Callable[[Scope, Receive, Send], Awaitable[None]], path: str) -> None:
        self._gateway, self._relay = gateway, UnixRelay(path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", ""))
        if scope["type"] != "http" or path.startswith("/v1/") or path in _HERE:
            await self._gateway(scope, receive, send)
            return
        try:
            await self._relay(scope, receive, send)
        except RelayUnavailable as error:
            log.warning("the api process did not answer: %s", error)
            answer = problem_of(503, "Service unavailable", "the API process is starting; try again")
            answer.headers.append((b"retry-after", _RETRY_S))
            await send_answer(scope, send, answer)
