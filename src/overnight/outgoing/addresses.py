"""The address policy for URLs that the operator did not configure: the addresses that connections may use.

The ranges are listed here, because the properties of `ipaddress` (`is_private`, `is_global`) differ between Python versions.
"""

from __future__ import annotations

import re
import socket
from fnmatch import translate
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import msgspec

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
"""An entry of `getaddrinfo`: family, type, protocol, canonical name, socket address."""
Network = IPv4Network | IPv6Network

_NUMBER = re.compile("0x[0-9a-f]*|[0-9]+")
_IPV4 = [
    (IPv4Network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "cloud platform"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmark"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
]
_IPV6 = [
    (IPv6Network(network), kind)
    for network, kind in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "IPv4-compatible"),
        ("::ffff:0:0:0/96", "IPv4-translated"),
        ("64:ff9b:1::/48", "local NAT64"),
        ("100::/64", "discard"),
        ("2001:0::/32", "Teredo"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("3fff::/20", "documentation"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
]
_GLOBAL = IPv6Network("2000::/3")
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")


def effective_address(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address behind a mapped (::ffff:0:0/96) or NAT64 (64:ff9b::/96) address; else the address itself."""
    if isinstance(address, IPv6Address):
        address = IPv6Address(int(address))  # without a scope
        if address in _MAPPED or address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def non_public_kind(address: IPv4Address | IPv6Address) -> str | None:
    """The kind of an address that is not public, such as "loopback"; None for a public address.

    An IPv6 address with an embedded IPv4 address has the kind of that address (mapped, NAT64) or is never public (6to4, Teredo).
    """
    address = effective_address(address)
    if isinstance(address, IPv4Address):
        return next((kind for network, kind in _IPV4 if address in network), None)
    kind = next((kind for network, kind in _IPV6 if address in network), None)
    return kind or (None if address in _GLOBAL else "reserved")


class AddressPolicy(msgspec.Struct, frozen=True):
    """The hosts that requests may reach. Default: public addresses only, and no host through a proxy.

    Attributes:
        networks: non-public networks that are allowed, such as 10.1.0.0/16.
        proxied_names: host names or globs that requests may reach through a proxy. The proxy resolves them, so
            their addresses cannot be checked.
    """

    networks: tuple[Network, ...] = ()
    proxied_names: tuple[str, ...] = ()

    @staticmethod
    def of(networks: tuple[str, ...] = (), proxied_names: tuple[str, ...] = ()) -> AddressPolicy:
        """A policy from text. Raises ValueError for an invalid network."""
        return AddressPolicy(tuple(ip_network(each) for each in networks), proxied_names)

    def refusal(self, infos: list[AddressInfo]) -> str | None:
        """The reason why the addresses of a host are forbidden; None if all of them are allowed."""
        if not infos:
            return "it has no address"
        for family, _, _, _, place in infos:
            if family not in (socket.AF_INET, socket.AF_INET6):
                return "its address is not an IP address"
            address = ip_address(str(place[0]).partition("%")[0])
            kind = non_public_kind(address)
            if kind is not None and not self._allows(address):
                return f"its address {address} is not public ({kind})"
        return None

    def _allows(self, address: IPv4Address | IPv6Address) -> bool:
        effective = effective_address(address)
        return any(effective in network for network in self.networks)

    def allows_proxied(self, host: str) -> bool:
        """Whether requests may reach a host through a proxy. A glob matches no IP address in any spelling (127.1, 0x7f000001)."""
        name = host.lower().rstrip(".")
        if ":" in name or _NUMBER.fullmatch(name.rpartition(".")[2]):
            return name in self.proxied_names
        return any(re.match(translate(glob.lower()), name) for glob in self.proxied_names)
