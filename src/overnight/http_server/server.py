"""The HTTP server of a process: listens, runs the application for each request, and stops without cutting answers short."""

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
SILENCE_S = 75.0
"""So long a client may say nothing while we wait for it: above the time after which usual clients give up idle connections."""
HEAD_S = 20.0
"""From the first byte of a head to its last."""
BODY_WINDOW_S, LEAST_BODY_BYTES_S = 30.0, 1024
"""A body must come at least at this speed, measured over windows of this length. The slowest mobile line brings ten times as
much, and a client that stalls for half a minute has lost its connection."""
LOOK_EVERY_S = 1.0
BACKLOG = 2048
_FAULT = b'{"error":{"message":"an internal fault; the log has the details","type":"api_error"}}'
_FAULT_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_FAULT))]


class Server:
    """Serves one ASGI application over HTTP/1.1. `start` it, `stop` it."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        silence_s: float = SILENCE_S,
        head_s: float = HEAD_S,
        body_window_s: float = BODY_WINDOW_S,
        limits: ConnectionLimits | None = None,
        proxies: TrustedProxies | None = None,
        root_path: str = "",
        lifespan: bool = False,
    ) -> None:
        """`proxies`: whose forwarded headers are read. `root_path`: the prefix under which a proxy serves the application.
        `lifespan`: tell the application when the server starts and stops."""
        self._app = app
        self.proxies, self.root_path = proxies or TrustedProxies(), root_path.rstrip("/")
        self._lifespan = Lifespan(app) if lifespan else None
        self.silence_s, self.head_s, self.body_window_s = silence_s, head_s, body_window_s
        self.least_body_bytes_s = LEAST_BODY_BYTES_S
        self._counts = ConnectionCounts(limits or ConnectionLimits())
        self.connections: set[Connection] = set()
        self.is_stopping = False
        self.date = b""
        self._tasks: set[asyncio.Task[None]] = set()
        self._left = asyncio.Event()
        self._listener: asyncio.Server | None = None
        self._looker: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; the address bound, as told by the system. Port 0 takes a free one. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        if self._lifespan is not None:
            await self._lifespan.start()
        self._look()
        self._listener = await self._loop.create_server(lambda: Connection(self), host, port, backlog=BACKLOG)
        bound = self._listener.sockets[0].getsockname()
        return bound[0], bound[1]

    async def start_unix(self, path: str) -> None:
        """Listen on a unix socket that only this user can reach. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        if self._lifespan is not None:
            await self._lifespan.start()
        self._look()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with suppress(FileNotFoundError):
            os.unlink(path)  # of an earlier process
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
        """Take no more, wait `grace_s` seconds for what is being answered, then let go of it."""
        self.is_stopping = True
        if self._listener is not None:
            self._listener.close()
        for connection in tuple(self.connections):
            connection.finish()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._tasks or self.connections:
                    self._left.clear()
                    await self._left.wait()
        for connection in tuple(self.connections):
            connection.transport.abort()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        if self._looker is not None:
            self._looker.cancel()
        if self._lifespan is not None:
            await self._lifespan.stop(grace_s)

    def run(self, exchange: Exchange) -> None:
        """Answer a request. It is answered to the end, whether or not its client stays."""
        task = exchange.task = self._loop.create_task(self._run(exchange))
        self._tasks.add(task)

    async def _run(self, exchange: Exchange) -> None:
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
            if not exchange.answered and not exchange.gone:
                exchange.connection.transport.abort()
        except Exception:
            log.exception("internal error in a request: %s", exchange.scope["method"])
            if exchange.begun:
                exchange.connection.transport.abort()  # what was begun must not look whole
            else:
                await exchange.send({"type": "http.response.start", "status": 500, "headers": list(_FAULT_HEADERS)})
                await exchange.send({"type": "http.response.body", "body": _FAULT})
        finally:
            exchange.scope.clear()  # it leads back to the exchange: nothing is left to the collector
            task, exchange.task = exchange.task, None  # asking asyncio for it costs a system call on Python 3.11
            if task is not None:
                self._tasks.discard(task)
                self._left.set()

    def entered(self, connection: Connection) -> tuple[int, str] | None:
        """Count a new connection; the status and message of its refusal where there are too many."""
        self.connections.add(connection)
        peer: Any = connection.transport.get_extra_info("peername")
        has_address = isinstance(peer, tuple)  # a unix socket has none
        connection.address, refusal = self._counts.add(str(cast("tuple[Any, ...]", peer)[0]) if has_address else "")
        return refusal

    def left(self, connection: Connection) -> None:
        """A client is gone."""
        self._counts.remove(connection.address)
        self.connections.discard(connection)
        self._left.set()

    def _look(self) -> None:
        """Every second: the clock of the answers, and who lets us wait."""
        self.date = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        now = self._loop.time()
        for connection in tuple(self.connections):
            connection.look(now)
        self._looker = self._loop.call_later(LOOK_EVERY_S, self._look)
