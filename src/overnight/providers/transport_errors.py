"""How a call to an upstream fails. Each error says whether the upstream may have acted on it and charged for it (``sent``):

    UpstreamError
    ├── NeverSent          sent=False  no connection, or the request did not leave whole: free to repeat
    │   ├── Unreachable    sent=False  unknown host name, certificate or TLS: fails again until somebody mends it
    │   └── PoolBusy       sent=False  the pool of this process had no room: no sign against the upstream
    ├── UpstreamTimeout    sent=False in "queue", "connect" and "send"; True in "first_byte" and "body"
    ├── AnswerLost         sent=True   connection lost before a whole response head: outcome unknown
    ├── BodyCut            sent=True   connection lost inside the body
    ├── MalformedResponse  sent=True   a broken HTTP/1.1 head, or compressed although identity was asked for
    │   └── NotHttp        sent=False  the peer speaks another protocol, so it cannot have read the request
    └── ResponseTooLarge   sent=True   head over 64 KiB, or body over its bound

No message names a header value.
"""

from __future__ import annotations

import socket
import ssl
from typing import Literal

Phase = Literal["queue", "connect", "send", "first_byte", "body"]

# EAI_AGAIN is not among them: there the resolver could not say.
_NO_SUCH_HOST = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})


class UpstreamError(Exception):
    """A call without a whole answer. ``sent``: may the upstream have received the whole request?"""

    sent = True

    def __init__(self, origin: str, problem: str) -> None:
        super().__init__(f"upstream {origin}: {problem}")


class NeverSent(UpstreamError):
    """No connection, or the request did not leave this process whole. Repeating it is safe and free."""

    sent = False


class Unreachable(NeverSent):
    """No connection is possible as configured: ``code`` is ``unknown_host``, ``certificate_invalid`` or ``tls_failed``."""

    def __init__(self, origin: str, code: str, problem: str) -> None:
        super().__init__(origin, problem)
        self.code = code


class PoolBusy(NeverSent):
    """The pool's own bounds kept the call from a connection."""


class AnswerLost(UpstreamError):
    """Sent, then the connection was lost before a whole response head. Whether it was processed is unknown."""


class BodyCut(UpstreamError):
    """The connection was lost inside the response body (fewer bytes than ``content-length``, no final chunk)."""


class MalformedResponse(UpstreamError):
    """The upstream answered with something that is not plain HTTP/1.1."""


class NotHttp(MalformedResponse):
    """The peer answered in another protocol: TLS, HTTP/2, SSH. It cannot have read the request."""

    sent = False


class ResponseTooLarge(UpstreamError):
    """The response head is over its bound or the body over the pool's bound."""


class UpstreamTimeout(UpstreamError):
    """The deadline passed. ``phase``: ``queue`` (waited for a connection of the pool), ``connect``, ``send`` (the request had not
    left whole), ``first_byte`` (no response head yet), ``body``."""

    def __init__(self, origin: str, phase: Phase, problem: str) -> None:
        super().__init__(origin, problem)
        self.phase: Phase = phase
        self.sent = phase in ("first_byte", "body")


def no_connection(origin: str, error: OSError) -> NeverSent:
    """What kept a connection from being made, and whether it will again."""
    if isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_HOST:
        return Unreachable(origin, "unknown_host", "the host name is unknown; correct base_url")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unreachable(origin, "certificate_invalid", f"its certificate is not valid: {error.verify_message[:200]}")
    # A connection that was closed in the handshake, or a fault inside the server, may be over next time.
    passing = isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
    if isinstance(error, ssl.SSLError) and not passing and "INTERNAL_ERROR" not in str(error.reason).upper():
        hint = (
            "; it speaks no TLS: use http in base_url"
            if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST")
            else ""
        )
        return Unreachable(origin, "tls_failed", f"TLS failed: {error.reason}{hint}")
    return NeverSent(origin, f"cannot connect: {str(error)[:200]}")


def spoken(first_bytes: bytes) -> str:
    """What the first bytes of an answer say about the protocol, as the end of a sentence."""
    if first_bytes[:2] == b"\x15\x03":
        return " but TLS: use https in base_url"
    if first_bytes[:3] in (b"PRI", b"\0\0\0") or (first_bytes[:2] == b"\0\0" and first_bytes[3:4] == b"\x04"):
        return " but HTTP/2"
    return ""
