"""Where a call can go: what the gateway needs of the routing, and each target made ready for calling."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from overnight.brain import Routing, nearest
from overnight.domain import OvernightError
from overnight.domain.formats import PROVIDER_KINDS
from overnight.domain.policies import ProviderDef
from overnight.keys import DecryptionFailed, Keyring
from overnight.outgoing import EnvironmentProxies, UpstreamPool
from overnight.pricing.price_book import (
    FREE,
    Context,
    ModelPrice,
    PriceBook,
    UnknownPrice,
)
from overnight.wire_formats.dialects import Dialect, dialect_of

from . import (
    INSTALL,
    LibraryPool,
    installed,
)
from .connections import ConnectionInvalid, connections_to
from .key_redaction import secret_of, without

Pool = UpstreamPool | LibraryPool

SCRIPTED = "scripted"
MAX_CONNECTIONS = 4096
"""To one provider. An open stream holds one, so this bounds the streams of a process."""
MAX_READY_TARGETS = 4096
"""Names that only a glob covers come from outside."""


class Unavailable(OvernightError):
    """A target that cannot be called as things stand: nobody serves it, its key is missing, or its price is unknown."""


class UnknownModelName(Unavailable):
    """A name that only a pattern of its provider matches, and that has no price: it is misspelt, or its price is missing."""


class NoCompaction(Unavailable):
    """A target that cannot compact a conversation."""


class Target(msgspec.Struct, frozen=True):
    """One provider and model, ready: `upstream_model` is the name sent, as JSON. `speaks` are the wire formats
    that it takes. `account` is the provider, and the tenant where that calls with a key of its own:
    what an account runs into is no other's."""

    model: str
    provider: str
    upstream_model: msgspec.Raw
    pool: Pool
    headers: tuple[tuple[bytes, bytes], ...]
    price: ModelPrice
    dialect: Dialect
    speaks: tuple[str, ...] = ("chat",)
    account: str = ""
    key: bytes = b""
    secret: bytes = b""

    def cleaned(self, said: bytes) -> bytes:
        """An answer without the key that it was asked with."""
        return without(self.secret, said)

    def without_key(self, said: bytes) -> bytes:
        """What a provider says of a failure is recorded and passed on; some quote the key they were shown."""
        return said.replace(self.key, b"[key]") if self.key and self.key in said else said


class _Ready(NamedTuple):
    """What does not change about a target."""

    served_by: ProviderDef
    provider: str
    pool: Pool
    headers: tuple[tuple[bytes, bytes], ...]
    upstream_model: msgspec.Raw
    dialect: Dialect
    speaks: tuple[str, ...]
    account: str
    key: bytes
    secret: bytes


class Targets:
    """Targets by model name, made on first use. One upstream pool per base URL.

    Keys and the proxies of `proxy_env` are read from `environment`, HTTP_PROXY and the like from that of the process: once.
    With an `offline_base_url`, the models of all providers that want a key are played by the scripted provider there, and are
    named so: a key that happens to be set changes nothing. A tenant with a key of its own goes to the provider with that;
    where offline `was_asked_for`, not even then.
    """

    def __init__(
        self,
        routing: Routing,
        prices: PriceBook,
        environment: Mapping[str, str] | None,
        offline_base_url: str | None,
        own_keys: Keyring,
        *,
        was_asked_for: bool = True,
    ) -> None:
        self._routing, self._prices = routing, prices
        self._environment = os.environ if environment is None else environment
        self._offline, self._was_asked_for = offline_base_url, was_asked_for
        self._proxies = EnvironmentProxies(os.environ)
        self._own_keys, self._version = own_keys, 0
        self._pools: dict[tuple[str | None, ...], Pool] = {}
        self._ready: dict[tuple[str, str], _Ready] = {}

    @property
    def offline(self) -> bool:
        return self._offline is not None

    def target(self, model: str, context: Context = (), tenant_id: str = "") -> Target:
        """Raises Unavailable, saying what is missing."""
        owner = tenant_id if tenant_id in self._own_keys.owners else ""
        if self._version != self._own_keys.version:
            self._version, self._ready = self._own_keys.version, {}
        ready = self._ready.get((owner, model))
        if ready is None:
            ready = self._prepare(model, owner)
            if len(self._ready) < MAX_READY_TARGETS:
                self._ready[owner, model] = ready
        price = self._price(model, ready.served_by, ready.provider, context)
        return Target(
            model=model,
            provider=ready.provider,
            upstream_model=ready.upstream_model,
            pool=ready.pool,
            headers=ready.headers,
            price=price,
            dialect=ready.dialect,
            speaks=ready.speaks,
            account=ready.account,
            key=ready.key,
            secret=ready.secret,
        )

    def learn_cap_field(self, target: Target, cap_field: str) -> Target:
        """Use another field for the output limit, now and in later calls: the target refused the one before."""
        dialect = msgspec.structs.replace(target.dialect, cap_field=cap_field)
        for key, ready in self._ready.items():
            if key[1] == target.model:
                self._ready[key] = ready._replace(dialect=dialect)
        return msgspec.structs.replace(target, dialect=dialect)

    def _price(self, model: str, provider: ProviderDef, name: str, context: Context) -> ModelPrice:
        try:
            return self._prices.price(model, provider.name, context)
        except UnknownPrice as error:
            if name == SCRIPTED:
                return FREE
            if model in self._routing.served:
                raise Unavailable(str(error)) from None
            raise UnknownModelName(f"unknown model {model[:128]!r}.{self._similar(model, provider)} {error}") from None

    def _similar(self, model: str, provider: ProviderDef) -> str:
        """The most similar names, as the end of a sentence."""
        listed = (provider.model_prefix + name for name in self._prices.names(provider.name))
        found = nearest(model, {*self._routing.known_models(), *listed}, 3)
        return f" Similar: {', '.join(found)}." if found else ""

    def _prepare(self, model: str, owner: str) -> _Ready:
        provider = self._routing.provider_for(model)
        if provider is None:
            raise Unavailable(f"no provider serves {model}; list it under providers.<name>.models in routing.yaml")
        headers: list[tuple[bytes, bytes]] = [(b"content-type", b"application/json")]
        name, base_url, upstream_name = provider.name, provider.base_url, provider.upstream_name(model)
        own = self._own_key(owner, name) if owner and not (self._offline and self._was_asked_for) else None
        key = own or ""
        if own is None and provider.api_key_env is not None:
            key = self._environment.get(provider.api_key_env) or ""
            if self._offline is not None:
                name, base_url, upstream_name, key = SCRIPTED, self._offline, model, ""
            elif not key:
                raise Unavailable(f"{model} is served by {name}, whose key is missing: set {provider.api_key_env}")
        if key:
            headers.append(_key_header(provider.kind, key))
        pool = self._pool_of(model, provider, name, base_url)
        sent_name = msgspec.Raw(msgspec.json.encode(upstream_name))
        account = name if own is None else f"{name}@{owner}"
        return _Ready(
            served_by=provider,
            provider=name,
            pool=pool,
            headers=tuple(headers),
            upstream_model=sent_name,
            dialect=dialect_of(base_url, upstream_name, provider.dialect),
            speaks=tuple(provider.apis),
            account=account,
            key=key.encode(),
            secret=secret_of(key),
        )

    def _pool_of(self, model: str, provider: ProviderDef, name: str, base_url: str) -> Pool:
        """The pool of a provider. Providers with the same URL and the same settings of the connection share one."""
        if provider.kind == "library" and name != SCRIPTED:
            if not installed():
                raise Unavailable(f"{model} is served by {name} through a library that is not installed: {INSTALL}")
            place: tuple[str | None, ...] = (name, base_url)
            return self._pools.get(place) or self._pools.setdefault(place, LibraryPool(name, base_url))
        place = (base_url, name)
        if name != SCRIPTED:
            place = (
                base_url,
                provider.proxy,
                provider.proxy_env,
                provider.ca,
                provider.client_cert,
                provider.client_key,
            )
        pool = self._pools.get(place)
        if pool is None:
            connect_s = self._routing.time_limits.connect_ms / 1000
            settings = None if name == SCRIPTED else provider
            try:
                pool = connections_to(base_url, settings, self._proxies, self._environment, MAX_CONNECTIONS, connect_s)
            except ConnectionInvalid as error:
                raise Unavailable(f"{model} is served by {name}, whose connection is misconfigured: {error}") from None
            self._pools[place] = pool
        return pool

    def _own_key(self, owner: str, provider: str) -> str | None:
        try:
            return self._own_keys.provider_key(owner, provider)
        except DecryptionFailed as error:
            raise Unavailable(str(error)) from None

    async def close(self) -> None:
        for pool in self._pools.values():
            await pool.close()


def _key_header(kind: str, key: str) -> tuple[bytes, bytes]:
    of_kind = PROVIDER_KINDS[kind]
    return of_kind.key_header.encode(), (of_kind.key_prefix + key).encode()
