"""The format of API keys: `on_`, 12 hex digits that identify the key (the handle, not secret), and 64 secret hex digits.

Only the SHA-256 of the key is stored. Slow or salted hashes protect secrets that can be guessed; 256 random bits cannot be
guessed, and a slow hash would delay every call. The row is found by its handle, so the digest is compared in constant time.
"""

import hashlib
import secrets
from typing import NamedTuple

PREFIX = "on_"
_HANDLE_END = len(PREFIX) + 12
_LENGTH = _HANDLE_END + 64


class Minted(NamedTuple):
    """A new key: `token` is shown once; `handle` and `digest` are stored."""

    token: str
    handle: str
    digest: bytes


def mint() -> Minted:
    """Generate a key."""
    token = PREFIX + secrets.token_hex(6) + secrets.token_hex(32)
    return Minted(token, token[:_HANDLE_END], digest_of(token))


def handle_of(token: str) -> str | None:
    """The handle of a key; None if the text does not have the format of a key."""
    return token[:_HANDLE_END] if len(token) == _LENGTH and token.startswith(PREFIX) else None


def digest_of(token: str) -> bytes:
    """The SHA-256 of a key."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
