"""Who may come in: the key of a request, and whether it reaches as far as the path asked for.

Open is only what listens on loopback, and only until the first key is made. A key that is given is looked at in any case.
"""

from __future__ import annotations

from overnight.domain import Forbidden, Unauthenticated
from overnight.http_server import Headers
from overnight.keys import INSTANCE_ADMIN, PREFIX, Keyring, VirtualKey

_PLACES = (b"authorization", b"x-api-key", b"api-key")
_PREFIX = PREFIX.encode()
_WAY_OUT = "send Authorization: Bearer on_…; `overnight keys create NAME` makes one"
_NEVER_OPEN = ("admin", INSTANCE_ADMIN)
"""What wants a key even where calls want none."""


def token_of(headers: Headers) -> str | None:
    """The key that a request shows: `Authorization: Bearer`, else `x-api-key`, else `api-key`. What does not begin as a key of
    ours is not meant for us: clients send a placeholder, or the provider's own."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _PLACES:
            kind, space, rest = value.strip().partition(b" ")
            token = rest.strip() if space and kind.lower() == b"bearer" else kind
            if token.startswith(_PREFIX):
                found.setdefault(name, token)
    return next((found[name].decode("latin-1") for name in _PLACES if name in found), None)


def scope_of(path: str, method: str) -> str:
    """What a key needs for a path. Whatever is not known to be harmless needs the most."""
    if path.startswith("/v1/"):
        return "call"
    if path in ("/api/v1/jobs", "/api/v1/circuits") or path.startswith("/api/v1/jobs/"):
        return "read" if method in ("GET", "HEAD") else "operate"
    if path == "/api/v1/budgets":
        return "read" if method in ("GET", "HEAD") else INSTANCE_ADMIN
    return "admin"


class Door:
    """Before every route. `loopback`: nobody on another machine can reach us. `auth` is OVERNIGHT_AUTH."""

    def __init__(self, keyring: Keyring, *, loopback: bool, auth: str = "auto") -> None:
        self._keyring = keyring
        self._always = auth == "required" or not loopback
        self._never = auth == "off" and loopback

    async def enter(self, headers: Headers, scope: str) -> VirtualKey | None:
        """The key of the request, None where it needs none. Raises Unauthenticated, Forbidden, StoreUnavailable."""
        keyring = self._keyring
        if keyring.aged:
            await keyring.refresh()
        token = token_of(headers)
        if token is None:
            if scope in _NEVER_OPEN:
                way_out = _WAY_OUT.replace("NAME", f"NAME --scope {scope}")
                raise Unauthenticated(f"this path wants a key with the scope {scope}, from anywhere: {way_out}")
            if self._always or (keyring.exist and not self._never):
                raise Unauthenticated(f"this gateway wants a key: {_WAY_OUT}")
            return None
        key = await keyring.find(token)
        if key is None:
            raise Unauthenticated("the key is unknown, expired or revoked; `overnight keys list` shows those there are")
        if scope not in key.scopes:
            has = ", ".join(sorted(key.scopes))
            raise Forbidden(f"the key {key.name} has not the scope {scope}, it has: {has}")
        return key
