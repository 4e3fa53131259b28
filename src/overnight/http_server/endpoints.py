"""The two ends of a connection, as the scope of each of its requests names them."""

from __future__ import annotations

import asyncio
from typing import Any

from .asgi import Headers
from .forwarded import FORWARDED, TrustedProxies


class Endpoints:
    """`client` is who connected; a Unix socket has none, and a path instead of an address."""

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
        """Set `client`, `server`, `scheme` and `root_path`. In ASGI a path begins with the root path, which a proxy may have
        removed."""
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
