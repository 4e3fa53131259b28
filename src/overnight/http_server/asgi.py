"""ASGI types, and the extension of this server for streams."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class Direct(Protocol):
    """Writes a stream without a turn of the event loop for each piece."""

    def write(self, piece: bytes) -> bool:
        """Write one piece of the response body. Return False when the client is behind: await `caught_up` then."""
        ...

    async def caught_up(self) -> None: ...

    def has_left(self) -> bool:
        """Return whether the client has closed its connection."""
        ...


DIRECT = "overnight.direct"
"""Name of the ASGI extension whose value is a `Direct`."""
