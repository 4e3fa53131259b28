"""Signatures of Standard Webhooks (standardwebhooks.com): HMAC-SHA256 over id, timestamp and body."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Iterable

PREFIX = "whsec_"
SECRET_BYTES = 32


def new_secret() -> str:
    """A new signing secret: `whsec_` and 32 random bytes in base64."""
    return PREFIX + base64.b64encode(os.urandom(SECRET_BYTES)).decode()


def signed_headers(message_id: str, timestamp_s: int, body: bytes, secrets: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """The headers of a delivery. With several secrets, as during a rotation, there is one signature for each.

    Args:
        message_id: identifies the message, and is the same in each attempt. It contains no full stop.
        timestamp_s: the time of this attempt in seconds; receivers refuse old ones.
    """
    subject = b"%b.%d.%b" % (message_id.encode(), timestamp_s, body)
    signatures = b" ".join(b"v1," + _signature(subject, secret) for secret in secrets)
    return [
        (b"webhook-id", message_id.encode()),
        (b"webhook-timestamp", b"%d" % timestamp_s),
        (b"webhook-signature", signatures),
    ]


def _signature(subject: bytes, secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("invalid signing secret") from None  # without the secret
    return base64.b64encode(hmac.digest(key, subject, "sha256"))
