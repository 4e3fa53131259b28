"""One upstream connection and one exchange on it: httptools under asyncio.Protocol. What a failed call means: ``errors``."""

from __future__ import annotations

import asyncio
import select
import ssl
from collections.abc import Callable
from typing import cast

import httptools

from .transport_errors import (
    BodyCut,
    MalformedResponse,
    NeverSent,
    NotHttp,
    Phase,
    ResponseLost,
    ResponseTooLarge,
    Unreachable,
    UpstreamError,
    UpstreamTimeout,
    spoken,
)

MAX_HEAD_BYTES = 64 * 1024
# A stream that nobody reads holds at most this much plus one read of the event loop (256 KiB).
STREAM_BUFFER_BYTES = 256 * 1024
_HTTP = b"HTTP/"
# Below this size one copy is cheaper than a second system call.
_JOIN_BYTES = 64 * 1024


class UpstreamExchange:
    """One request and its answer as it arrives. Made by the pool, filled by the connection, read by one caller.

    ``whole``: wake the reader at the end only, and never hold the upstream back. ``deadline`` is a time of ``loop``.
    """

    __slots__ = (
        "_buffered", "_chunks", "_deadline", "_fault", "_loop", "_room", "_taker", "_timer", "_waiter",
        "connection", "error", "headers", "status", "whole",
    )  # fmt: skip

    def __init__(
        self,
        connection: UpstreamConnection,
        loop: asyncio.AbstractEventLoop,
        deadline: float,
        max_body: int,
        *,
        whole: bool,
    ) -> None:
        self.status = 0  # until the head is here
        self.headers: dict[bytes, bytes] = {}
        self.connection: UpstreamConnection | None = connection  # until the end, or an error
        self.error: UpstreamError | None = None
        self.whole = whole
        self._loop = loop
        self._room = max_body
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._waiter: asyncio.Future[None] | None = None
        self._taker: Callable[[bytes], bool] | None = None
        self._fault: Exception | None = None
        self._deadline = deadline
        self._timer = loop.call_at(deadline, self._expire)

    async def opened(self) -> UpstreamError | None:
        """Wait for the head, or if ``whole`` for the end. Returns the error that prevents it."""
        while self.connection is not None and (self.whole or not self.status):
            await self._wait()
        return self.error if self.whole or not self.status else None

    async def read(self) -> bytes:
        """The bytes that came since the last read, waiting for some; ``b""`` at the end. Raises UpstreamError."""
        while not self._chunks:
            if self.error is not None:
                raise self.error
            if self.connection is None:
                return b""
            await self._wait()
        data = self.take()
        if self.connection is not None:
            self.connection.hold_back(False)
        return data

    async def follow(self, take: Callable[[bytes], bool]) -> bool:
        """Hand each chunk to `take` as it comes; True once `take` wants no more, False at the end. Raises UpstreamError, and
        what `take` raises."""
        if self._chunks and take(self.take()):
            return True
        if self.connection is not None:
            self.connection.hold_back(False)
        self._taker = take
        try:
            while self.connection is not None and self._taker is not None:
                await self._wait()
            wanted_no_more = self._taker is None
        finally:
            self._taker = None
        if self._fault is not None:
            raise self._fault
        if not wanted_no_more and self.error is not None:
            raise self.error
        return wanted_no_more

    def take(self) -> bytes:
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        return data

    def extend(self, deadline: float) -> None:
        """Another deadline, in place of the one before."""
        if self.connection is None:
            return
        self._deadline = deadline
        if (
            deadline < self._timer.when()
        ):  # a later one is looked at when the timer goes off: streams extend at every piece
            self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._expire)

    def close(self) -> None:
        self._chunks.clear()
        if self.connection is not None:
            self.fail(BodyCut(self.connection.origin, "the answer was closed here before its end"))

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        except BaseException:
            self.close()
            raise
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status, self.headers = status, headers
        if not self.whole:
            self._wake()

    def body(self, chunk: bytes, connection: UpstreamConnection) -> None:
        self._room -= len(chunk)
        if self._room < 0:
            self.fail(ResponseTooLarge(connection.origin, "the response body is over the bound; raise max_body_bytes"))
            return
        if self._taker is not None:
            try:
                enough = self._taker(chunk)
            except Exception as error:
                self._fault, enough = error, True  # it is the reader's, not the parser's that called us
            if enough:
                self._taker = None
                self._wake()
            return
        self._chunks.append(chunk)
        if not self.whole:
            self._buffered += len(chunk)
            if self._buffered > STREAM_BUFFER_BYTES:
                connection.hold_back(True)
            self._wake()

    def end(self) -> None:
        self.connection = None
        self._timer.cancel()
        self._wake()

    def fail(self, error: UpstreamError) -> None:
        """End with an error and close the connection. After the end this does nothing."""
        connection = self.connection
        if connection is not None:
            self.error = error
            self.end()
            connection.abandon()

    def _expire(self) -> None:
        if self._deadline > self._loop.time():
            self._timer = self._loop.call_at(self._deadline, self._expire)
        elif self.connection is not None:
            phase: Phase = "body" if self.status else "send" if self.connection.is_sending() else "first_byte"
            what = _UNFINISHED[phase]
            self.fail(UpstreamTimeout(self.connection.origin, phase, f"{what} before the deadline"))


_UNFINISHED = {
    "send": "the request had not left whole",
    "first_byte": "no answer came",
    "body": "the body did not end",
}


class UpstreamConnection(asyncio.Protocol):
    """One socket: writes a request, parses its response, says when it is free or lost."""

    transport: asyncio.Transport

    def __init__(
        self, origin: str, on_free: Callable[[UpstreamConnection], None], on_lost: Callable[[UpstreamConnection], None]
    ) -> None:
        self.origin = origin
        self.answered = 0
        self.idle_since = 0.0
        self.lost = False
        self._on_free = on_free
        self._on_lost = on_lost
        self._exchange: UpstreamExchange | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._quiet_bytes = 0
        self._first_bytes = b""
        self._until_close = False
        self._unreadable = False
        self._complete = False
        self._reusable = False
        self._unsent = False
        self._held = False
        self._poll: select.poll | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        # With the least bound, pause_writing() means: the kernel has not taken the whole request yet.
        self.transport.set_write_buffer_limits(high=1, low=0)
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def usable(self, idle_after: float) -> bool:
        """Is an idle connection fit for a request? One that is readable was closed (or spoken on) by the upstream,
        even if the event loop has not got round to saying so."""
        return (
            not self.lost
            and not self.transport.is_closing()
            and self.idle_since > idle_after
            and not (self._poll is not None and self._poll.poll(0))
        )

    def begin(self, exchange: UpstreamExchange, head: bytes, body: bytes) -> None:
        self._exchange = exchange
        self._complete = self._reusable = self._until_close = self._unreadable = False
        self._quiet_bytes = self._head_bytes = 0
        self._first_bytes = b""
        self._headers = {}
        if len(body) <= _JOIN_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)

    def is_sending(self) -> bool:
        """Is a part of the request still here, and nothing answered yet?"""
        return self._unsent and not self._quiet_bytes

    def abandon(self) -> None:
        """Close at once; whatever is under way has its error already."""
        self._exchange = None
        self.transport.abort()

    def hold_back(self, hold: bool) -> None:
        if hold != self._held and not self.transport.is_closing():
            self._held = hold
            if hold:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def pause_writing(self) -> None:
        self._unsent = True

    def resume_writing(self) -> None:
        self._unsent = False

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:  # nobody asked
            self.transport.abort()
            return
        self._quiet_bytes += len(data)
        if len(self._first_bytes) < len(_HTTP):
            self._first_bytes += data[: len(_HTTP)]
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                exchange.fail(self._malformed(error))
                return
            self._reusable = False
        if self._complete and self._exchange is exchange:
            self._finish(exchange)
        elif self._quiet_bytes > MAX_HEAD_BYTES:
            # Bytes that are no body: a head, a trailer or chunk extensions without end.
            self._too_much_head(exchange)

    def _malformed(self, error: Exception) -> MalformedResponse:
        if isinstance(error, httptools.HttpParserUpgrade):
            return NotHttp(self.origin, "the response is not HTTP/1.1: an upgrade nobody asked for")
        if not self._first_bytes.startswith(_HTTP[: len(self._first_bytes)]):
            return NotHttp(self.origin, f"the response is not HTTP/1.1{spoken(self._first_bytes)}")
        return MalformedResponse(self.origin, f"the response is not HTTP/1.1: {error}")

    def _finish(self, exchange: UpstreamExchange) -> None:
        self._exchange = None
        exchange.end()
        self.hold_back(False)
        self.answered += 1
        if self._reusable and not self._unsent:
            self._on_free(self)
        else:
            self.transport.abort()  # a close() would wait to send the rest of a request nobody reads

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if not exchange.status and self.is_sending():
                exchange.fail(NeverSent(self.origin, "the connection was lost before the request had left whole"))
            elif not self._quiet_bytes and isinstance(exc, ssl.SSLError) and "CERTIFICATE" in str(exc.reason).upper():
                # TLS 1.3 refuses a client after its handshake, and then reads nothing that it sent.
                exchange.fail(Unreachable(self.origin, "tls_failed", f"the upstream refused TLS: {exc.reason}"))
            elif not exchange.status:
                exchange.fail(ResponseLost(self.origin, "the connection was lost after sending, without an answer"))
            elif self._until_close and exc is None:
                exchange.end()
            else:
                exchange.fail(BodyCut(self.origin, "the connection was lost inside the response body"))
        self._on_lost(self)

    def _too_much_head(self, exchange: UpstreamExchange) -> None:
        exchange.fail(ResponseTooLarge(self.origin, f"the response head is over {MAX_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        if self._complete:  # a second response to one request
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        exchange = self._exchange
        if exchange is None or exchange.status or self._complete:  # trailers and strays carry nothing we use
            return
        if self._head_bytes > MAX_HEAD_BYTES:
            self._too_much_head(exchange)
            return
        name = name.lower()
        known = self._headers.get(name)
        self._headers[name] = value if known is None else known + b", " + value

    def on_headers_complete(self) -> None:
        status, exchange = self._parser.get_status_code(), self._exchange
        if exchange is None or self._complete or status < 200:
            self._headers = {}
            return
        headers = self._headers
        if headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
            if status < 300:
                exchange.fail(MalformedResponse(self.origin, "the body is compressed although identity was asked for"))
                return
            self._unreadable = True  # its status says enough
        self._until_close = (
            b"content-length" not in headers and b"chunked" not in headers.get(b"transfer-encoding", b"").lower()
        )
        exchange.head(status, headers)

    def on_body(self, chunk: bytes) -> None:
        if self._exchange is not None and not self._complete:
            self._quiet_bytes = 0
            if not self._unreadable:
                self._exchange.body(chunk, self)

    def on_message_complete(self) -> None:
        if self._exchange is not None and self._exchange.status and not self._complete:
            self._complete = True
            self._reusable = self._parser.should_keep_alive()
