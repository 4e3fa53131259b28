"""One client's connection: HTTP/1.1 requests in, answers of the ASGI application out, one at a time and in order.

httptools under asyncio.Protocol, since every call of the gateway passes here. What is kept of a client is bounded: its head,
what nobody has read yet of its body, and how long it may say nothing while it is its turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote_to_bytes

import httptools

from .http import DIRECT, Headers, Message

if TYPE_CHECKING:
    from .serving import Server

MOST_HEAD_BYTES = 64 * 1024
MOST_HEADERS = 256
MOST_UNREAD_BYTES = 256 * 1024
"""Of a body; beyond it the client is held back."""
LINGER_S = 2.0
"""A request refused before it was whole: so long the rest is read and thrown away, or the refusal would be lost in a reset."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus}
_BODILESS = (204, 304)
_OFFERS = (b"connection", b"upgrade", b"http2-settings")


class Exchange:
    """One request and its answer: the `receive` and `send` of the application."""

    __slots__ = (
        "_chunked", "_chunks", "_expects", "_head", "_mute", "_old", "_told", "_unread", "_waiter",
        "answered", "connection", "gone", "keep_alive", "scope", "whole",
    )  # fmt: skip

    def __init__(self, connection: Connection, scope: dict[str, Any], keep_alive: bool, expects: bool) -> None:
        self.connection, self.scope, self.keep_alive = connection, scope, keep_alive
        self.whole = self.gone = self.answered = False
        self._expects = expects
        self._old, self._mute = scope["http_version"] == "1.0", scope["method"] == "HEAD"
        self._chunks: list[bytes] = []
        self._unread = 0
        self._told = False
        self._waiter: asyncio.Future[None] | None = None
        self._head: bytes | None = None
        self._chunked = False
        scope["extensions"] = {DIRECT: self}

    # ── the request ─────────────────────────────────────────────────────────────────────────────────────────────────

    def body(self, chunk: bytes) -> None:
        if not self.answered:
            self._chunks.append(chunk)
            self._unread += len(chunk)
            self.wake()

    @property
    def is_full(self) -> bool:
        return self._unread > MOST_UNREAD_BYTES

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Message:
        while not self.gone and not self.answered and (self._told or not (self._chunks or self.whole)):
            if self._expects and self._head is None:
                self._expects = False
                self.connection.transport.write(_CONTINUE)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._told or (self.gone and not self.whole):
            return {"type": "http.disconnect"}
        self._told = self.whole
        chunks, self._chunks = self._chunks, []
        if self._unread > MOST_UNREAD_BYTES:
            self._unread = 0
            self.connection.regulate()
        self._unread = 0
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return {"type": "http.request", "body": body, "more_body": not self._told}

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
        """See `Direct`."""
        return self.gone

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
        parts = [_STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status, self.connection.server.date]
        sized, self._chunked = self._mute or status in _BODILESS, False
        for name, value in headers:
            parts.append(b"%b: %b\r\n" % (name, value))
            sized = sized or name == b"content-length"
        if not sized:
            self._chunked = not self._old
            self.keep_alive = self.keep_alive and self._chunked
            if self._chunked:
                parts.append(b"transfer-encoding: chunked\r\n")
        if not self.whole or self.connection.server.is_stopping:
            self.keep_alive = False
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        elif self._old:
            parts.append(b"connection: keep-alive\r\n")
        head = b"".join(parts)
        if head.count(b"\n") != len(parts) or head.count(b"\r") != len(parts) or b"\0" in head:
            raise ValueError("a line break or NUL in a header of an answer")
        return head + b"\r\n"


class Connection(asyncio.Protocol):
    """One socket of a client."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server = server
        self.heard_at = 0.0
        self.is_behind = False
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: Headers = []
        self._expects = False
        self._in_head = False
        self._head_bytes = 0
        self._reading: Exchange | None = None
        self._answering: Exchange | None = None
        self._next: deque[Exchange] = deque()
        self._is_held = self._is_closing = self._is_deaf = False
        self._lingers_until = 0.0
        self._room: list[asyncio.Future[None]] = []

    # ── the socket ──────────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.heard_at = self.server.now()
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.server.left(self)
        for exchange in (self._answering, self._reading, *self._next):
            if exchange is not None:
                exchange.gone = True
                exchange.wake()
        self._next.clear()
        self.resume_writing()

    def eof_received(self) -> bool:
        """A client that only closes its own side still waits for its answer."""
        answering = self._answering
        self._is_closing = True
        return answering is not None and answering.whole

    def pause_writing(self) -> None:
        self.is_behind, self.heard_at = True, self.server.now()

    def resume_writing(self) -> None:
        self.is_behind, self.heard_at = False, self.server.now()
        room, self._room = self._room, []
        for waiter in room:
            if not waiter.done():
                waiter.set_result(None)

    async def caught_up(self) -> None:
        """Wait until the client has taken what was written, or is gone."""
        if not self.is_behind:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._room.append(waiter)
        await waiter

    def regulate(self) -> None:
        """Hold the client back while it is ahead of us."""
        held = bool(self._next) or (self._reading is not None and self._reading.is_full)
        if held != self._is_held and not self.transport.is_closing():
            self._is_held = held
            if held:
                self.transport.pause_reading()
            else:
                self.heard_at = self.server.now()
                self.transport.resume_reading()

    def look(self, now: float) -> None:
        """Give up a client that lets us wait too long."""
        if self._lingers_until:
            if now > self._lingers_until:
                self.transport.abort()
            return
        answering = self._answering
        its_turn = self.is_behind or answering is None or (not answering.whole and not answering.is_full)
        if its_turn and now - self.heard_at > self.server.silence_s:
            self.transport.abort()

    def finish(self) -> None:
        """Close once what is being answered has its answer."""
        self._is_closing = True
        if self._answering is None:
            self.transport.close()

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self.heard_at = self.server.now()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            self._go_on_without(data[error.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(400, "this is not an HTTP/1.1 request")
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._refuse(431, f"the head of the request is over {MOST_HEAD_BYTES:,} bytes")

    def _go_on_without(self, rest: bytes) -> None:
        """A client offers another protocol (`Upgrade: h2c`). Its request is one of HTTP/1.1 all the same, body and all."""
        method = self._parser.get_method()
        if method == b"CONNECT":
            self._refuse(405, "this is no proxy")
            return
        lines = [b"%b %b HTTP/1.1" % (method, self._url)]
        lines += [b"%b: %b" % each for each in self._headers if each[0] not in _OFFERS]
        self._parser = httptools.HttpRequestParser(self)
        self.data_received(b"%b\r\n\r\n%b" % (b"\r\n".join(lines), rest))

    def _refuse(self, status: int, why: str) -> None:
        """Answer what never became a request; no answer may overtake another."""
        self._is_deaf = True
        answering = self._answering
        if answering is not None and answering.whole:
            self.finish()
            return
        if answering is not None:
            if answering.begun:
                self.transport.abort()
                return
            why, self._answering, self._reading = "the body is not in the chunks that its head announces", None, None
            answering.gone = True
            answering.wake()
        body = b'{"error":{"message":"%b","type":"invalid_request_error"}}' % why.encode()
        facts = b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(_STATUS[status] + facts % (self.server.date, len(body)) + body)
        self._linger()

    def _linger(self) -> None:
        self._is_deaf, self._lingers_until = True, self.server.now() + LINGER_S
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def on_message_begin(self) -> None:
        self._url, self._headers, self._expects = b"", [], False
        self._in_head, self._head_bytes = True, 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer says nothing that we use
            name = name.lower()
            self._headers.append((name, value))
            if name == b"expect" and value.lower() == b"100-continue":
                self._expects = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser = self._parser
        if len(self._headers) > MOST_HEADERS:
            self._refuse(431, f"the request has over {MOST_HEADERS} headers")
        if self._is_deaf or parser.should_upgrade():
            return
        path, _, query = self._url.partition(b"?")
        if not path.startswith(b"/"):
            path = _path_of(path)
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": parser.get_http_version(),
            "method": parser.get_method().decode(),
            "scheme": "http",
            "path": (unquote_to_bytes(path) if b"%" in path else path).decode("utf-8", "replace"),
            "raw_path": path,
            "query_string": query,
            "headers": self._headers,
        }
        exchange = self._reading = Exchange(self, scope, parser.should_keep_alive(), self._expects)
        if self._answering is None:
            self._answer(exchange)
        else:
            self._next.append(exchange)
            self.regulate()

    def on_body(self, chunk: bytes) -> None:
        exchange = self._reading
        if exchange is not None:
            exchange.body(chunk)
            if exchange.is_full:
                self.regulate()

    def on_message_complete(self) -> None:
        exchange = self._reading
        if exchange is not None:
            exchange.whole, self._reading = True, None
            exchange.wake()

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _answer(self, exchange: Exchange) -> None:
        self._answering = exchange
        self.server.run(exchange)

    def over(self, exchange: Exchange) -> None:
        """The answer of `exchange` has been written."""
        self._answering = None
        self.heard_at = self.server.now()
        exchange.wake()
        if not exchange.whole:
            self._linger()
        elif not exchange.keep_alive or self._is_closing:
            self.transport.close()
        elif self._next:
            self._answer(self._next.popleft())
            self.regulate()


def _path_of(url: bytes) -> bytes:
    """Of a URL in absolute form."""
    try:
        return httptools.parse_url(url).path or b"/"
    except httptools.HttpParserInvalidURLError:
        return b"/"
