"""What a request's head must say before a request is made of it. Whatever two servers could read differently is refused, so that
a proxy in front and this server always agree where a request ends and whom it is for."""

from __future__ import annotations

import httptools

from .asgi import Headers

MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 256
FRAMING_FIELDS = frozenset({b"host", b"transfer-encoding", b"expect"})


class RequestRefused(Exception):
    """The bytes are no request that this server takes; `status` and `why` are the answer."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


def check_framing(version: str, fields: Headers) -> None:
    """Check `host` and `transfer-encoding`, given in order. Raises RequestRefused.

    The parser has refused wrong, repeated and contradictory lengths. It lets pass codings before `chunked`, which nobody here
    decodes, and chunks in HTTP/1.0, which knows none.
    """
    if version not in ("1.1", "1.0"):
        raise RequestRefused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    hosts = 0
    for name, value in fields:
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding":
            if version == "1.0":
                raise RequestRefused(400, "HTTP/1.0 knows no Transfer-Encoding; send a Content-Length")
            if value.lower() != b"chunked":
                raise RequestRefused(501, "the only Transfer-Encoding that is taken is chunked, once")
    if hosts != 1 and (hosts or version == "1.1"):
        raise RequestRefused(400, "a request of HTTP/1.1 has one Host header")


def split_target(target: bytes, fields: Headers) -> tuple[bytes, bytes]:
    """Path and query of a request's target. Raises RequestRefused for a whole URL of another host than `host` names."""
    if target.find(b"#") >= 0:  # `in` would first try the bytes as an integer, and raise and catch a TypeError
        raise RequestRefused(400, "the target of a request has no fragment")
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
        raise RequestRefused(400, "the target of the request is a URL of another host than its Host header names")
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise RequestRefused(400, "the target of the request is no URL") from None
    return url.path or b"/", url.query or b""
