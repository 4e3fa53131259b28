"""How many connections a gateway holds, in all and from one address, and how many requests of one API key at once."""

from __future__ import annotations

import resource
from ipaddress import IPv6Address

import msgspec

MAX_REFUSALS = 64
"""Connections over a limit that are told so, at once; beyond it they are closed without an answer."""
RESERVED_FILES = 128


class ConnectionLimits(msgspec.Struct, frozen=True):
    """`total` and `per_address` count open connections, `per_key` requests that are being answered."""

    total: int = 16_384
    per_address: int = 4_096
    per_key: int = 2_048


class ConnectionCounts:
    """The open connections of one server."""

    def __init__(self, limits: ConnectionLimits) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # An answer takes a second file: the connection to the provider.
        possible = limits.total if files == resource.RLIM_INFINITY else max(8, (files - RESERVED_FILES) // 2)
        self._limit, self._per_address = min(limits.total, possible), limits.per_address
        self._total = 0
        self._by_address: dict[str, int] = {}

    def add(self, address: str) -> tuple[str, tuple[int, str] | None]:
        """Count a connection from `address`: what it counts as, and how it is refused where that is over a limit.

        A refused connection counts until it is closed, since it takes a socket as well. Status 0: close it at once.
        """
        holder = holder_of(address)
        count = self._by_address[holder] = self._by_address.get(holder, 0) + 1
        self._total += 1
        over = max(self._total - self._limit, count - self._per_address)
        if over > MAX_REFUSALS:
            return holder, (0, "")
        if self._total > self._limit:
            return holder, (503, "the gateway holds as many connections as it may (OVERNIGHT_MAX_CONNECTIONS)")
        if count > self._per_address:
            return holder, (429, "too many connections from this address (OVERNIGHT_MAX_CONNECTIONS_PER_ADDRESS)")
        return holder, None

    def remove(self, holder: str) -> None:
        self._total -= 1
        left = self._by_address.get(holder, 0) - 1
        if left > 0:
            self._by_address[holder] = left
        else:
            self._by_address.pop(holder, None)


def holder_of(address: str) -> str:
    """Who stands behind an address: of IPv6 the network of 64 bits, since every host has all addresses of its own."""
    if ":" not in address:
        return address
    parsed = IPv6Address(address.partition("%")[0])
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Address(int(parsed) >> 64 << 64))
