"""How much of bodies that are not whole yet the gateway holds: of one API key, of one tenant, and in all.

A body that comes in one piece costs nothing here. Rate limits and budgets count calls, which begin when the body is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from overnight.gateway import Overloaded, RateLimited
from overnight.keys import VirtualKey

PER_KEY, PER_TENANT, IN_ALL = 2, 4, 8
"""In bodies of `limits.max_body_bytes`."""


class BodyMemory:
    """`largest` tells `limits.max_body_bytes`."""

    def __init__(self, largest: Callable[[], int]) -> None:
        self._largest = largest
        self._total = 0
        self._held: dict[tuple[str, str], int] = {}

    @contextmanager
    def reading(self, key: VirtualKey | None) -> Generator[Callable[[int], None]]:
        """Count one body: call what this yields with the size of each piece. It raises RateLimited and Overloaded."""
        holders = ((("key", key.key_id), PER_KEY), (("tenant", key.tenant_id), PER_TENANT)) if key else ()
        held, size = self._held, 0

        def add(more: int) -> None:
            nonlocal size
            largest = self._largest()
            for holder, share in holders:
                if held.get(holder, 0) + more > share * largest:
                    most = f"{share * largest:,} bytes"
                    raise RateLimited(
                        f"the {holder[0]} has unfinished request bodies of over {most}; send fewer at once", 1
                    )
            if self._total + more > IN_ALL * largest:
                raise Overloaded(f"unfinished request bodies hold {IN_ALL * largest:,} bytes, the most; try again")
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
