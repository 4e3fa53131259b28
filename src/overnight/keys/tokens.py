"""What a virtual key looks like: `on_`, 12 hex digits that name it (its handle, no secret), 64 that prove it.

Stored is the SHA-256 of the whole, no more. A slow or salted hash protects secrets that can be guessed; 256 random bits cannot,
and a call must not wait for a slow one. The row is found by its handle, so that the proof itself is only ever compared in
constant time.
"""

import hashlib
import secrets
from typing import NamedTuple

PREFIX = "on_"
_HANDLE_END = len(PREFIX) + 12
_LENGTH = _HANDLE_END + 64


class Minted(NamedTuple):
    """A fresh key: `token` is shown once, the other two are kept."""

    token: str
    handle: str
    digest: bytes


def mint() -> Minted:
    token = PREFIX + secrets.token_hex(6) + secrets.token_hex(32)
    return Minted(token, token[:_HANDLE_END], digest_of(token))


def handle_of(token: str) -> str | None:
    """What a key is found by; None for what is no key of ours."""
    return token[:_HANDLE_END] if len(token) == _LENGTH and token.startswith(PREFIX) else None


def digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
