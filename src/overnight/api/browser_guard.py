"""Protection against cross-origin requests of browsers.

A gateway on loopback may require no key, and a browser can reach it for every page that its user visits, including pages of
other local servers. On other addresses keys are required, which a page does not have.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

from overnight.gateway import UnsupportedMediaType
from overnight.http_server import Headers

_AUTHORITY = re.compile(rb"(\[[0-9a-f:.]+\]|[^][/:@?#\s]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_COMPARED = frozenset({b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"})
_OTHERS = (b"cross-site", b"same-site")
_BROWSERS = frozenset({b"origin", b"referer", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"})
_JSON = re.compile(rb"application/(?:json|[a-z0-9!#$&^_.+-]+\+json)\s*(?:;.*)?", re.IGNORECASE | re.DOTALL)
_DEFAULT_CONTENT_TYPE = b"application/json"
_FORM = b"application/x-www-form-urlencoded"


class BrowserGuard:
    """`hosts` are the accepted host names, in lower case."""

    def __init__(self, hosts: Collection[str]) -> None:
        self._hosts = frozenset(host.encode() for host in hosts)

    def forbidden_origin(self, method: str, headers: Headers) -> str | None:
        """The reason why a request is cross-origin, or None.

        `Host` is compared by name, against DNS rebinding. `Origin` must match by scheme, name and port: pages of other local
        servers differ only in the port.
        """
        called: tuple[bytes, int] | None = None
        origins: list[bytes] = []
        site = mode = dest = b""
        for name, value in [header for header in headers if header[0] in _COMPARED]:
            if name == b"host":
                called = _host_and_port(value)
                if called is None or called[0] not in self._hosts:
                    return "the Host header names another machine; use 127.0.0.1 or localhost, or add it to OVERNIGHT_HOSTS"
            elif name == b"origin":
                origins.append(value)
            elif name == b"sec-fetch-site":
                site = value
            elif name == b"sec-fetch-mode":
                mode = value
            elif name == b"sec-fetch-dest":
                dest = value
        for origin in origins:
            scheme, _, rest = origin.partition(b"://")
            page = _host_and_port(rest) if scheme.lower() == b"http" else None
            if page is None or called is None or page[0] not in self._hosts or page[1] != called[1]:
                return "the Origin header names another site"
        followed_link = method in _READING and mode == b"navigate" and dest == b"document"
        if site in _OTHERS and not followed_link:
            return "the Sec-Fetch-Site header names another site"
        return None


@lru_cache(maxsize=16)
def _host_and_port(authority: bytes) -> tuple[bytes, int] | None:
    found = _AUTHORITY.fullmatch(authority)
    return (found[1].lower(), int(found[2] or 80)) if found else None


def check_content_type(method: str, headers: Headers) -> None:
    """Require a JSON content type for bodies. Raises UnsupportedMediaType.

    A browser sends three content types, or none, to other origins without a preflight request. Of these, `text/plain` and
    `multipart/form-data` are rejected. `curl -d` sends the third, a form, and some programs send none. Both are accepted
    unless another header shows that a browser sent the request.
    """
    if method in _READING:
        return
    kinds: list[bytes] = []
    from_browser = has_body = False
    for name, value in headers:
        if name == b"content-type":
            kinds.append(value)
        elif name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
            has_body = True
        elif name in _BROWSERS:
            from_browser = True
    for kind in kinds:
        if (
            kind != _DEFAULT_CONTENT_TYPE
            and not _JSON.fullmatch(kind)
            and (from_browser or kind.partition(b";")[0].strip().lower() != _FORM)
        ):
            raise UnsupportedMediaType(_unsupported(kind))
    if has_body and from_browser and not kinds:
        raise UnsupportedMediaType(_unsupported(b"none"))


def _unsupported(kind: bytes) -> str:
    return (
        f"content-type: {ascii(kind[:80].decode('latin-1'))[1:-1]} is not supported; send the body as application/json"
    )
