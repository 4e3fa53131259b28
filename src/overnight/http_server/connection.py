"""A client connection: parses HTTP/1.1 requests and writes the responses of the ASGI application, one at a time, in order.

It uses httptools under asyncio.Protocol, because every call of the gateway passes through it. Each client has limits: bytes
of the head, unread bytes of the body, bytes of framing, the time to send a head or body, and the time without activity.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol, cast
from urllib.parse import unquote_to_bytes

import httptools

from .asgi import Headers
from .endpoints import Endpoints
from .exchange import MAX_UNREAD_BYTES, STATUS_LINES, Exchange
from .forwarded import TrustedProxies
from .request_head import (
    FRAMING_FIELDS,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    RequestRefused,
    check_framing,
    split_target,
)

__all__ = ["LINGER_S", "MAX_HEAD_BYTES", "MAX_UNREAD_BYTES", "Connection", "Exchange"]
MAX_PIPELINED = 64
"""Maximum number of pipelined requests. Most clients do not pipeline; one read could contain ten thousand requests."""
LINGER_S = 2.0
"""After a refusal, the rest of an incomplete request is discarded for this time. Otherwise a reset could drop the refusal."""
_UPGRADE_FIELDS = (b"connection", b"upgrade", b"http2-settings")


class ConnectionServer(Protocol):
    """The interface that a connection requires of its server. Times are in seconds."""

    idle_timeout_s: float
    head_timeout_s: float
    body_window_s: float
    min_body_bytes_per_s: int
    is_stopping: bool
    date: bytes
    root_path: str
    proxies: TrustedProxies

    def now(self) -> float: ...

    def add_connection(self, connection: Connection) -> tuple[int, str] | None: ...

    def remove_connection(self, connection: Connection) -> None: ...

    def run(self, exchange: Exchange) -> None: ...


class Connection(asyncio.Protocol):
    """One socket of a client, and the parser of its requests."""

    transport: asyncio.Transport

    def __init__(self, server: ConnectionServer) -> None:
        self.server = server
        self.address = ""
        self.active_at = 0.0
        self.is_behind = self.is_half_closed = False
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: Headers = []
        self._framing: Headers = []
        self._in_head = False
        self._head_bytes = 0
        self._refusal: RequestRefused | None = None
        # Bytes since the end of the last request: framing overhead, and bytes of the body and of minimal chunk framing.
        self._overhead = self._accounted = self._chunk_bytes = 0
        self._has_ended = False
        self._head_since = self._window_since = 0.0
        self._window_bytes = 0
        self._reading: Exchange | None = None
        self._answering: Exchange | None = None
        self._pipelined: deque[Exchange] = deque()
        self._is_paused = self._is_closing = self._discards_input = False
        self._lingers_until = 0.0
        self._drain_waiters: list[asyncio.Future[None]] = []

    @property
    def date(self) -> bytes:
        """The `date` header field, with its line end."""
        return self.server.date

    @property
    def is_stopping(self) -> bool:
        """Whether the server accepts no further requests."""
        return self.server.is_stopping

    # ── the socket ──────────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.active_at = self.server.now()
        self._endpoints = Endpoints(self.transport, self.server.proxies, self.server.root_path)
        refusal = self.server.add_connection(self)
        if refusal is not None:
            self._discards_input = True
            if refusal[0]:
                self._refuse(*refusal)
            else:
                self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.server.remove_connection(self)
        for exchange in (self._answering, self._reading, *self._pipelined):
            if exchange is not None:
                exchange.disconnected = True
                exchange.wake()
        self._pipelined.clear()
        self.resume_writing()

    def eof_received(self) -> bool:
        """A client that closes only its sending side still receives its responses."""
        answering = self._answering
        self._is_closing = self.is_half_closed = True
        if answering is None or not answering.received:
            return False
        answering.wake()
        answering.detect_disconnect()  # a client that closed both sides replies with a reset
        return True

    def pause_writing(self) -> None:
        self.is_behind, self.active_at = True, self.server.now()

    def resume_writing(self) -> None:
        self.is_behind, self.active_at = False, self.server.now()
        room, self._drain_waiters = self._drain_waiters, []
        for waiter in room:
            if not waiter.done():
                waiter.set_result(None)

    async def drain(self) -> None:
        """Wait until the client has read the written data or has disconnected."""
        if not self.is_behind:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._drain_waiters.append(waiter)
        await waiter

    def apply_backpressure(self) -> None:
        """Pause reading while requests or body bytes of the client are waiting."""
        self._pause_reading(bool(self._pipelined) or (self._reading is not None and self._reading.is_full))

    def _pause_reading(self, pause: bool) -> None:
        if pause != self._is_paused and not self.transport.is_closing():
            self._is_paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.active_at = self._window_since = self.server.now()
                self._window_bytes = 0
                self.transport.resume_reading()

    def check_timeouts(self, now: float) -> None:
        """Abort or refuse a client that exceeded a time limit. Called once per second with the loop's time."""
        if self._lingers_until:
            if now > self._lingers_until:
                self.transport.abort()
            return
        answering, server = self._answering, self.server
        its_turn = self.is_behind or answering is None or answering.wants_body
        if its_turn and now - self.active_at > server.idle_timeout_s:
            self.transport.abort()
        elif self._head_since and now - self._head_since > server.head_timeout_s:
            self._refuse(408, f"the request head did not arrive within {server.head_timeout_s:g} seconds")
        elif self._reading is not None:
            self._check_body_rate(self._reading, now)

    def _check_body_rate(self, reading: Exchange, now: float) -> None:
        if self._is_paused or not reading.wants_body:
            self._window_since, self._window_bytes = now, 0
        elif now - self._window_since > (window := self.server.body_window_s):
            if self._window_bytes < self.server.min_body_bytes_per_s * window:
                self._refuse(
                    408, f"the request body arrived at less than {self.server.min_body_bytes_per_s:,} bytes per second"
                )
            self._window_since, self._window_bytes = now, 0

    def finish(self) -> None:
        """Close the connection after the response in progress."""
        self._is_closing = True
        if self._answering is None:
            self.transport.close()

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        if self._discards_input:
            return
        now = self.active_at = self.server.now()
        self._accounted, self._has_ended = 0, False
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse_bytes()
            return
        if not self._has_ended:
            self._overhead += len(data) - self._accounted
            if self._overhead > MAX_HEAD_BYTES:
                self._refuse(431, f"the request has more than {MAX_HEAD_BYTES:,} bytes outside its body")
                return
        if self._reading is not None or not (self._in_head or self._overhead):
            self._head_since = 0.0
        elif not self._head_since:
            self._head_since = now

    def _feed(self, data: bytes) -> None:
        """Parse data. An `Upgrade` header (such as h2c) is ignored: the request is valid HTTP/1.1 with its body, and its head
        is parsed again without the upgrade headers."""
        rest: list[bytes | memoryview] = [data]
        while rest and not self._discards_input:
            piece = rest.pop()
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade as error:
                method = self._parser.get_method()
                if method == b"CONNECT":
                    self._refuse(405, "CONNECT is not supported: this server is not a proxy")
                    return
                rest.append(memoryview(piece)[error.args[0] :])
                lines = [b"%b %b HTTP/%b" % (method, self._url, self._parser.get_http_version().encode())]
                lines += [b"%b: %b" % each for each in self._headers if each[0] not in _UPGRADE_FIELDS]
                rest.append(b"\r\n".join(lines) + b"\r\n\r\n")
                self._parser = httptools.HttpRequestParser(self)

    def _refuse_bytes(self) -> None:
        """Refuse bytes that a callback or the parser rejected."""
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            self._refuse(refusal.status, refusal.why)
        elif self._reading is not None:
            self._refuse(400, "the request body has invalid chunks")
        else:
            self._refuse(400, "invalid HTTP/1.1 request")

    def _refuse(self, status: int, why: str) -> None:
        """Write an error response for an invalid request, unless earlier responses are still in progress: then only close."""
        self._discards_input = True
        answering, reading = self._answering, self._reading
        if answering is not None and answering is not reading:
            if reading is not None:
                self._pipelined.remove(reading)
                self._reading = None
            self.finish()
            return
        if answering is not None:
            if answering.has_started:
                self.transport.abort()
                return
            self._answering = self._reading = None
            answering.disconnected = True
            answering.wake()
        body = b'{"error":{"message":"%b","type":"invalid_request_error"}}' % why.encode()
        facts = b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINES[status] + facts % (self.server.date, len(body)) + body)
        self._linger()

    def _linger(self) -> None:
        self._discards_input, self._lingers_until = True, self.server.now() + LINGER_S
        self._pause_reading(False)
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _reject(self, status: int, why: str) -> RequestRefused:
        """The exception that a parser callback raises to stop the parser with this refusal."""
        self._refusal = RequestRefused(status, why)
        return self._refusal

    def on_message_begin(self) -> None:
        self._url, self._headers, self._framing = b"", [], []
        self._in_head, self._head_bytes = True, 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header. Trailers are counted and ignored."""
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD_BYTES:
            raise self._reject(431, f"the request head is larger than {MAX_HEAD_BYTES:,} bytes")
        if self._in_head:
            name = name.lower()
            self._headers.append((name, value))
            if name in FRAMING_FIELDS:
                self._framing.append((name, value))
            if len(self._headers) > MAX_FIELDS:
                raise self._reject(431, f"the request has more than {MAX_FIELDS} headers")

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
        if len(self._pipelined) >= MAX_PIPELINED:
            raise self._reject(400, f"more than {MAX_PIPELINED} pipelined requests")
        exchange = self._reading = Exchange(self, scope, parser.should_keep_alive(), expects)
        self._window_since, self._window_bytes, self._chunk_bytes = self.active_at, 0, 0
        if self._answering is None:
            self._answer(exchange)
        else:
            self._pipelined.append(exchange)
            self.apply_backpressure()

    def on_body(self, chunk: bytes) -> None:
        exchange = self._reading
        if exchange is not None:
            size = len(chunk)
            self._accounted += size
            self._window_bytes += size
            self._chunk_bytes += size
            exchange.body(chunk)
            if exchange.is_full:
                self.apply_backpressure()

    def on_chunk_complete(self) -> None:
        """Count minimal chunk framing as body. Padding and extensions count as overhead."""
        self._accounted += len(b"%x\r\n\r\n" % self._chunk_bytes)
        self._chunk_bytes = 0

    def on_message_complete(self) -> None:
        self._overhead = self._accounted = 0
        self._has_ended = True
        exchange = self._reading
        if exchange is not None:
            exchange.received, self._reading = True, None
            exchange.wake()

    # ── responses ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _answer(self, exchange: Exchange) -> None:
        self._answering = exchange
        self.server.run(exchange)

    def finish_exchange(self, exchange: Exchange) -> None:
        """Continue with the next request: the response of `exchange` was written completely."""
        self._answering = None
        self.active_at = self.server.now()
        exchange.wake()
        if not exchange.received:
            self._linger()
        elif exchange.keep_alive and self._pipelined and (self._pipelined[0].received or not self._is_closing):
            self._answer(self._pipelined.popleft())
            self.apply_backpressure()
        elif self._discards_input:
            self._linger()  # discarded bytes may still arrive
        elif not exchange.keep_alive or self._is_closing:
            self.transport.close()
