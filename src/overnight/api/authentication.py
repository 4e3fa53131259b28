"""Authentication: the API key of a request and its scope.

Keys are optional only on loopback, and only until the first key is created. A key that is sent is always checked.
"""

from __future__ import annotations

from overnight.domain import Forbidden, Scope, Unauthenticated
from overnight.http_server import Headers
from overnight.keys import PREFIX, Keyring, VirtualKey

_PLACES = (b"authorization", b"x-api-key", b"api-key")
_PREFIX = PREFIX.encode()
_HINT = "Send Authorization: Bearer on_…; create a key with `overnight keys create NAME`"
_ALWAYS_PROTECTED = frozenset[Scope](
    {"reviews.decide", "budgets.write", "keys.admin", "instance.read", "instance.admin"}
)
"""Scopes that require a key even where calls require none."""


def token_of(headers: Headers) -> str | None:
    """The API key of a request: `Authorization: Bearer`, else `x-api-key`, else `api-key`. Other values are ignored: clients
    send placeholders, or a key of the provider."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _PLACES:
            kind, space, rest = value.strip().partition(b" ")
            token = rest.strip() if space and kind.lower() == b"bearer" else kind
            if token.startswith(_PREFIX):
                found.setdefault(name, token)
    return next((found[name].decode("latin-1") for name in _PLACES if name in found), None)


def scope_of(path: str, method: str) -> Scope:
    """The scope that a path requires; keys.admin for unknown paths."""
    if path.startswith("/v1/"):
        return "calls"
    if path in ("/api/v1/jobs", "/api/v1/circuits") or path.startswith("/api/v1/jobs/"):
        return "jobs.read" if method in ("GET", "HEAD") else "jobs.operate"
    if path == "/api/v1/budgets":
        return "jobs.read" if method in ("GET", "HEAD") else "budgets.write"
    if path == "/api/v1/bounds" or path.startswith("/api/v1/bounds/"):
        return "instance.read" if method in ("GET", "HEAD") else "instance.admin"
    return "keys.admin"


class Authenticator:
    """Checks the key of every request. `loopback`: only this machine can connect. `auth` is OVERNIGHT_AUTH."""

    def __init__(self, keyring: Keyring, *, loopback: bool, auth: str = "auto") -> None:
        self._keyring = keyring
        self._always = auth == "required" or not loopback
        self._never = auth == "off" and loopback

    async def authenticate(self, headers: Headers, scope: Scope) -> VirtualKey | None:
        """The key of the request; None if it requires none. Raises Unauthenticated, Forbidden, StoreUnavailable."""
        keyring = self._keyring
        if keyring.aged:
            await keyring.refresh()
        token = token_of(headers)
        if token is None:
            if scope in _ALWAYS_PROTECTED:
                hint = _HINT.replace("NAME", f"NAME --scope {scope}")
                raise Unauthenticated(f"no API key; this path always requires the scope {scope}. {hint}")
            if self._always or (keyring.exist and not self._never):
                raise Unauthenticated(f"no API key. {_HINT}")
            return None
        key = await keyring.find(token)
        if key is None:
            raise Unauthenticated(
                "the API key is unknown, expired or revoked. `overnight keys list` shows the valid keys"
            )
        if scope not in key.scopes:
            has = ", ".join(sorted(key.scopes))
            raise Forbidden(f"the key {key.name} lacks scope {scope}; it has: {has}")
        return key
