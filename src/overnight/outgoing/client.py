"""Requests to URLs that the operator did not configure: checked addresses, bounded bodies, one deadline."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import Mapping
from urllib.parse import quote, urljoin, urlsplit

import msgspec

from .addresses import AddressPolicy
from .connection_pool import Headers, UpstreamPool
from .dialer import Resolve
from .proxies import EnvironmentProxies
from .tls import TlsFiles, tls_context
from .transport_errors import MalformedResponse

MAX_REDIRECTS = 5
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_MAX_URL = 8192
_UNQUOTED = "/%:@!$&'()*+,;=~-._"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Also sent to another origin after a redirect; other headers may contain secrets.
_HARMLESS = frozenset({b"accept", b"accept-language", b"user-agent"})


class UrlInvalid(ValueError):
    """The URL is invalid or unsupported. The message does not contain it."""


class FetchResponse(msgspec.Struct, frozen=True):
    """A complete response. Header names are lower case; `url` is the final URL after redirects."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes
    url: str


class _Url(msgspec.Struct, frozen=True):
    """A checked URL: `base` is scheme, host and port."""

    base: str
    host: str
    port: int
    is_secure: bool
    path: str


def parse_url(text: str) -> _Url:
    """Parse an http or https URL without credentials. Raises UrlInvalid."""
    if len(text) > _MAX_URL or re.search(r"[\s\\\x00-\x20\x7f]", text):
        raise UrlInvalid(f"a URL has at most {_MAX_URL} characters and no spaces, backslashes or control characters")
    try:
        url = urlsplit(text)
        host, port = url.hostname or "", url.port
        host = host if ":" in host else host.encode("idna").decode("ascii")
    except (ValueError, UnicodeError):
        raise UrlInvalid("the URL has an invalid host or port") from None
    if url.scheme not in ("http", "https") or not host or port == 0:
        raise UrlInvalid("a URL starts with http:// or https:// and a host")
    if url.username is not None or url.password is not None:
        raise UrlInvalid("a URL must not contain credentials")
    is_secure = url.scheme == "https"
    shown = f"[{host}]" if ":" in host else host
    path = quote(url.path or "/", safe=_UNQUOTED)
    if url.query:
        path += "?" + quote(url.query, safe=_UNQUOTED + "?[]")
    port = port or (443 if is_secure else 80)
    return _Url(base=f"{url.scheme}://{shown}:{port}", host=host, port=port, is_secure=is_secure, path=path)


class Client:
    """An HTTP client with one address policy. Each request uses its own connection.

    Args:
        policy: the allowed hosts; default: public addresses, and no host through a proxy.
        tls: certificate authorities and a client certificate.
        proxies: default: those of the environment.
        resolver: resolves host names; default: the system's resolver.
    """

    def __init__(
        self,
        policy: AddressPolicy | None = None,
        *,
        tls: TlsFiles | None = None,
        proxies: EnvironmentProxies | None = None,
        resolver: Resolve | None = None,
    ) -> None:
        self._policy = policy or AddressPolicy()
        self._files = tls or TlsFiles()
        self._context: ssl.SSLContext | None = None
        self._proxies = proxies or EnvironmentProxies(os.environ)
        self._resolver = resolver

    async def fetch(
        self,
        method: str,
        url: str,
        headers: Headers = (),
        body: bytes = b"",
        *,
        timeout_s: float,
        max_body_bytes: int,
    ) -> FetchResponse:
        """Send a request and return the complete response, whatever its status.

        Only GET follows redirects. Each target is checked like the first URL. Headers that may contain secrets are not sent to
        another origin. Redirects from https to http are refused. Other methods return the redirect.

        Args:
            timeout_s: the limit for the whole request, including redirects, in seconds.
            max_body_bytes: the limit for the response body after decoding.

        Raises:
            UpstreamError: no complete response; `sent`: the server may have received the request.
            UrlInvalid, ProxyInvalid, TlsFileInvalid: the URL or a setting is invalid.
        """
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}")
        deadline = asyncio.get_running_loop().time() + timeout_s
        for _ in range(MAX_REDIRECTS + 1):
            at = parse_url(url)
            response = await self._request(method, at, headers, body, deadline, max_body_bytes)
            location = response.headers.get(b"location")
            if method != "GET" or response.status not in _REDIRECTS or location is None:
                return FetchResponse(response.status, response.headers, response.body, at.base + at.path)
            url = urljoin(at.base + at.path, location.decode("latin-1").strip())
            following = parse_url(url)
            if at.is_secure and not following.is_secure:
                raise MalformedResponse(at.base, "the response redirects from https to http")
            if following.base != at.base:
                headers = [(name, value) for name, value in headers if name.lower() in _HARMLESS]
        raise MalformedResponse(parse_url(url).base, f"more than {MAX_REDIRECTS} redirects")

    async def _request(
        self, method: str, at: _Url, headers: Headers, body: bytes, deadline: float, max_body_bytes: int
    ) -> FetchResponse:
        pool = UpstreamPool(
            at.base,
            max_connections=1,
            max_body_bytes=max_body_bytes,
            ssl_context=self._tls() if at.is_secure else None,
            proxy=self._proxies.proxy_for(at.host, at.port, is_secure=at.is_secure),
            policy=self._policy,
            resolver=self._resolver,
        )
        try:
            response = await pool.request(method, at.path, headers, body, deadline)
        finally:
            await pool.close()
        return FetchResponse(response.status, response.headers, response.body, at.base + at.path)

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = tls_context(self._files)
        return self._context
