"""One HTTP/1.1 connection to a server: httptools under asyncio.Protocol. It carries one exchange at a time."""

from __future__ import annotations

import asyncio
import select
import ssl
from collections.abc import Callable
from typing import cast

import httptools

from .content_decoding import BodyTruncated, ContentDecoder, InvalidEncoding, TooMuchDecoded, content_decoder
from .exchange import UpstreamExchange
from .transport_errors import (
    BodyCut,
    MalformedResponse,
    NeverSent,
    NotHttp,
    ResponseLost,
    ResponseTooLarge,
    Unreachable,
    spoken_protocol,
)

MAX_HEAD_BYTES = 64 * 1024
_HTTP = b"HTTP/"
# Below this size one copy is cheaper than a second system call.
_JOIN_BYTES = 64 * 1024


class UpstreamConnection(asyncio.Protocol):
    """One socket: writes a request, parses its response, and reports when it is free or lost."""

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
        self._decoder: ContentDecoder | None = None
        self._complete = False
        self._reusable = False
        self._unsent = False
        self._paused = False
        self._poll: select.poll | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        # With the minimum bound, pause_writing() means that the kernel has not accepted the whole request yet.
        self.transport.set_write_buffer_limits(high=1, low=0)
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def usable(self, idle_after: float) -> bool:
        """Whether an idle connection can carry a request. A readable one was closed by the upstream, or received unexpected
        data, even if the event loop has not reported it yet."""
        return (
            not self.lost
            and not self.transport.is_closing()
            and self.idle_since > idle_after
            and not (self._poll is not None and self._poll.poll(0))
        )

    def begin(self, exchange: UpstreamExchange, head: bytes, body: bytes) -> None:
        self._exchange = exchange
        self._complete = self._reusable = self._until_close = False
        self._decoder = None
        self._quiet_bytes = self._head_bytes = 0
        self._first_bytes = b""
        self._headers = {}
        if len(body) <= _JOIN_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)

    def is_sending(self) -> bool:
        """Whether a part of the request is still unsent and no response has started."""
        return self._unsent and not self._quiet_bytes

    def abandon(self) -> None:
        """Close at once. An exchange in progress must already have its error."""
        self._exchange = None
        self.transport.abort()

    def pause_reading(self, pause: bool) -> None:
        if pause != self._paused and not self.transport.is_closing():
            self._paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def pause_writing(self) -> None:
        self._unsent = True

    def resume_writing(self) -> None:
        self._unsent = False

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:  # data without a request
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
            # Bytes outside the body: an endless head, trailer or chunk extension.
            self._too_much_head(exchange)

    def _malformed(self, error: Exception) -> MalformedResponse:
        if isinstance(error, httptools.HttpParserUpgrade):
            return NotHttp(self.origin, "the response is not HTTP/1.1: an unrequested upgrade")
        if not self._first_bytes.startswith(_HTTP[: len(self._first_bytes)]):
            return NotHttp(self.origin, f"the response is not HTTP/1.1{spoken_protocol(self._first_bytes)}")
        return MalformedResponse(self.origin, f"the response is not HTTP/1.1: {error}")

    def _finish(self, exchange: UpstreamExchange) -> None:
        self._exchange = None
        exchange.end()
        self.pause_reading(False)
        self.answered += 1
        if self._reusable and not self._unsent:
            self._on_free(self)
        else:
            self.transport.abort()  # close() would wait until the rest of an unread request is sent

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if not exchange.status and self.is_sending():
                exchange.fail(NeverSent(self.origin, "the connection was lost before the whole request was sent"))
            elif not self._quiet_bytes and isinstance(exc, ssl.SSLError) and "CERTIFICATE" in str(exc.reason).upper():
                # With TLS 1.3, a server refuses a client after the handshake, without reading its request.
                exchange.fail(Unreachable(self.origin, "tls_failed", f"the upstream refused TLS: {exc.reason}"))
            elif not exchange.status:
                exchange.fail(
                    ResponseLost(self.origin, "the connection was lost after the request was sent, before a response")
                )
            elif self._until_close and exc is None:
                if self._decoded_whole(exchange):
                    exchange.end()
            else:
                exchange.fail(BodyCut(self.origin, "the connection was lost inside the response body"))
        self._on_lost(self)

    def _too_much_head(self, exchange: UpstreamExchange) -> None:
        exchange.fail(ResponseTooLarge(self.origin, f"the response head is larger than {MAX_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        if self._complete:  # a second response to one request
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        exchange = self._exchange
        if exchange is None or exchange.status or self._complete:  # trailers and unexpected responses are ignored
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
        self._until_close = (
            b"content-length" not in headers and b"chunked" not in headers.get(b"transfer-encoding", b"").lower()
        )
        if b"content-encoding" in headers and not self._prepare_decoding(status, exchange):
            return
        exchange.head(status, headers)

    def on_body(self, chunk: bytes) -> None:
        if self._exchange is not None and not self._complete:
            self._quiet_bytes = 0
            if self._decoder is None:
                self._exchange.body(chunk, self)
            else:
                self._decode(self._decoder, chunk, self._exchange)

    def on_message_complete(self) -> None:
        exchange = self._exchange
        if exchange is not None and exchange.status and not self._complete:
            if self._decoder is not None and not self._decoded_whole(exchange):
                return
            self._complete = True
            self._reusable = self._parser.should_keep_alive()

    def _prepare_decoding(self, status: int, exchange: UpstreamExchange) -> bool:
        """Set up the decoding of the body. Returns False for an unknown encoding, unless the status suffices without a body."""
        encoding = self._headers.pop(b"content-encoding")
        try:
            self._decoder = content_decoder(encoding, exchange.room)
        except InvalidEncoding as error:
            if status < 300:
                exchange.fail(MalformedResponse(self.origin, str(error)))
                return False
            self._decoder = ContentDecoder((), 0)
            self._decoder.discard()
        if self._decoder is not None:
            self._headers.pop(b"content-length", None)  # that of the encoded body
        return True

    def _decode(self, decoder: ContentDecoder, chunk: bytes, exchange: UpstreamExchange) -> None:
        try:
            for piece in decoder.feed(chunk):
                if self._exchange is not exchange:
                    return  # ended by its reader or a limit
                exchange.body(piece, self)
        except (InvalidEncoding, TooMuchDecoded) as error:
            self._not_decoded(decoder, error, exchange)

    def _not_decoded(self, decoder: ContentDecoder, error: Exception, exchange: UpstreamExchange) -> None:
        """Handle undecodable bytes: an error response keeps its status and decoded body, another response fails."""
        if exchange.status >= 300:
            decoder.discard()
        elif isinstance(error, TooMuchDecoded):
            exchange.fail(ResponseTooLarge(self.origin, str(error)))
        else:
            exchange.fail(MalformedResponse(self.origin, str(error)))

    def _decoded_whole(self, exchange: UpstreamExchange) -> bool:
        """Finish the decoder at the end of a body. Returns False, and fails the exchange, if the encoded body is incomplete."""
        if self._decoder is None or exchange.status >= 300:
            return True
        try:
            self._decoder.finish()
        except BodyTruncated as error:
            exchange.fail(BodyCut(self.origin, str(error)))
            return False
        return True
