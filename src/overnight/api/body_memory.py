"""How much of request bodies the gateway holds: of one API key, of one tenant, and in all.

A body counts from its first piece on until its call is answered: it waits in memory for as long as the call waits in queues and
for its provider. A small body that comes in one piece costs nothing here: the number of requests of a key is bounded too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from overnight.gateway import Overloaded, RateLimited
from overnight.keys import VirtualKey

PER_KEY, PER_TENANT, IN_ALL = 2, 4, 8
"""In bodies of `limits.max_body_bytes`."""
SMALL = 64 * 1024
"""Bytes of a body in one piece that are not counted."""

Count = Callable[[int], None]


class BodyMemory:
    """`largest` tells `limits.max_body_bytes`."""

    def __init__(self, largest: Callable[[], int]) -> None:
        self._largest = largest
        self._total = 0
        self._held: dict[tuple[str, str], int] = {}

    @contextmanager
    def holding(self, key: VirtualKey | None) -> Generator[Callable[[int], None]]:
        """Count one body for the length of the block: call what this yields with the size of each piece. It raises RateLimited
        and Overloaded."""
        holders = ((("key", key.key_id), PER_KEY), (("tenant", key.tenant_id), PER_TENANT)) if key else ()
        held, size = self._held, 0

        def add(more: int) -> None:
            nonlocal size
            largest = self._largest()
            for holder, share in holders:
                if held.get(holder, 0) + more > share * largest:
                    most = f"{share * largest:,} bytes"
                    raise RateLimited(
                        f"the {holder[0]} has unfinished or unanswered request bodies of over {most}; send fewer at once",
                        1,
                    )
            if self._total + more > IN_ALL * largest:
                most = f"{IN_ALL * largest:,} bytes"
                raise Overloaded(f"unfinished or unanswered request bodies hold {most}, the maximum; try again")
            size += more
            self._total += more
            for holder, _ in holders:
                held[holder] = held.get(holder, 0) + more

        try:
            yield add
        finally:
            self._total -= size
            for holder, _ in holders:
                left = held.get(holder, 0) - size
                if left > 0:
                    held[holder] = left
                else:
                    held.pop(holder, None)
