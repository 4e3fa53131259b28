"""One client's connection: HTTP/1.1 requests in, answers of the ASGI application out, one at a time and in order.

httptools under asyncio.Protocol, since every call of the gateway passes here. What is kept of a client is bounded: its head,
what nobody has read yet of its body, every byte that is neither, and how long it may take or say nothing while it is its turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol, cast
from urllib.parse import unquote_to_bytes

import httptools

from .asgi import Headers
from .endpoints import Endpoints
from .exchange import MOST_UNREAD_BYTES, STATUS_LINES, Exchange
from .forwarded import TrustedProxies
from .request_head import (
    FRAMING_FIELDS,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    RequestRefused,
    check_framing,
    split_target,
)

__all__ = ["LINGER_S", "MOST_HEAD_BYTES", "MOST_UNREAD_BYTES", "Connection", "Exchange"]
MOST_HEAD_BYTES = MAX_HEAD_BYTES
MAX_PIPELINED = 64
"""Requests sent ahead of their answers. Usual clients send none ahead; one read could hold ten thousand."""
LINGER_S = 2.0
"""A request refused before it was whole: so long the rest is read and thrown away, or the refusal would be lost in a reset."""
_OFFERS = (b"connection", b"upgrade", b"http2-settings")


class ConnectionServer(Protocol):
    """What a connection needs of the server that accepted it. Times are in seconds."""

    silence_s: float
    head_s: float
    body_window_s: float
    least_body_bytes_s: int
    is_stopping: bool
    date: bytes
    root_path: str
    proxies: TrustedProxies

    def now(self) -> float: ...

    def entered(self, connection: Connection) -> tuple[int, str] | None: ...

    def left(self, connection: Connection) -> None: ...

    def run(self, exchange: Exchange) -> None: ...


class Connection(asyncio.Protocol):
    """One socket of a client."""

    transport: asyncio.Transport

    def __init__(self, server: ConnectionServer) -> None:
        self.server = server
        self.address = ""
        self.heard_at = 0.0
        self.is_behind = self.is_half_closed = False
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: Headers = []
        self._framing: Headers = []
        self._in_head = False
        self._head_bytes = 0
        self._refusal: RequestRefused | None = None
        # Bytes since the last request ended: all, and those that are a body or what its chunks need.
        self._overhead = self._accounted = self._chunk_bytes = 0
        self._has_ended = False
        self._head_since = self._window_since = 0.0
        self._window_bytes = 0
        self._reading: Exchange | None = None
        self._answering: Exchange | None = None
        self._next: deque[Exchange] = deque()
        self._is_held = self._is_closing = self._is_deaf = False
        self._lingers_until = 0.0
        self._room: list[asyncio.Future[None]] = []

    @property
    def date(self) -> bytes:
        """The `date` header field, with its line end."""
        return self.server.date

    @property
    def is_stopping(self) -> bool:
        """Whether the server takes no further requests."""
        return self.server.is_stopping

    # ── the socket ──────────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.heard_at = self.server.now()
        self._endpoints = Endpoints(self.transport, self.server.proxies, self.server.root_path)
        refusal = self.server.entered(self)
        if refusal is not None:
            self._is_deaf = True
            if refusal[0]:
                self._refuse(*refusal)
            else:
                self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.server.left(self)
        for exchange in (self._answering, self._reading, *self._next):
            if exchange is not None:
                exchange.gone = True
                exchange.wake()
        self._next.clear()
        self.resume_writing()

    def eof_received(self) -> bool:
        """A client that only closes its own side still waits for its answers."""
        answering = self._answering
        self._is_closing = self.is_half_closed = True
        if answering is None or not answering.whole:
            return False
        answering.wake()
        answering.has_left()  # a client that is gone altogether answers this with a reset
        return True

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
        self._hold(bool(self._next) or (self._reading is not None and self._reading.is_full))

    def _hold(self, held: bool) -> None:
        if held != self._is_held and not self.transport.is_closing():
            self._is_held = held
            if held:
                self.transport.pause_reading()
            else:
                self.heard_at = self._window_since = self.server.now()
                self._window_bytes = 0
                self.transport.resume_reading()

    def look(self, now: float) -> None:
        """Give up a client that lets us wait too long."""
        if self._lingers_until:
            if now > self._lingers_until:
                self.transport.abort()
            return
        answering, server = self._answering, self.server
        its_turn = self.is_behind or answering is None or answering.wants_body
        if its_turn and now - self.heard_at > server.silence_s:
            self.transport.abort()
        elif self._head_since and now - self._head_since > server.head_s:
            self._refuse(408, f"the head of the request took over {server.head_s:g} seconds")
        elif self._reading is not None:
            self._look_at_body(self._reading, now)

    def _look_at_body(self, reading: Exchange, now: float) -> None:
        if self._is_held or not reading.wants_body:
            self._window_since, self._window_bytes = now, 0
        elif now - self._window_since > (window := self.server.body_window_s):
            if self._window_bytes < self.server.least_body_bytes_s * window:
                self._refuse(408, f"the body came at less than {self.server.least_body_bytes_s:,} bytes per second")
            self._window_since, self._window_bytes = now, 0

    def finish(self) -> None:
        """Close once what is being answered has its answer."""
        self._is_closing = True
        if self._answering is None:
            self.transport.close()

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        now = self.heard_at = self.server.now()
        self._accounted, self._has_ended = 0, False
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse_bytes()
            return
        if not self._has_ended:
            self._overhead += len(data) - self._accounted
            if self._overhead > MAX_HEAD_BYTES:
                self._refuse(431, f"the request has over {MAX_HEAD_BYTES:,} bytes that are not its body")
                return
        if self._reading is not None or not (self._in_head or self._overhead):
            self._head_since = 0.0
        elif not self._head_since:
            self._head_since = now

    def _feed(self, data: bytes) -> None:
        """Parse. A client that offers another protocol (`Upgrade: h2c`) has sent a request of HTTP/1.1 all the same, body and
        all: its head is read again without the offer."""
        rest: list[bytes | memoryview] = [data]
        while rest and not self._is_deaf:
            piece = rest.pop()
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade as error:
                method = self._parser.get_method()
                if method == b"CONNECT":
                    self._refuse(405, "this is no proxy")
                    return
                rest.append(memoryview(piece)[error.args[0] :])
                lines = [b"%b %b HTTP/%b" % (method, self._url, self._parser.get_http_version().encode())]
                lines += [b"%b: %b" % each for each in self._headers if each[0] not in _OFFERS]
                rest.append(b"\r\n".join(lines) + b"\r\n\r\n")
                self._parser = httptools.HttpRequestParser(self)

    def _refuse_bytes(self) -> None:
        """What a callback refused, or the parser itself."""
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            self._refuse(refusal.status, refusal.why)
        elif self._reading is not None:
            self._refuse(400, "the body is not in the chunks that its head announces")
        else:
            self._refuse(400, "this is not an HTTP/1.1 request")

    def _refuse(self, status: int, why: str) -> None:
        """Answer what never became a request; no answer may overtake another."""
        self._is_deaf = True
        answering, reading = self._answering, self._reading
        if answering is not None and answering is not reading:
            if reading is not None:
                self._next.remove(reading)
                self._reading = None
            self.finish()
            return
        if answering is not None:
            if answering.begun:
                self.transport.abort()
                return
            self._answering = self._reading = None
            answering.gone = True
            answering.wake()
        body = b'{"error":{"message":"%b","type":"invalid_request_error"}}' % why.encode()
        facts = b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINES[status] + facts % (self.server.date, len(body)) + body)
        self._linger()

    def _linger(self) -> None:
        self._is_deaf, self._lingers_until = True, self.server.now() + LINGER_S
        self._hold(False)
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _stop(self, status: int, why: str) -> RequestRefused:
        """For callbacks of the parser, which goes no further then."""
        self._refusal = RequestRefused(status, why)
        return self._refusal

    def on_message_begin(self) -> None:
        self._url, self._headers, self._framing = b"", [], []
        self._in_head, self._head_bytes = True, 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which says nothing that is used here."""
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD_BYTES:
            raise self._stop(431, f"the head of the request is over {MAX_HEAD_BYTES:,} bytes")
        if self._in_head:
            name = name.lower()
            self._headers.append((name, value))
            if name in FRAMING_FIELDS:
                self._framing.append((name, value))
            if len(self._headers) > MAX_FIELDS:
                raise self._stop(431, f"the request has over {MAX_FIELDS} headers")

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser = self._parser
        if parser.should_upgrade():
            return
        version = parser.get_http_version()
        try:
            check_framing(version, self._framing)
            path, query = split_target(self._url, self._framing)
        except RequestRefused as refusal:
            self._refusal = refusal
            raise
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": version,
            "method": parser.get_method().decode(),
            "scheme": "http",
            "path": (unquote_to_bytes(path) if path.find(b"%") >= 0 else path).decode("utf-8", "replace"),
            "raw_path": path,
            "query_string": query,
            "headers": self._headers,
        }
        self._endpoints.add_to(scope, self._headers)
        expects = len(self._framing) > 1 and any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in self._framing
        )
        if len(self._next) >= MAX_PIPELINED:
            raise self._stop(400, f"over {MAX_PIPELINED} requests were sent ahead of their answers")
        exchange = self._reading = Exchange(self, scope, parser.should_keep_alive(), expects)
        self._window_since, self._window_bytes, self._chunk_bytes = self.heard_at, 0, 0
        if self._answering is None:
            self._answer(exchange)
        else:
            self._next.append(exchange)
            self.regulate()

    def on_body(self, chunk: bytes) -> None:
        exchange = self._reading
        if exchange is not None:
            size = len(chunk)
            self._accounted += size
            self._window_bytes += size
            self._chunk_bytes += size
            exchange.body(chunk)
            if exchange.is_full:
                self.regulate()

    def on_chunk_complete(self) -> None:
        """What the shortest head and the end of this chunk take is no overhead; padding and extensions are."""
        self._accounted += len(b"%x\r\n\r\n" % self._chunk_bytes)
        self._chunk_bytes = 0

    def on_message_complete(self) -> None:
        self._overhead = self._accounted = 0
        self._has_ended = True
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
        elif exchange.keep_alive and self._next and (self._next[0].whole or not self._is_closing):
            self._answer(self._next.popleft())
            self.regulate()
        elif self._is_deaf:
            self._linger()  # what was not taken may still be on its way
        elif not exchange.keep_alive or self._is_closing:
            self.transport.close()
