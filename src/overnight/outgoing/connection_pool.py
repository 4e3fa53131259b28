"""A keep-alive HTTP/1.1 client for one upstream origin; ``transport_errors.py`` defines its errors.

A request is repeated in one case only: a reused connection was lost while a part of the request was still in the local
buffer, so the upstream cannot have the whole request. It is repeated once, on a new connection. A request that the upstream
may have received is never repeated; the caller receives the typed error.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

import msgspec

from .addresses import AddressPolicy
from .connection import UpstreamConnection
from .dialer import Dialer, Resolve, proxy_refusal
from .exchange import UpstreamExchange
from .proxies import Proxy
from .tls import tls_context
from .transport_errors import (
    NeverSent,
    PoolBusy,
    UpstreamTimeout,
)

Headers = Sequence[tuple[bytes, bytes]]
Check = Callable[[], None] | None

_OWN_HEADERS = frozenset({
    b"host", b"accept-encoding", b"content-length", b"transfer-encoding", b"connection", b"expect", b"proxy-authorization",
})  # fmt: skip
_HEADER_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")


class UpstreamResponse(msgspec.Struct, frozen=True):
    """A complete response. Header names are lower case; repeated headers are joined with ``", "``."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class UpstreamStream:
    """A response whose head has arrived. Iterate over the chunks of the body; iterating raises UpstreamError.

    At most ``STREAM_BUFFER_BYTES`` and one read are buffered; then reading from the upstream pauses. ``close()`` before the end
    (also by leaving ``async with``, or by cancelling a read) closes the connection. Header names are lower case.
    """

    __slots__ = ("_exchange", "headers", "status")

    def __init__(self, exchange: UpstreamExchange) -> None:
        self.status: int = exchange.status
        self.headers: Mapping[bytes, bytes] = exchange.headers
        self._exchange = exchange

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        data = await self._exchange.read()
        if not data:
            raise StopAsyncIteration
        return data

    async def follow(self, take: Callable[[bytes], bool]) -> bool:
        """Call `take` with each chunk as soon as it arrives, until `take` returns True or the body ends.

        Returns whether `take` returned True. Raises UpstreamError, and any exception of `take`.
        """
        return await self._exchange.follow(take)

    def extend(self, deadline: float) -> None:
        """Replace the deadline (a time of the running loop)."""
        self._exchange.extend(deadline)

    def close(self) -> None:
        """Release the response. Idempotent."""
        self._exchange.close()


class UpstreamPool:
    """A pool of at most ``max_connections`` to the origin of ``base_url``. Further calls wait in a FIFO queue.

    ``base_url``: ``http(s)://host[:port][/prefix]``, without user and query. ``max_body_bytes`` limits each response body.
    Idle connections close after ``idle_timeout_s``: less than the five seconds after which many servers close them.
    ``ssl_context``: default: the system's certificate authorities. ``proxy``, ``policy`` and ``resolver``: see `Dialer`.
    Deadlines are finite times of the running loop. Not thread-safe: use it in one loop.
    """

    def __init__(
        self,
        base_url: str,
        *,
        max_connections: int = 128,
        max_waiting: int = 10_000,
        max_body_bytes: int = 64 * 1024 * 1024,
        connect_timeout_s: float = 10.0,
        idle_timeout_s: float = 4.5,
        ssl_context: ssl.SSLContext | None = None,
        proxy: Proxy | None = None,
        policy: AddressPolicy | None = None,
        resolver: Resolve | None = None,
    ) -> None:
        url = urlsplit(base_url)
        if (
            url.scheme not in ("http", "https")
            or not url.hostname
            or url.username is not None
            or url.query
            or url.fragment
        ):
            raise ValueError("base_url must be http(s)://host[:port][/prefix] without user, query or fragment")
        secure = url.scheme == "https"
        name = url.hostname if ":" in url.hostname else url.hostname.encode("idna").decode("ascii")
        port = url.port or (443 if secure else 80)
        shown_host = f"[{name}]" if ":" in name else name
        self.origin = f"{shown_host}:{port}"
        host = shown_host if port == (443 if secure else 80) else self.origin
        self._prefix = url.path.rstrip("/")
        self._fixed = f"host: {host}\r\naccept-encoding: identity\r\n".encode("ascii")
        self._proxy = None if secure else proxy
        if self._proxy is not None:
            self._prefix = f"http://{host}{self._prefix}"  # absolute form
            if self._proxy.authorization:
                self._fixed += b"proxy-authorization: %b\r\n" % self._proxy.authorization
        self._fixed_lines = self._fixed.count(b"\n")
        tls = (ssl_context or tls_context()) if secure else None
        self._dialer = Dialer(name, port, self.origin, tls=tls, proxy=proxy, policy=policy, resolver=resolver)
        self._max_connections, self._max_waiting, self._max_body = max_connections, max_waiting, max_body_bytes
        self._connect_timeout, self._idle_timeout = connect_timeout_s, idle_timeout_s
        self._connections: set[UpstreamConnection] = set()
        self._connecting = 0
        self._idle: deque[UpstreamConnection] = deque()
        self._waiters: deque[asyncio.Future[UpstreamConnection | None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._header_names: set[bytes] = set()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def request(
        self, method: str, path: str, headers: Headers, body: bytes, deadline: float, check: Check = None
    ) -> UpstreamResponse:
        """Send a request and return the complete response, whatever its status.

        `check` is called when the connection is open, immediately before the request is sent. Raises UpstreamError, ValueError
        for an invalid request, and any exception of `check`.
        """
        answer = await self._open(method, path, headers, body, deadline, check, whole=True)
        return UpstreamResponse(answer.status, answer.headers, answer.take())

    async def stream(self, method: str, path: str, headers: Headers, body: bytes, deadline: float) -> UpstreamStream:
        """Send a request and wait for the response head. The caller must close the stream or read it to its end."""
        return UpstreamStream(await self._open(method, path, headers, body, deadline, whole=False))

    async def close(self) -> None:
        """Close every connection. Calls in progress and waiting calls fail."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(NeverSent(self.origin, "the pool was closed"))
        self._waiters.clear()
        self._idle.clear()
        for connection in tuple(self._connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    async def _open(
        self,
        method: str,
        path: str,
        headers: Headers,
        body: bytes,
        deadline: float,
        check: Check = None,
        *,
        whole: bool,
    ) -> UpstreamExchange:
        head = self._head(method, path, headers, body)
        loop = self._running_loop()
        fresh = False
        while True:
            connection = await self._acquire(loop, deadline, fresh=fresh)
            reused = connection.answered > 0
            answer = UpstreamExchange(connection, loop, deadline, self._max_body, whole=whole)
            if check is not None:
                try:
                    check()
                except BaseException:
                    answer.end()  # its deadline must not close the connection, which may carry another exchange by then
                    self._give(connection)
                    raise
            connection.begin(answer, head, body)
            error = await answer.opened()
            if error is None:
                if answer.status == 407 and self._proxy is not None:
                    answer.close()
                    raise proxy_refusal(self.origin, self._proxy, 407)
                return answer
            if fresh or not reused or not isinstance(error, NeverSent):
                raise error
            fresh = True

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """The loop of the caller. It is cached, because asyncio.get_running_loop() costs a system call on Python 3.11."""
        loop = self._loop
        if loop is None or not loop.is_running():
            loop = self._loop = asyncio.get_running_loop()
        return loop

    def _head(self, method: str, path: str, headers: Headers, body: bytes) -> bytes:
        request_line = f"{method} {self._prefix}{path} HTTP/1.1\r\n"
        parts = [request_line.encode("ascii"), self._fixed]
        for name, value in headers:
            if name not in self._header_names:
                self._admit_header(name)
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"content-length: %d\r\n\r\n" % len(body) if body or method != "GET" else b"\r\n")
        head = b"".join(parts)
        lines = len(headers) + self._fixed_lines + (3 if body or method != "GET" else 2)
        is_split = head.count(b"\n") != lines or head.count(b"\r") != lines or head.find(b"\0") >= 0
        if is_split or request_line.count(" ") != 2:
            raise ValueError(f"upstream {self.origin}: a space in method or path, or a line break or NUL in the head")
        return head

    def _admit_header(self, name: bytes) -> None:
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
            raise ValueError(
                f"upstream {self.origin}: header name {name[:128]!r} is invalid or set by the client itself"
            )
        if len(self._header_names) < 1024:
            self._header_names.add(name)

    async def _acquire(self, loop: asyncio.AbstractEventLoop, deadline: float, *, fresh: bool) -> UpstreamConnection:
        while not self._closed:
            now = loop.time()
            if deadline <= now:
                raise UpstreamTimeout(self.origin, "queue", "the deadline had passed before anything was sent")
            while self._idle and not fresh:
                connection = self._idle.pop()
                if connection.usable(now - self._idle_timeout):
                    return connection
                connection.transport.abort()
            if len(self._connections) + self._connecting < self._max_connections:
                self._connecting += 1
                return await self._connect(loop, deadline)
            if self._idle:  # make room for a new connection
                self._idle.popleft().transport.abort()
            found = await self._queue(loop, deadline)
            if found is None:
                return await self._connect(loop, deadline)
            if not fresh and found.usable(now - self._idle_timeout):
                return found
            found.transport.abort()
        raise NeverSent(self.origin, "the pool was closed")

    async def _queue(self, loop: asyncio.AbstractEventLoop, deadline: float) -> UpstreamConnection | None:
        """Wait for a free connection, or for None: a free slot for a new one, already counted in ``_connecting``."""
        if len(self._waiters) >= self._max_waiting:
            raise PoolBusy(self.origin, f"{self._max_waiting} calls are already waiting for a connection")
        waiter: asyncio.Future[UpstreamConnection | None] = loop.create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give(waiter.result())
            else:
                with suppress(ValueError):
                    self._waiters.remove(waiter)
            if isinstance(error, TimeoutError):
                busy = f"all {self._max_connections} connections were busy until the deadline"
                raise UpstreamTimeout(self.origin, "queue", busy) from None
            raise

    async def _connect(self, loop: asyncio.AbstractEventLoop, deadline: float) -> UpstreamConnection:
        """Open a connection in a slot already counted in ``_connecting``."""
        try:
            async with asyncio.timeout_at(min(deadline, loop.time() + self._connect_timeout)):
                connection = await self._dialer.connect(
                    loop, lambda: UpstreamConnection(self.origin, self._give, self._forget)
                )
            if connection.lost or self._closed:
                connection.transport.abort()
                raise NeverSent(self.origin, "the connection was closed immediately after it was opened")
        except BaseException as error:
            self._give(None)
            if isinstance(error, TimeoutError):
                raise UpstreamTimeout(self.origin, "connect", "no connection in time") from None
            raise
        self._connecting -= 1
        self._connections.add(connection)
        return connection

    def _give(self, connection: UpstreamConnection | None) -> None:
        """Pass a free connection, or a free slot (None), to the first waiter, else keep or drop it."""
        loop = self._running_loop()
        if connection is not None:
            connection.idle_since = loop.time()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        if connection is None:
            self._connecting -= 1
        elif self._closed:
            connection.transport.abort()
        else:
            self._idle.append(connection)
            if self._sweeper is None:
                self._sweeper = loop.call_later(self._idle_timeout, self._sweep)

    def _forget(self, connection: UpstreamConnection) -> None:
        """Remove a lost connection; its slot goes to the queue."""
        if connection in self._connections:
            self._connections.remove(connection)
            with suppress(ValueError):
                self._idle.remove(connection)
            self._connecting += 1
            self._give(None)

    def _sweep(self) -> None:
        self._sweeper = None
        loop = self._running_loop()
        idle_after = loop.time() - self._idle_timeout
        while self._idle and self._idle[0].idle_since <= idle_after:
            self._idle.popleft().transport.abort()
        if self._idle:
            self._sweeper = loop.call_at(self._idle[0].idle_since + self._idle_timeout, self._sweep)
