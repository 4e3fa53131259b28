"""Limits on open connections, in total and per client address, and on concurrent requests per API key."""

from __future__ import annotations

import resource
from ipaddress import IPv6Address

import msgspec

MAX_REFUSALS = 64
"""Maximum of concurrent connections above a limit that receive an error response. Further ones are closed without one."""
RESERVED_FILES = 128


class ConnectionLimits(msgspec.Struct, frozen=True):
    """`total` and `per_address` limit open connections, `per_key` requests in progress."""

    total: int = 16_384
    per_address: int = 4_096
    per_key: int = 2_048


class ConnectionCounts:
    """The open connections of one server."""

    def __init__(self, limits: ConnectionLimits) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # A call needs a second file descriptor: the connection to the provider.
        possible = limits.total if files == resource.RLIM_INFINITY else max(8, (files - RESERVED_FILES) // 2)
        self._limit, self._per_address = min(limits.total, possible), limits.per_address
        self._total = 0
        self._by_address: dict[str, int] = {}

    def add(self, address: str) -> tuple[str, tuple[int, str] | None]:
        """Count a connection. Returns the network it counts for, and status and message of a refusal (None: accepted).

        A refused connection counts until it is closed, because it uses a socket too. Status 0: close it without a response.
        """
        network = network_of(address)
        count = self._by_address[network] = self._by_address.get(network, 0) + 1
        self._total += 1
        over = max(self._total - self._limit, count - self._per_address)
        if over > MAX_REFUSALS:
            return network, (0, "")
        if self._total > self._limit:
            return network, (503, "the gateway has reached its connection limit (OVERNIGHT_MAX_CONNECTIONS)")
        if count > self._per_address:
            return network, (429, "too many connections from this address (OVERNIGHT_MAX_CONNECTIONS_PER_ADDRESS)")
        return network, None

    def remove(self, network: str) -> None:
        """Stop counting a closed connection of this network."""
        self._total -= 1
        left = self._by_address.get(network, 0) - 1
        if left > 0:
            self._by_address[network] = left
        else:
            self._by_address.pop(network, None)


def network_of(address: str) -> str:
    """The network that an address counts for: an IPv4 address itself, an IPv6 address's /64, which one host controls."""
    if ":" not in address:
        return address
    parsed = IPv6Address(address.partition("%")[0])
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Address(int(parsed) >> 64 << 64))
