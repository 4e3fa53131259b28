"""The HTTP server of a process: listens, runs the application for each request, and stops gracefully."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import suppress
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, cast

from .asgi import Receive, Scope, Send
from .connection import Connection
from .connection_limits import ConnectionCounts, ConnectionLimits
from .exchange import Exchange
from .forwarded import TrustedProxies
from .lifespan import Lifespan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger("overnight.api")
IDLE_TIMEOUT_S = 75.0
"""Maximum time without activity of a client that the server waits for. Longer than the keep-alive timeout of common clients."""
HEAD_TIMEOUT_S = 20.0
"""Maximum time between the first and the last byte of a request head."""
BODY_WINDOW_S, MIN_BODY_BYTES_PER_S = 30.0, 1024
"""Minimum rate of a request body, averaged over windows of this length in seconds. The slowest mobile networks are ten times
faster."""
CHECK_INTERVAL_S = 1.0
BACKLOG = 2048
_FAULT = b'{"error":{"message":"internal error; see the log for details","type":"api_error"}}'
_FAULT_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_FAULT))]


class Server:
    """Serves one ASGI application over HTTP/1.1, from `start` to `stop`."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        head_timeout_s: float = HEAD_TIMEOUT_S,
        body_window_s: float = BODY_WINDOW_S,
        limits: ConnectionLimits | None = None,
        proxies: TrustedProxies | None = None,
        root_path: str = "",
        lifespan: bool = False,
    ) -> None:
        """Configure the server.

        Args:
            app: the ASGI application.
            idle_timeout_s, head_timeout_s, body_window_s: time limits of clients in seconds (see the constants of this module).
            limits: limits on connections.
            proxies: the proxies whose forwarded headers are read; default: none.
            root_path: the prefix under which a proxy serves the application.
            lifespan: notify the application of start and stop.
        """
        self._app = app
        self.proxies, self.root_path = proxies or TrustedProxies(), root_path.rstrip("/")
        self._lifespan = Lifespan(app) if lifespan else None
        self.idle_timeout_s, self.head_timeout_s, self.body_window_s = idle_timeout_s, head_timeout_s, body_window_s
        self.min_body_bytes_per_s = MIN_BODY_BYTES_PER_S
        self._counts = ConnectionCounts(limits or ConnectionLimits())
        self.connections: set[Connection] = set()
        self.is_stopping = False
        self.date = b""
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen, and return the bound address and port. Port 0 selects a free port. Raises OSError, LifespanFailed."""
        self._loop = asyncio.get_running_loop()
        if self._lifespan is not None:
            await self._lifespan.start()
        self._tick()
        self._listener = await self._loop.create_server(lambda: Connection(self), host, port, backlog=BACKLOG)
        bound = self._listener.sockets[0].getsockname()
        return bound[0], bound[1]

    async def start_unix(self, path: str) -> None:
        """Listen on a unix socket that only this user can access. Raises OSError, LifespanFailed."""
        self._loop = asyncio.get_running_loop()
        if self._lifespan is not None:
            await self._lifespan.start()
        self._tick()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with suppress(FileNotFoundError):
            os.unlink(path)  # left by an earlier process
        old = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(old)
        self._listener = await self._loop.create_unix_server(lambda: Connection(self), sock=listener, backlog=BACKLOG)

    def now(self) -> float:
        """The loop's clock, in seconds."""
        return self._loop.time()

    async def stop(self, grace_s: float = 5.0) -> None:
        """Stop accepting requests, wait up to `grace_s` seconds for responses in progress, then abort them."""
        self.is_stopping = True
        if self._listener is not None:
            self._listener.close()
        for connection in tuple(self.connections):
            connection.finish()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._tasks or self.connections:
                    self._changed.clear()
                    await self._changed.wait()
        for connection in tuple(self.connections):
            connection.transport.abort()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        if self._timer is not None:
            self._timer.cancel()
        if self._lifespan is not None:
            await self._lifespan.stop(grace_s)

    def run(self, exchange: Exchange) -> None:
        """Start the application for a request. It runs to its end even if the client disconnects."""
        task = exchange.task = self._loop.create_task(self._run(exchange))
        self._tasks.add(task)

    async def _run(self, exchange: Exchange) -> None:
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
            if not exchange.answered and not exchange.disconnected:
                exchange.connection.transport.abort()
        except Exception:
            log.exception("internal error in a request: %s", exchange.scope["method"])
            if exchange.has_started:
                exchange.connection.transport.abort()  # an interrupted response must not look complete
            else:
                await exchange.send({"type": "http.response.start", "status": 500, "headers": list(_FAULT_HEADERS)})
                await exchange.send({"type": "http.response.body", "body": _FAULT})
        finally:
            exchange.scope.clear()  # it refers to the exchange: breaking the cycle spares the garbage collector
            task, exchange.task = exchange.task, None  # asyncio.current_task() costs a system call on Python 3.11
            if task is not None:
                self._tasks.discard(task)
                self._changed.set()

    def add_connection(self, connection: Connection) -> tuple[int, str] | None:
        """Count a new connection. Returns status and message of its refusal, or None if it is accepted."""
        self.connections.add(connection)
        peer: Any = connection.transport.get_extra_info("peername")
        has_address = isinstance(peer, tuple)  # a unix socket has none
        connection.address, refusal = self._counts.add(str(cast("tuple[Any, ...]", peer)[0]) if has_address else "")
        return refusal

    def remove_connection(self, connection: Connection) -> None:
        """Stop counting a connection that was lost."""
        self._counts.remove(connection.address)
        self.connections.discard(connection)
        self._changed.set()

    def _tick(self) -> None:
        """Once per second: set the `date` header, and check the time limits of all connections."""
        self.date = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        now = self._loop.time()
        for connection in tuple(self.connections):
            connection.check_timeouts(now)
        self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._tick)
