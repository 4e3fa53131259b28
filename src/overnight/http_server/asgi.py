"""ASGI types, and the extension of this server for streams."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class Direct(Protocol):
    """Writes a streamed response body without a turn of the event loop per chunk."""

    def write(self, piece: bytes) -> bool:
        """Write one chunk of the response body. Return False if the write buffer is full: await `drain` then."""
        ...

    async def drain(self) -> None:
        """Wait until the write buffer has room or the client has disconnected."""
        ...

    def detect_disconnect(self) -> bool:
        """Return whether the client has closed its connection."""
        ...


DIRECT = "overnight.direct"
"""Name of the ASGI extension whose value is a `Direct`."""
