"""The client of a request that came through a proxy: `X-Forwarded-For`, `X-Forwarded-Proto` and `Forwarded` (RFC 7239).

Any client can send these headers, so only those of trusted proxies are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

from .asgi import Headers

FORWARDED = "overnight.forwarded"
"""Scope key of a request that a trusted proxy forwarded over TCP: its client is not the connected peer."""
_FIELDS = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"forwarded"})
_PAIR = re.compile(r'\s*([A-Za-z]+)\s*=\s*("[^"\\]*"|[^\s",;]+)\s*(?:;|$)')
_SCHEMES = ("http", "https")
MAX_HOPS = 32


class ForwardedClient(NamedTuple):
    """The original client: its address and the scheme that it used; None where the headers do not state it."""

    host: str | None
    scheme: str | None


class TrustedProxies:
    """The proxies whose forwarded headers are read. `networks` are addresses or CIDR blocks.

    Raises ValueError for an invalid network; the message contains it.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = [ip_network(each, strict=False) for each in networks]

    def trusts(self, address: str) -> bool:
        """Whether the peer is a trusted proxy. A Unix socket ("") is one: its file permissions control access."""
        if not address:
            return True
        if not self._networks:
            return False
        parsed = _address(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def client_of(self, headers: Headers) -> ForwardedClient | None:
        """The client that the headers of a trusted proxy name; None if there are none.

        Every proxy appends the address of its peer. The last address that is not a trusted proxy is the client; the client
        itself may have sent the addresses before it. `X-Forwarded-For` takes precedence over `Forwarded`.
        """
        fields: dict[bytes, list[str]] = {}
        for name, value in headers:
            if name in _FIELDS:
                fields.setdefault(name, []).append(value.decode("latin-1"))
        if not fields:
            return None
        hops, scheme = _forwarded(fields.get(b"forwarded", []))
        if b"x-forwarded-for" in fields:
            hops = ",".join(fields[b"x-forwarded-for"]).split(",")
        if b"x-forwarded-proto" in fields:
            scheme = ",".join(fields[b"x-forwarded-proto"]).rpartition(",")[2].strip().lower()
        return ForwardedClient(self._client(hops), scheme if scheme in _SCHEMES else None)

    def _client(self, hops: list[str]) -> str | None:
        found: str | None = None
        for hop in reversed(hops[-MAX_HOPS:]):
            parsed = _address(_without_port(hop.strip()))
            if parsed is None:
                break
            found = str(parsed)
            if not any(parsed in network for network in self._networks):
                break
        return found


@lru_cache(maxsize=4096)
def is_loopback(address: str) -> bool:
    """Whether an address is a loopback address; a Unix socket ("") counts as one."""
    parsed = _address(address)
    return not address or (parsed is not None and parsed.is_loopback)


def _forwarded(values: list[str]) -> tuple[list[str], str | None]:
    """The hops of `Forwarded`, and the scheme of its last element."""
    hops: list[str] = []
    scheme: str | None = None
    for element in ",".join(values).split(","):
        pairs = {name.lower(): value.strip('"') for name, value in _PAIR.findall(element)}
        hops.append(pairs.get("for", ""))
        scheme = pairs.get("proto", "").lower()
    return hops, scheme


def _without_port(hop: str) -> str:
    """`192.0.2.1:80` and `[2001:db8::1]:80` without the port."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an address; None if invalid. An IPv4-mapped IPv6 address becomes IPv4."""
    try:
        parsed = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed
