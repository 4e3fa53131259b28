"""Limits for the memory of request bodies: per API key, per tenant and in total.

A body counts from its first piece until its call is answered: it stays in memory while the call waits in queues and for its
provider. A small body that arrives in one piece is not counted: the number of requests of a key is limited too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from overnight.gateway import Overloaded, RateLimited
from overnight.keys import VirtualKey

PER_KEY, PER_TENANT, TOTAL = 2, 4, 8
"""In bodies of `limits.max_body_bytes`."""
SMALL = 64 * 1024
"""Bytes of a body in one piece that are not counted."""

Count = Callable[[int], None]


class BodyMemory:
    """`largest` returns `limits.max_body_bytes`."""

    def __init__(self, largest: Callable[[], int]) -> None:
        self._largest = largest
        self._total = 0
        self._held: dict[tuple[str, str], int] = {}

    @contextmanager
    def holding(self, key: VirtualKey | None) -> Generator[Callable[[int], None]]:
        """Count one body during the block: call the yielded function with the size of each piece. It raises RateLimited and
        Overloaded."""
        holders = ((("key", key.key_id), PER_KEY), (("tenant", key.tenant_id), PER_TENANT)) if key else ()
        held, size = self._held, 0

        def add(more: int) -> None:
            nonlocal size
            largest = self._largest()
            for holder, share in holders:
                if held.get(holder, 0) + more > share * largest:
                    limit = f"{share * largest:,} bytes"
                    raise RateLimited(
                        f"unfinished or unanswered request bodies of this {holder[0]} exceed {limit}; send fewer at once",
                        1,
                    )
            if self._total + more > TOTAL * largest:
                limit = f"{TOTAL * largest:,} bytes"
                raise Overloaded(f"unfinished or unanswered request bodies exceed {limit}; try again later")
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
