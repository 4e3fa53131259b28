"""Checks of a request head. Ambiguous framing or targets are refused.

So a proxy in front and this server always agree on the end of a request and on its host (no request smuggling).
"""

from __future__ import annotations

import httptools

from .asgi import Headers

MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 256
FRAMING_FIELDS = frozenset({b"host", b"transfer-encoding", b"expect"})


class RequestRefused(Exception):
    """The request is invalid or unsupported; `status` and `why` are the response."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


def check_framing(version: str, fields: Headers) -> None:
    """Check `host` and `transfer-encoding`, given in order. Raises RequestRefused.

    The parser already refuses invalid, repeated and contradictory lengths. It accepts other codings before `chunked`, which this
    server cannot decode, and chunks in HTTP/1.0, which does not define them.
    """
    if version not in ("1.1", "1.0"):
        raise RequestRefused(505, "only HTTP/1.1 and HTTP/1.0 are supported")
    hosts = 0
    for name, value in fields:
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding":
            if version == "1.0":
                raise RequestRefused(400, "HTTP/1.0 does not support Transfer-Encoding; send a Content-Length")
            if value.lower() != b"chunked":
                raise RequestRefused(501, "the only supported Transfer-Encoding is chunked, given once")
    if hosts != 1 and (hosts or version == "1.1"):
        raise RequestRefused(400, "an HTTP/1.1 request requires exactly one Host header")


def split_target(target: bytes, fields: Headers) -> tuple[bytes, bytes]:
    """Split a request target into path and query. Raises RequestRefused for an absolute URL whose host differs from `host`."""
    if target.find(b"#") >= 0:  # `in` would first try the bytes as an integer, and raise and catch a TypeError
        raise RequestRefused(400, "the request target must not have a fragment")
    if target.startswith(b"/"):
        path, _, query = target.partition(b"?")
        return path, query
    scheme, separator, rest = target.partition(b"://")
    if not separator:
        return target, b""
    authority, _, _ = rest.partition(b"/")
    authority = authority.partition(b"?")[0].lower()
    host = next((value.lower() for name, value in fields if name == b"host"), authority)
    if scheme.lower() not in (b"http", b"https") or b"@" in authority or host != authority:
        raise RequestRefused(400, "the host of the request target differs from the Host header")
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise RequestRefused(400, "the request target is not a valid URL") from None
    return url.path or b"/", url.query or b""
