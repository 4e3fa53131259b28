"""One request and its answer, as an ASGI application sees them: `receive` and `send`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any, Protocol

from .asgi import DIRECT, Headers, Message

MOST_UNREAD_BYTES = 256 * 1024
"""Of a body; beyond it the client is held back."""
STATUS_LINES = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BODILESS = (204, 304)


PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"


class ExchangeConnection(Protocol):
    """What an exchange needs of the connection that carries it."""

    transport: asyncio.Transport
    is_behind: bool
    is_half_closed: bool

    @property
    def date(self) -> bytes:
        """The `date` header field, with its line end."""
        ...

    @property
    def is_stopping(self) -> bool:
        """Whether the server takes no further requests."""
        ...

    def regulate(self) -> None: ...

    async def caught_up(self) -> None: ...

    def over(self, exchange: Exchange) -> None: ...


class Exchange:
    """One request and its answer: the `receive` and `send` of the application."""

    __slots__ = (
        "_chunked", "_chunks", "_expects", "_head", "_mute", "_old", "_told", "_unread", "_waiter",
        "answered", "connection", "gone", "keep_alive", "scope", "task", "whole",
    )  # fmt: skip

    def __init__(self, connection: ExchangeConnection, scope: dict[str, Any], keep_alive: bool, expects: bool) -> None:
        self.connection, self.scope, self.keep_alive = connection, scope, keep_alive
        self.whole = self.gone = self.answered = False
        self._expects = expects
        self._old, self._mute = scope["http_version"] == "1.0", scope["method"] == "HEAD"
        self._chunks: list[bytes] = []
        self._unread = 0
        self._told = False
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
        return self._unread > MOST_UNREAD_BYTES

    @property
    def wants_body(self) -> bool:
        """Whether the client is expected to send more of the body now."""
        return not self.whole and not self.is_full and not self._expects

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Message:
        """The next of the body; after it, `http.disconnect` once the client left or closed its side. `send` still reaches a
        client that only closed its side."""
        connection = self.connection
        while not self._has_news(connection):
            if self._expects and self._head is None:
                self._expects = False
                connection.transport.write(_CONTINUE)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._told or ((self.gone or self.answered) and not self.whole):
            return {"type": "http.disconnect"}
        self._told = self.whole
        chunks, self._chunks = self._chunks, []
        if self._unread > MOST_UNREAD_BYTES:
            self._unread = 0
            connection.regulate()
        self._unread = 0
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return {"type": "http.request", "body": body, "more_body": not self._told}

    def _has_news(self, connection: ExchangeConnection) -> bool:
        if self.gone or self.answered:
            return True
        return connection.is_half_closed if self._told else bool(self._chunks) or self.whole

    # ── the answer ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def begun(self) -> bool:
        """Has a byte of the answer been sent?"""
        return self._head == b""

    async def send(self, message: Message) -> None:
        """Raises ValueError for a header that holds a line break or NUL. What a client that left is told is thrown away."""
        if message["type"] == "http.response.start":
            self._head = self._head_of(message["status"], message["headers"])
            return
        more = message.get("more_body", False)
        self._write(message.get("body", b""), more)
        if more and self.connection.is_behind:
            await self.connection.caught_up()

    def write(self, piece: bytes) -> bool:
        """See `Direct`."""
        self._write(piece, True)
        return not self.connection.is_behind

    def caught_up(self) -> Awaitable[None]:
        return self.connection.caught_up()

    def has_left(self) -> bool:
        """See `Direct`. A client that closed its side may still read: an interim response finds out, since writing to one that
        closed both sides fails."""
        if self.connection.is_half_closed and self._head is None and not self._old:
            self.connection.transport.write(PROCESSING)
        return self.gone or self.connection.transport.is_closing()

    def _write(self, body: bytes, more: bool) -> None:
        if self.gone or self.answered:
            return
        out = body
        if self._mute:
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
            self.connection.over(self)

    def _head_of(self, status: int, headers: Headers) -> bytes:
        parts = [STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, self.connection.date]
        parts += [b"%b: %b\r\n" % (name, value) for name, value in headers]
        sized, self._chunked = self._mute or status in _BODILESS or b"content-length" in dict(headers), False
        if not sized:
            self._chunked = not self._old
            self.keep_alive = self.keep_alive and self._chunked
            if self._chunked:
                parts.append(b"transfer-encoding: chunked\r\n")
        if not self.whole or self.connection.is_stopping:
            self.keep_alive = False
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        elif self._old:
            parts.append(b"connection: keep-alive\r\n")
        head = b"".join(parts)
        if head.count(b"\n") != len(parts) or head.count(b"\r") != len(parts) or head.find(b"\0") >= 0:
            raise ValueError("a line break or NUL in a header of an answer")
        return head + b"\r\n"
