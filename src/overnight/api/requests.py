"""Requests and responses in plain ASGI: bounded bodies, without a framework on the hot path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from overnight.domain import BadInput, parse_whole
from overnight.gateway import BodyTooLarge, BroadcastBuffer, HttpResponse, UnsupportedEncoding
from overnight.http_server import DIRECT, Direct, Headers, Receive, Scope, Send
from overnight.keys import VirtualKey
from overnight.outgoing import (
    BodyTruncated,
    ContentDecoder,
    InvalidEncoding,
    RatioExceeded,
    TooMuchDecoded,
    content_decoder,
)

from .body_memory import SMALL, Count
from .routes import PathRoute


class ClientLeft(Exception):
    """The client disconnected before its request was complete."""


class Request(msgspec.Struct):
    """One request that the front has let in.

    `names` are the names in its path; `tenant_id` is the tenant whose resources it can access. `authenticate` checks its key
    again, for long responses; it raises the same errors. `body` is read by the part that serves it. `detect_disconnect` tells
    whether the client has disconnected, where that can be known.
    """

    route: PathRoute
    names: list[str]
    method: str
    query: bytes
    headers: Headers
    receive: Receive
    authenticate: Callable[[], Awaitable[object]]
    tenant_id: str = "default"
    key: VirtualKey | None = None
    body: bytes = b""
    detect_disconnect: Callable[[], bool] | None = None

    @property
    def actor(self) -> str:
        """The actor that events record."""
        return self.key.name if self.key else "api"

    @property
    def key_id(self) -> str | None:
        """The API key that audit entries record."""
        return self.key.key_id if self.key else None

    def header(self, name: bytes) -> bytes:
        return next((value for key, value in self.headers if key == name), b"")


async def read_body(receive: Receive, most: int, headers: Headers, count: Count) -> bytes:
    """The complete body, decoded; `count` receives the size of each piece (see `BodyMemory.holding`). Raises BodyTooLarge as
    soon as it exceeds `most` bytes, UnsupportedEncoding before it is read, BadInput for a body that is not in its encoding,
    RateLimited or Overloaded if bodies hold too much memory, ClientLeft."""
    encoding = b""
    for name, value in headers:
        if name == b"content-length" and parse_whole(value.lstrip(b"0") or b"0", most) is None:
            raise _too_large(most)
        if name == b"content-encoding":
            encoding = encoding + b"," + value if encoding else value
    if encoding and (decoder := _decoder(encoding, most)) is not None:
        return await _read_encoded(receive, most, decoder, encoding, count)
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        parts, size = [body], len(body)
        count(size)
        while message.get("more_body") and size <= most:
            message = await receive()
            part: bytes = message.get("body", b"")
            count(len(part))
            parts.append(part)
            size += len(part)
        body = b"".join(parts)
    elif SMALL < len(body) <= most:
        count(len(body))
    if message["type"] == "http.disconnect":
        raise ClientLeft
    if len(body) > most:
        raise _too_large(most)
    return body


def _decoder(encoding: bytes, most: int) -> ContentDecoder | None:
    try:
        return content_decoder(encoding, most, strict=True)
    except InvalidEncoding as error:
        raise UnsupportedEncoding(f"content-encoding: {error}; or send the body plain") from None


async def _read_encoded(receive: Receive, most: int, decoder: ContentDecoder, encoding: bytes, count: Count) -> bytes:
    """See `read_body`. Each piece is decoded as it arrives, so that the event loop is not blocked for long."""
    parts: list[bytes] = []
    size, has_more = 0, True
    try:
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > most:
                raise _too_large(most)
            for part in decoder.feed(piece):
                count(len(part))
                parts.append(part)
            has_more = bool(message.get("more_body"))
        decoder.finish()
    except RatioExceeded as error:
        raise BodyTooLarge(f"content-encoding: {error}; send it plain") from None
    except TooMuchDecoded:
        raise _too_large(most) from None
    except (InvalidEncoding, BodyTruncated) as error:
        shown = ascii(encoding[:40].decode("latin-1"))[1:-1]
        problem = f"content-encoding: the body is not valid {shown} ({error})"
        raise BadInput(f"{problem}; encode it so, or omit the header") from None
    return b"".join(parts)


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body exceeds the maximum of {most:,} bytes (limits.max_body_bytes)")


async def send_answer(scope: Scope, send: Send, answer: HttpResponse) -> None:
    headers, pieces = answer.headers, answer.pieces
    if pieces is None:
        headers.append((b"content-length", b"%d" % len(answer.body)))
    try:
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        direct: Direct | None = scope.get("extensions", {}).get(DIRECT) if isinstance(pieces, BroadcastBuffer) else None
        if isinstance(pieces, BroadcastBuffer) and direct is not None:
            await pieces.flow(direct.write, direct.drain)
        elif pieces is not None:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": answer.body})
    finally:
        close: Callable[[], Awaitable[None]] | None = getattr(pieces, "aclose", None)
        if close is not None:
            await close()


def text_of(value: bytes, place: str) -> str:
    """The value of a header as text. Raises BadInput."""
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise BadInput(f"{place}: only ASCII text is allowed") from None
