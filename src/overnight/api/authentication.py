"""Authentication: the API key of a request and its scope.

Keys are optional only on loopback, and only until the first key is created. A key that is sent is always checked.
"""

from __future__ import annotations

from urllib.parse import parse_qs

from overnight.domain import Forbidden, Scope, Unauthenticated
from overnight.gateway import CODECS
from overnight.http_server import FORWARDED, Headers, is_loopback
from overnight.http_server import Scope as AsgiScope
from overnight.keys import PREFIX, Keyring, VirtualKey

from .routes import key_parameter

_OWN = [codec.key_header for codec in CODECS.values() if codec.key_header is not None]
_PLACES = tuple(dict.fromkeys((b"authorization", *_OWN, b"api-key")))
_PREFIX = PREFIX.encode()
_HINT = "Send Authorization: Bearer on_…; create a key with `overnight keys create NAME`"
_NO_KEYS_YET = (
    "Calls on this machine need no key yet, and the first key ends that. Without one, use the command line here: "
    "`overnight keys`, `overnight budget`"
)
_ALWAYS_PROTECTED = frozenset[Scope](
    {"reviews.decide", "budgets.write", "keys.admin", "instance.read", "instance.admin"}
)
"""Scopes that require a key even where calls require none."""


def token_of(headers: Headers) -> str | None:
    """The API key of a request: `Authorization: Bearer`, else the header of a format's own clients, such as `x-api-key`, else
    `api-key`. Other values are ignored: clients send placeholders, or a key of the provider."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _PLACES:
            kind, space, rest = value.strip().partition(b" ")
            token = rest.strip() if space and kind.lower() == b"bearer" else kind
            if token.startswith(_PREFIX):
                found.setdefault(name, token)
    return next((found[name].decode("latin-1") for name in _PLACES if name in found), None)


class Authenticator:
    """Checks the key of every request. `loopback`: only this machine can connect. `auth` is OVERNIGHT_AUTH."""

    def __init__(self, keyring: Keyring, *, loopback: bool, auth: str = "auto") -> None:
        self._keyring = keyring
        self._always = auth == "required" or not loopback
        self._never = auth == "off" and loopback

    async def authenticate(self, headers: Headers, scope: Scope, asked: AsgiScope) -> VirtualKey | None:
        """The key of the request `asked`; None if it requires none. Raises Unauthenticated, Forbidden, StoreUnavailable."""
        keyring = self._keyring
        if keyring.is_aged:
            await keyring.refresh()
        token = token_of(headers) or _token_in_query(asked)
        if token is None:
            required = self._always or (keyring.exist and not self._never) or _is_forwarded(asked)
            if scope in _ALWAYS_PROTECTED:
                hint = _HINT.replace("NAME", f"NAME --scope {scope}") if required else _NO_KEYS_YET
                raise Unauthenticated(f"no API key; this path always requires the scope {scope}. {hint}")
            if required:
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


def _token_in_query(asked: AsgiScope) -> str | None:
    """The API key in the query of a path that may have it there. The query is never logged."""
    query: bytes = asked.get("query_string") or b""
    if _PREFIX not in query or (parameter := key_parameter(asked["method"], asked["path"])) is None:
        return None
    values = parse_qs(query).get(parameter, [])
    return next((value.decode("latin-1") for value in values if value.startswith(_PREFIX)), None)


def _is_forwarded(asked: AsgiScope) -> bool:
    """Whether a proxy passed the request on: its client is on another machine then, whoever connected."""
    client: tuple[str, int] | None = asked.get("client")
    return FORWARDED in asked or (client is not None and not is_loopback(client[0]))
