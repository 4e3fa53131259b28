"""Selection of the proxy of a URL: by a setting, or by HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit


class ProxyInvalid(ValueError):
    """A proxy setting is invalid. The message names the setting, without credentials."""


class Proxy(NamedTuple):
    """An HTTP proxy. `authorization` is the value of `proxy-authorization`, empty without credentials."""

    host: str
    port: int
    is_secure: bool = False
    authorization: bytes = b""

    @property
    def origin(self) -> str:
        """Host and port, for errors."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"Proxy({self.origin})"


def parse_proxy(text: str, source: str) -> Proxy:
    """Parse a proxy URL: ``http(s)://[user:password@]host[:port]``; without a scheme, http. Raises ProxyInvalid.

    Args:
        source: the name of the setting, for errors.
    """
    problem = f"{source} is not a proxy URL such as http://proxy.example.com:3128"
    try:
        url = urlsplit(text if "://" in text else f"http://{text}")
        host, port = url.hostname, url.port
    except ValueError:
        raise ProxyInvalid(problem) from None
    if url.scheme not in ("http", "https"):
        scheme = re.sub(r"[^a-z0-9+.-]", "", url.scheme)[:20]
        raise ProxyInvalid(f"{source}: {scheme} proxies are not supported; use an http or https proxy")
    if not host or url.path not in ("", "/") or url.query or url.fragment or re.search(r"[\s\\\x00-\x1f\x7f]", text):
        raise ProxyInvalid(problem)
    credentials = b""
    if url.username is not None or url.password is not None:
        name, password = unquote_to_bytes(url.username or ""), unquote_to_bytes(url.password or "")
        credentials = b"Basic " + base64.b64encode(name + b":" + password)
    is_secure = url.scheme == "https"
    try:
        host = host if ":" in host or host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise ProxyInvalid(problem) from None
    # The default ports are those of the schemes, 80 and 443. Only curl uses 1080.
    return Proxy(host, port or (443 if is_secure else 80), is_secure, credentials)


class EnvironmentProxies:
    """The proxies of one environment, read once.

    Lower-case names take precedence; an empty one disables its upper-case form. Connections to loopback addresses and
    `localhost` never use a proxy, as in Go's client.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        # In a CGI program, a client can set HTTP_PROXY with a `Proxy` header.
        http = None if "REQUEST_METHOD" in environ else environ.get("HTTP_PROXY")
        self._http = _setting(environ, "HTTP_PROXY", http)
        self._https = _setting(environ, "HTTPS_PROXY", environ.get("HTTPS_PROXY"))
        self._all = _setting(environ, "ALL_PROXY", environ.get("ALL_PROXY"))
        self._direct = NoProxy(_setting(environ, "NO_PROXY", environ.get("NO_PROXY"))[1])

    def proxy_for(self, host: str, port: int, *, is_secure: bool) -> Proxy | None:
        """The proxy of a host; None to connect directly. Raises ProxyInvalid."""
        name, text = self._https if is_secure else self._http
        if not text:
            name, text = self._all
        if not text or _is_loopback(host) or self._direct.covers(host, port):
            return None
        return parse_proxy(text, name)


def _setting(environ: Mapping[str, str], name: str, upper: str | None) -> tuple[str, str]:
    """The name and value of the effective variable."""
    lower = environ.get(name.lower())
    return (name.lower(), lower.strip()) if lower is not None else (name, (upper or "").strip())


class NoProxy:
    """A NO_PROXY list: names including subdomains, addresses and networks, each with an optional port; ``*`` matches all.

    `example.com`, `.example.com` and `*.example.com` are equivalent. Networks (10.0.0.0/8) match addresses in URLs; names
    are not resolved.
    """

    def __init__(self, text: str) -> None:
        self._names: list[tuple[str, int | None]] = []
        self._networks: list[tuple[IPv4Network | IPv6Network, int | None]] = []
        self._all = False
        for entry in re.split(r"[,\s]+", text.strip().lower()):
            if entry:
                self._add(entry)

    def _add(self, entry: str) -> None:
        if entry == "*":
            self._all = True
            return
        entry = entry.partition("://")[2].rstrip("/") if "://" in entry else entry
        name, port = _split_port(entry)
        try:
            self._networks.append((ip_network(name, strict=False), port))
        except ValueError:
            name = name.removeprefix("*").strip(".")
            if name:
                self._names.append((name, port))

    def covers(self, host: str, port: int) -> bool:
        """Whether the list contains a host."""
        if self._all:
            return True
        host = host.lower().rstrip(".")
        if (address := _address(host)) is not None:
            return any(on in (None, port) and address in network for network, on in self._networks)
        return any(on in (None, port) and (host == name or host.endswith(f".{name}")) for name, on in self._names)


def _split_port(entry: str) -> tuple[str, int | None]:
    """Split an entry into a name, address or network, and its port: `[::1]:8080`, `::1`, `host:80`, `10.0.0.0/8`."""
    if entry.startswith("["):
        address, _, rest = entry[1:].partition("]")
        return address + (rest if rest.startswith("/") else ""), _port(rest[1:]) if rest.startswith(":") else None
    name, colon, port = entry.rpartition(":")
    if colon and ":" not in name and _port(port) is not None:
        return name, _port(port)
    return entry, None


def _port(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else None


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def _is_loopback(host: str) -> bool:
    host = host.lower().rstrip(".")
    address = _address(host)
    return host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback)
