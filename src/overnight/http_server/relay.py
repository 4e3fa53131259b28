"""Relays requests to an HTTP server of this machine on a unix socket, as an ASGI application.

Each request has its own connection. Bodies are streamed in both directions, so uploads and live events are not buffered. The
response is relayed even if the server sends it before it has read the body.
"""

from __future__ import annotations

import asyncio
import contextlib

import httptools

from .asgi import DIRECT, Direct, Headers, Receive, Scope, Send

CHUNK_BYTES = 64 * 1024
RESPONSE_HEAD_TIMEOUT_S = 60.0
"""Maximum wait for the head of a response, after the request was sent. Live events send theirs at once."""
CHECK_INTERVAL_S = 1.0
_LIVE = b"text/event-stream"
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect")
)
_FORWARDED = frozenset((b"x-forwarded-for", b"x-forwarded-proto", b"forwarded"))
"""Replaced by the relay: the server on the socket trusts it, and clients may send forged values."""


class RelayUnavailable(Exception):
    """The server on the socket did not accept the request."""


class RelayBroken(Exception):
    """The server accepted the request and sent no response. It may have executed the request."""


class UnixRelay:
    """Relays requests to the server that listens on `path`."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay one request.

        Raises RelayUnavailable or RelayBroken before the response starts; ConnectionError if the response is interrupted.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
        except OSError as error:
            raise RelayUnavailable(error.strerror or str(error)) from None
        state = _State()
        uploading = asyncio.ensure_future(_upload(scope, receive, writer, state))
        try:
            answering = asyncio.ensure_future(_download(scope, reader, send, state))
            await asyncio.wait([uploading, answering], return_when=asyncio.FIRST_COMPLETED)
            if uploading.done() and uploading.exception() is None:
                answering.cancel()  # the client has disconnected
                await asyncio.wait([answering])
                return
            await answering
        finally:
            uploading.cancel()
            await asyncio.wait([uploading])
            writer.close()


async def _upload(scope: Scope, receive: Receive, writer: asyncio.StreamWriter, state: _State) -> None:
    """Send the request. Returns when the client disconnects."""
    headers: Headers = [each for each in scope["headers"] if each[0] not in _HOP_BY_HOP | _FORWARDED]
    is_chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    lines = [b"%b %b HTTP/1.1\r\n" % (scope["method"].encode(), target)]
    lines += [b"%b: %b\r\n" % each for each in headers]
    if client := scope.get("client"):
        lines.append(b"x-forwarded-for: %b\r\n" % client[0].encode())
        lines.append(b"x-forwarded-proto: %b\r\n" % scope["scheme"].encode())
    lines += [b"transfer-encoding: chunked\r\n"] if is_chunked else []
    # A server that refused the body may close its side; its response is still relayed.
    with contextlib.suppress(ConnectionError):
        writer.write(b"".join(lines) + b"connection: close\r\n\r\n")
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = message.get("body", b""), message.get("more_body", False)
            if is_chunked and body:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            if is_chunked and not more:
                body += b"0\r\n\r\n"
            writer.write(body)
            await writer.drain()
    state.is_sent = True
    while (await receive())["type"] != "http.disconnect":
        pass  # discards the rest of a body that the server did not read
    direct: Direct | None = scope.get("extensions", {}).get(DIRECT)
    # A client that closed only its sending side still waits for a response, but not for live events, which never end.
    while direct is not None and not state.is_live and not direct.detect_disconnect():  # noqa: ASYNC110
        await asyncio.sleep(CHECK_INTERVAL_S)


class _State:
    """State that both directions of a relayed request share."""

    is_sent = False
    """The request was sent completely."""
    is_live = False
    """The response is a stream of live events."""


class _Response:
    """Collects the parts of a response from the parser."""

    def __init__(self) -> None:
        self.headers: Headers = []
        self.body: list[bytes] = []
        self.has_head = self.is_complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.has_head = True

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.is_complete = True


async def _download(scope: Scope, reader: asyncio.StreamReader, send: Send, state: _State) -> None:
    """Stream the response to the client."""
    response, is_begun = _Response(), False
    parser = httptools.HttpResponseParser(response)
    while not response.is_complete:
        data = await (reader.read(CHUNK_BYTES) if is_begun else _first_bytes(reader, state))
        if data:
            parser.feed_data(data)
        if response.has_head and parser.get_status_code() < 200:  # interim responses are not relayed
            response.headers.clear()
            response.has_head = response.is_complete = False
            continue
        if response.has_head and not is_begun:
            is_begun = True
            headers = [each for each in response.headers if each[0] not in _HOP_BY_HOP and each[0] != b"date"]
            state.is_live = any(each[0] == b"content-type" and each[1].startswith(_LIVE) for each in headers)
            await send({"type": "http.response.start", "status": parser.get_status_code(), "headers": headers})
        if response.body:
            body, response.body = b"".join(response.body), []
            await send({"type": "http.response.body", "body": body, "more_body": True})
        if not data:
            break
    if not is_begun:
        raise RelayBroken("it closed the connection without a response")
    if not response.is_complete and scope["method"] != "HEAD":
        raise ConnectionError("the response was interrupted")
    await send({"type": "http.response.body", "body": b""})


async def _first_bytes(reader: asyncio.StreamReader, state: _State) -> bytes:
    """Read bytes of the response head. Raises RelayBroken if none arrive in time after the request was sent."""
    while True:
        try:
            async with asyncio.timeout(RESPONSE_HEAD_TIMEOUT_S):
                return await reader.read(CHUNK_BYTES)
        except TimeoutError:
            if state.is_sent:
                raise RelayBroken(f"no response within {RESPONSE_HEAD_TIMEOUT_S:g} seconds") from None
        except OSError as error:
            raise RelayBroken(error.strerror or str(error)) from None
