"""Open connections to one host: resolve its name, check and race its addresses, connect through a proxy, start TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, TypeVar, cast

from aiohappyeyeballs import start_connection  # pyright: ignore[reportUnknownVariableType]

from .addresses import AddressInfo, AddressPolicy
from .proxies import Proxy
from .tls import tls_context
from .transport_errors import NeverSent, Unreachable, no_connection

Resolve = Callable[[str, int], Awaitable[list[AddressInfo]]]
ATTEMPT_DELAY_S = 0.25
"""The delay before a concurrent attempt with the next address of a host (RFC 8305)."""
_MAX_CONNECT_ANSWER = 16 * 1024


T = TypeVar("T", bound=asyncio.Protocol)


async def resolve(host: str, port: int) -> list[AddressInfo]:
    """Resolve a host with the system's resolver. Raises OSError."""
    loop = asyncio.get_running_loop()
    return cast("list[AddressInfo]", await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def _literal(host: str, port: int) -> AddressInfo | None:
    """The address if the host is a literal IP address; None for a name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if address.version == 4:
        return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))
    if "%" in host:  # the system must resolve a zone
        return None
    return (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, 0, 0))


class Dialer:
    """Connects to one host, directly or through a proxy.

    Args:
        host: a name or an address, without brackets.
        origin: the name of the host in errors.
        tls: the TLS settings; None for a plain connection.
        proxy: the proxy. TLS uses a tunnel; for plain HTTP, the caller must send requests in absolute form.
        policy: the allowed addresses; None: all.
        resolver: resolves host names; default: the system's resolver.
    """

    def __init__(
        self,
        host: str,
        port: int,
        origin: str,
        *,
        tls: ssl.SSLContext | None = None,
        proxy: Proxy | None = None,
        policy: AddressPolicy | None = None,
        resolver: Resolve | None = None,
    ) -> None:
        self._host, self._port, self._origin = host, port, origin
        self._tls, self._proxy, self._policy = tls, proxy, policy
        self._resolve = resolver or resolve
        self._proxy_tls: ssl.SSLContext | None = None

    async def connect(self, loop: asyncio.AbstractEventLoop, factory: Callable[[], T]) -> T:
        """Open a connection with a protocol from `factory`. Raises UpstreamError; nothing was sent to the host then."""
        proxy = self._proxy
        if proxy is None:
            try:
                sock = await self._socket(loop, self._host, self._port, self._policy)
                return await _over(loop, factory, sock, self._tls, self._host)
            except OSError as error:
                raise no_connection(self._origin, error) from None
        if self._policy is not None and not self._policy.allows_proxied(self._host):
            problem = "the address policy does not allow this host through a proxy"
            raise Unreachable(self._origin, "address_refused", problem)
        if self._tls is None:
            return await self._to_proxy(loop, proxy, factory)
        tunnel = await self._to_proxy(loop, proxy, lambda: _Tunnel(loop))
        try:
            await self._ask(proxy, tunnel)
            return await self._secure(loop, tunnel, factory)
        except BaseException:
            tunnel.transport.abort()
            raise

    async def _socket(
        self, loop: asyncio.AbstractEventLoop, host: str, port: int, policy: AddressPolicy | None
    ) -> socket.socket:
        """Connect to the first address that responds. Only the checked addresses are used; the name is not resolved again."""
        literal = _literal(host, port)
        infos = [literal] if literal is not None else await self._resolve(host, port)
        if policy is not None and (problem := policy.refusal(infos)) is not None:
            raise Unreachable(self._origin, "address_refused", f"the address policy forbids this host: {problem}")
        if not infos:
            raise OSError("the host has no address")
        sock = await start_connection(cast("Any", infos), happy_eyeballs_delay=ATTEMPT_DELAY_S, interleave=1, loop=loop)
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    async def _to_proxy(self, loop: asyncio.AbstractEventLoop, proxy: Proxy, factory: Callable[[], T]) -> T:
        """Open a connection to the proxy itself."""
        try:
            if proxy.is_secure and self._proxy_tls is None:
                self._proxy_tls = tls_context()
            sock = await self._socket(loop, proxy.host, proxy.port, None)
            return await _over(loop, factory, sock, self._proxy_tls, proxy.host)
        except OSError as error:
            raise no_connection(self._origin, error, f"proxy {proxy.origin}: ") from None

    async def _ask(self, proxy: Proxy, tunnel: _Tunnel) -> None:
        """Request a tunnel to the host from the proxy."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        where = f"{host}:{self._port}".encode("ascii")
        head = b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n" % (where, where)
        if proxy.authorization:
            head += b"proxy-authorization: %b\r\n" % proxy.authorization
        status = await tunnel.ask(head + b"\r\n")
        if status is None:
            raise NeverSent(self._origin, f"proxy {proxy.origin}: no valid response to CONNECT")
        if not 200 <= status < 300:
            raise proxy_refusal(self._origin, proxy, status)

    async def _secure(self, loop: asyncio.AbstractEventLoop, tunnel: _Tunnel, factory: Callable[[], T]) -> T:
        """Start TLS with the host inside of the tunnel."""
        assert self._tls is not None
        made = factory()
        try:
            transport = await loop.start_tls(tunnel.transport, made, self._tls, server_hostname=self._host.rstrip("."))
        except OSError as error:
            raise no_connection(self._origin, error) from None
        if transport is None:
            raise NeverSent(self._origin, "the tunnel was closed during the TLS handshake")
        made.connection_made(transport)  # start_tls does not call connection_made
        return made


def proxy_refusal(origin: str, proxy: Proxy, status: int) -> NeverSent:
    """The error for a proxy that refuses a request. A 5xx may be temporary."""
    problem = f"proxy {proxy.origin} answered {status}"
    if status == 407:
        hint = "the credentials are wrong" if proxy.authorization else "add user:password@ to the URL of the proxy"
        return Unreachable(origin, "proxy_refused", f"{problem}, proxy authentication required: {hint}")
    if status >= 500:
        return NeverSent(origin, problem)
    return Unreachable(origin, "proxy_refused", f"{problem}: it does not allow this host")


async def _over(
    loop: asyncio.AbstractEventLoop,
    factory: Callable[[], T],
    sock: socket.socket,
    tls: ssl.SSLContext | None,
    host: str,
) -> T:
    """Create a protocol for a connected socket."""
    try:
        _, made = await loop.create_connection(
            factory, sock=sock, ssl=tls, server_hostname=host.rstrip(".") if tls is not None else None
        )
    except BaseException:
        sock.close()
        raise
    return made


class _Tunnel(asyncio.Protocol):
    """A CONNECT exchange with a proxy: sends the request and reads the head of the response."""

    transport: asyncio.Transport

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._status: asyncio.Future[int | None] = loop.create_future()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    async def ask(self, head: bytes) -> int | None:
        """Send the request. Returns the status of the response; None if it is not HTTP, or the connection is lost."""
        self.transport.write(head)
        return await self._status

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._status.done():
            return
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if end:
            self._status.set_result(_status_of(head, rest))
        elif len(self._received) > _MAX_CONNECT_ANSWER:
            self._status.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as asyncio calls it
        if not self._status.done():
            self._status.set_result(None)


def _status_of(head: bytes, rest: bytes) -> int | None:
    parts = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit() or len(parts[1]) != 3:
        return None
    status = int(parts[1])
    if status == 200 and rest:  # the host cannot send data before the client
        return None
    return status
