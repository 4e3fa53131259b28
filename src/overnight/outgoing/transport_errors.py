"""Transport errors of requests. ``sent`` is whether the server may have received the whole request:

    UpstreamError
    ├── NeverSent          sent=False  no connection, or an incomplete request: safe to repeat
    │   ├── Unreachable    sent=False  unknown host, invalid certificate or TLS, refused by a proxy or the address
    │   │                              policy: permanent until reconfigured
    │   └── PoolBusy       sent=False  the local connection pool is full: no fault of the provider
    ├── UpstreamTimeout    sent=False in "queue", "connect" and "send"; True in "first_byte" and "body"
    ├── ResponseLost       sent=True   connection lost before a whole response head: outcome unknown
    ├── BodyCut            sent=True   connection lost inside the body, or an encoded body without its end
    ├── MalformedResponse  sent=True   a broken HTTP/1.1 head, or an invalid or unsupported content encoding
    │   └── NotHttp        sent=False  the peer speaks another protocol, so it cannot have read the request
    └── ResponseTooLarge   sent=True   head over 64 KiB, body over its bound before or after decoding, a compression bomb

No message names a header value or the credentials of a proxy.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import Literal

from .tls import certificate_problem

Phase = Literal["queue", "connect", "send", "first_byte", "body"]

# Without EAI_AGAIN, which is a temporary failure of the resolver.
_NO_SUCH_HOST = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})


class UpstreamError(Exception):
    """A call without a complete response. ``sent``: the upstream may have received the complete request."""

    sent = True

    def __init__(self, origin: str, problem: str) -> None:
        super().__init__(f"upstream {origin}: {problem}")


class NeverSent(UpstreamError):
    """No connection, or an incomplete request. Repeating it is safe and costs nothing."""

    sent = False


class Unreachable(NeverSent):
    """No connection is possible as configured. ``code``: ``unknown_host``, ``certificate_invalid``, ``tls_failed``,
    ``proxy_refused`` or ``address_refused``."""

    def __init__(self, origin: str, code: str, problem: str) -> None:
        super().__init__(origin, problem)
        self.code = code


class PoolBusy(NeverSent):
    """The pool has no free connection within its limits."""


class ResponseLost(UpstreamError):
    """The connection was lost after the request was sent, before a complete response head. The outcome is unknown."""


class BodyCut(UpstreamError):
    """The connection was lost inside the response body (fewer bytes than ``content-length``, no final chunk)."""


class MalformedResponse(UpstreamError):
    """The response is not plain HTTP/1.1."""


class NotHttp(MalformedResponse):
    """The peer speaks another protocol (TLS, HTTP/2, SSH), so it cannot have read the request."""

    sent = False


class ResponseTooLarge(UpstreamError):
    """The response head or body exceeds its limit."""


class UpstreamTimeout(UpstreamError):
    """The deadline passed. ``phase``: ``queue`` (waited for a connection of the pool), ``connect``, ``send`` (the request was
    not sent completely), ``first_byte`` (no response head yet), ``body``."""

    def __init__(self, origin: str, phase: Phase, problem: str) -> None:
        super().__init__(origin, problem)
        self.phase: Phase = phase
        self.sent = phase in ("first_byte", "body")


def no_connection(origin: str, error: OSError, at: str = "") -> NeverSent:
    """The error for a failed connection attempt: Unreachable if it is permanent, else NeverSent.

    Args:
        at: the target of the attempt if it is not the origin, such as ``proxy HOST:PORT: ``.
    """
    if isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_HOST:
        return Unreachable(origin, "unknown_host", f"{at}the host name is unknown; correct {_setting(at)}")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unreachable(origin, "certificate_invalid", at + certificate_problem(error))
    # A connection closed during the handshake, or an internal error of the server, may be temporary.
    passing = isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
    if isinstance(error, ssl.SSLError) and not passing and "INTERNAL_ERROR" not in str(error.reason).upper():
        hint = (
            f"; the server does not use TLS: use http in {_setting(at)}"
            if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST")
            else ""
        )
        return Unreachable(origin, "tls_failed", f"{at}TLS failed: {error.reason}{hint}")
    return NeverSent(origin, f"{at}cannot connect: {_reason(error)}")


def _reason(error: OSError) -> str:
    """The system's message for an error; the message of asyncio contains the address but no reason."""
    if error.errno and not isinstance(error, ssl.SSLError | socket.gaierror):
        return f"[Errno {error.errno}] {os.strerror(error.errno)}"
    return str(error)[:200]


def _setting(at: str) -> str:
    return "the URL of the proxy" if at else "base_url"


def spoken_protocol(first_bytes: bytes) -> str:
    """The protocol that the first bytes of a response indicate, as the end of an error message; "" if unknown."""
    if first_bytes[:2] == b"\x15\x03":
        return " but TLS: use https in base_url"
    if first_bytes[:3] in (b"PRI", b"\0\0\0") or (first_bytes[:2] == b"\0\0" and first_bytes[3:4] == b"\x04"):
        return " but HTTP/2"
    return ""
