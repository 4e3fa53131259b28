"""One request and its response: the ASGI `receive` and `send` of the application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any, Protocol

from .asgi import DIRECT, Headers, Message

MAX_UNREAD_BYTES = 256 * 1024
"""Maximum of buffered body bytes that the application has not read; above it, reading from the client pauses."""
STATUS_LINES = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BODILESS = (204, 304)


PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"


class ExchangeConnection(Protocol):
    """The interface that an exchange requires of its connection."""

    transport: asyncio.Transport
    is_behind: bool
    is_half_closed: bool

    @property
    def date(self) -> bytes:
        """The `date` header field, with its line end."""
        ...

    @property
    def is_stopping(self) -> bool:
        """Whether the server accepts no further requests."""
        ...

    def apply_backpressure(self) -> None: ...

    async def drain(self) -> None: ...

    def finish_exchange(self, exchange: Exchange) -> None: ...


class Exchange:
    """One request and its response: the `receive` and `send` of the application.

    `received`: the request is complete. `answered`: the response is complete. `disconnected`: the client has disconnected.
    """

    __slots__ = (
        "_chunked",
        "_chunks",
        "_delivered",
        "_expects",
        "_head",
        "_is_http_10",
        "_unread",
        "_waiter",
        "_without_body",
        "answered",
        "connection",
        "disconnected",
        "keep_alive",
        "received",
        "scope",
        "task",
    )  # fmt: skip

    def __init__(self, connection: ExchangeConnection, scope: dict[str, Any], keep_alive: bool, expects: bool) -> None:
        self.connection, self.scope, self.keep_alive = connection, scope, keep_alive
        self.received = self.disconnected = self.answered = False
        self._expects = expects
        self._is_http_10, self._without_body = scope["http_version"] == "1.0", scope["method"] == "HEAD"
        self._chunks: list[bytes] = []
        self._unread = 0
        self._delivered = False
        self._waiter: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self._head: bytes | None = None
        self._chunked = False
        scope["extensions"] = {DIRECT: self}

    # ── the request ─────────────────────────────────────────────────────────────────────────────────────────────────

    def body(self, chunk: bytes) -> None:
        self._expects = False
        if not self.answered:
            self._chunks.append(chunk)
            self._unread += len(chunk)
            self.wake()

    @property
    def is_full(self) -> bool:
        return self._unread > MAX_UNREAD_BYTES

    @property
    def wants_body(self) -> bool:
        """Whether the client is expected to send more of the body now."""
        return not self.received and not self.is_full and not self._expects

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Message:
        """The next part of the body; after the body, `http.disconnect` when the client closes one or both sides.

        `send` still reaches a client that closed only its sending side.
        """
        connection = self.connection
        while not self._has_input(connection):
            if self._expects and self._head is None:
                self._expects = False
                connection.transport.write(_CONTINUE)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._delivered or ((self.disconnected or self.answered) and not self.received):
            return {"type": "http.disconnect"}
        self._delivered = self.received
        chunks, self._chunks = self._chunks, []
        if self._unread > MAX_UNREAD_BYTES:
            self._unread = 0
            connection.apply_backpressure()
        self._unread = 0
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return {"type": "http.request", "body": body, "more_body": not self._delivered}

    def _has_input(self, connection: ExchangeConnection) -> bool:
        if self.disconnected or self.answered:
            return True
        return connection.is_half_closed if self._delivered else bool(self._chunks) or self.received

    # ── the response ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_started(self) -> bool:
        """Whether a part of the response was sent."""
        return self._head == b""

    async def send(self, message: Message) -> None:
        """Send a part of the response; discarded after a disconnect. Raises ValueError for a header with a line break or NUL."""
        if message["type"] == "http.response.start":
            self._head = self._head_of(message["status"], message["headers"])
            return
        more = message.get("more_body", False)
        self._write(message.get("body", b""), more)
        if more and self.connection.is_behind:
            await self.connection.drain()

    def write(self, piece: bytes) -> bool:
        """See `Direct`."""
        self._write(piece, True)
        return not self.connection.is_behind

    def drain(self) -> Awaitable[None]:
        return self.connection.drain()

    def detect_disconnect(self) -> bool:
        """See `Direct`. After a half-close, sends an interim response: writing fails if the client closed both sides."""
        if self.connection.is_half_closed and self._head is None and not self._is_http_10:
            self.connection.transport.write(PROCESSING)
        return self.disconnected or self.connection.transport.is_closing()

    def _write(self, body: bytes, more: bool) -> None:
        if self.disconnected or self.answered:
            return
        out = body
        if self._without_body:
            out = b""
        elif self._chunked:
            out = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                out += b"0\r\n\r\n"
        if self._head:
            out, self._head = self._head + out, b""
        if out:
            self.connection.transport.write(out)
        if not more:
            self.answered = True
            self.connection.finish_exchange(self)

    def _head_of(self, status: int, headers: Headers) -> bytes:
        parts = [STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, self.connection.date]
        parts += [b"%b: %b\r\n" % (name, value) for name, value in headers]
        sized, self._chunked = self._without_body or status in _BODILESS or b"content-length" in dict(headers), False
        if not sized:
            self._chunked = not self._is_http_10
            self.keep_alive = self.keep_alive and self._chunked
            if self._chunked:
                parts.append(b"transfer-encoding: chunked\r\n")
        if not self.received or self.connection.is_stopping:
            self.keep_alive = False
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        elif self._is_http_10:
            parts.append(b"connection: keep-alive\r\n")
        head = b"".join(parts)
        if head.count(b"\n") != len(parts) or head.count(b"\r") != len(parts) or head.find(b"\0") >= 0:
            raise ValueError("a response header contains a line break or NUL")
        return head + b"\r\n"
