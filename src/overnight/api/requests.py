"""Requests and responses in plain ASGI: bounded bodies, without a framework on the hot path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from overnight.domain import BadInput, parse_whole
from overnight.gateway import BodyTooLarge, BroadcastBuffer, HttpResponse
from overnight.http_server import DIRECT, Direct, Headers, Receive, Scope, Send
from overnight.keys import VirtualKey

from .body_memory import SMALL, Count
from .routes import PathRoute


class ClientLeft(Exception):
    """The client disconnected before its request was complete."""


class Request(msgspec.Struct):
    """One request that the front has let in. `names` are the names in its path; `tenant_id` is the tenant whose resources it can
    access. `authenticate` checks its key again, for long responses; it raises the same errors. `body` is read by the part that
    serves it."""

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
    """The complete body; `count` receives the size of each piece (see `BodyMemory.holding`). Raises BodyTooLarge as soon as it
    exceeds `most` bytes, RateLimited or Overloaded if bodies hold too much memory, ClientLeft."""
    for name, value in headers:
        if name == b"content-length" and parse_whole(value.lstrip(b"0") or b"0", most) is None:
            raise _too_large(most)
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
