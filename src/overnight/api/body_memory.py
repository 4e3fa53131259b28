"""Limits for the memory of request bodies: per API key, per tenant and in total.

A body counts from its first piece until its call is answered: it stays in memory while the call waits in queues and for its
provider. A small body that arrives in one piece is not counted: the number of requests of a key is limited too.
"""

from __future__ import annotations

from collections.abc import Callable

from overnight.gateway import Overloaded, RateLimited
from overnight.keys import VirtualKey

PER_KEY, PER_TENANT, TOTAL = 2, 4, 8
"""In bodies of `limits.max_body_bytes`."""
SMALL = 64 * 1024
"""Bytes of a body in one piece that are not counted."""

Count = Callable[[int], None]
Holders = tuple[tuple[tuple[str, str], int], ...]
"""Who holds a body, and the share of each in bodies of the maximum size."""


class BodyMemory:
    """`largest` returns `limits.max_body_bytes`."""

    def __init__(self, largest: Callable[[], int]) -> None:
        self._largest = largest
        self._total = 0
        self._held: dict[tuple[str, str], int] = {}

    def holding(self, key: VirtualKey | None) -> HeldBody:
        """Count one body during the block: call the object with the size of each piece. It raises RateLimited and
        Overloaded."""
        return HeldBody(self, key)

    def hold(self, holders: Holders, more: int) -> None:
        """Count `more` bytes. Raises RateLimited, Overloaded."""
        held, largest = self._held, self._largest()
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
        self._total += more
        for holder, _ in holders:
            held[holder] = held.get(holder, 0) + more

    def release(self, holders: Holders, size: int) -> None:
        """Count `size` bytes no longer."""
        held = self._held
        self._total -= size
        for holder, _ in holders:
            left = held.get(holder, 0) - size
            if left > 0:
                held[holder] = left
            else:
                held.pop(holder, None)


class HeldBody:
    """The body of one request, counted during a block."""

    __slots__ = ("_holders", "_memory", "_size")

    def __init__(self, memory: BodyMemory, key: VirtualKey | None) -> None:
        self._memory, self._size = memory, 0
        self._holders: Holders = (
            ((("key", key.key_id), PER_KEY), (("tenant", key.tenant_id), PER_TENANT)) if key else ()
        )

    def __enter__(self) -> HeldBody:
        return self

    def __call__(self, more: int) -> None:
        self._memory.hold(self._holders, more)
        self._size += more

    def __exit__(self, *_: object) -> None:
        if self._size:
            self._memory.release(self._holders, self._size)
