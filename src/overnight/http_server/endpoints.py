"""The addresses of a connection for the ASGI scope of its requests."""

from __future__ import annotations

import asyncio
from typing import Any

from .asgi import Headers
from .forwarded import FORWARDED, TrustedProxies


class Endpoints:
    """Client and server address of one connection. A Unix socket has no client, and its path as the server address."""

    def __init__(self, transport: asyncio.Transport, proxies: TrustedProxies, root_path: str) -> None:
        peer: Any = transport.get_extra_info("peername")
        bound: Any = transport.get_extra_info("sockname")
        self.client: tuple[str, int] | None = (peer[0], peer[1]) if peer and not isinstance(peer, str | bytes) else None
        is_path = not bound or isinstance(bound, str | bytes)
        address: Any = (str(bound or ""), None) if is_path else (bound[0], bound[1])
        self.server: tuple[str, int | None] = address
        self._proxies, self._root_path = proxies, root_path
        self._is_proxy = proxies.trusts(self.client[0] if self.client else "")

    def add_to(self, scope: dict[str, Any], headers: Headers) -> None:
        """Set `client`, `server`, `scheme` and `root_path`. An ASGI path includes the root path, so it is added if a proxy
        removed it."""
        scope["client"], scope["server"] = self.client, self.server
        scope["root_path"] = root = self._root_path
        if root and not (scope["path"] + "/").startswith(root + "/"):
            scope["path"], scope["raw_path"] = root + scope["path"], root.encode() + scope["raw_path"]
        found = self._proxies.client_of(headers) if self._is_proxy else None
        if found is None:
            return
        if self.client is not None:
            scope[FORWARDED] = True
        if found.host is not None:
            scope["client"] = (found.host, 0)
        if found.scheme is not None:
            scope["scheme"] = found.scheme
