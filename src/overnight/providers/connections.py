"""The connections to a provider, with its proxy and its TLS settings."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from overnight.domain.policies import ProviderDef
from overnight.outgoing import (
    EnvironmentProxies,
    Proxy,
    ProxyInvalid,
    TlsFileInvalid,
    TlsFiles,
    UpstreamPool,
    parse_proxy,
    tls_context,
)


class ConnectionInvalid(ValueError):
    """A proxy, or a file of a TLS setting, that cannot be used."""


def connections_to(
    base_url: str,
    provider: ProviderDef | None,
    proxies: EnvironmentProxies,
    environment: Mapping[str, str],
    max_connections: int,
    connect_timeout_s: float,
) -> UpstreamPool:
    """The pool for a base URL. Raises ConnectionInvalid.

    Args:
        provider: has the settings of the connection; None for the scripted provider, which has none.
        proxies: apply to a provider without a proxy setting of its own.
    """
    if provider is None:
        return UpstreamPool(base_url, max_connections=max_connections, connect_timeout_s=connect_timeout_s)
    is_secure = urlsplit(base_url).scheme == "https"
    try:
        proxy = _proxy_of(base_url, provider, proxies, environment, is_secure=is_secure)
        files = TlsFiles(ca=provider.ca, client_cert=provider.client_cert, client_key=provider.client_key)
        context = tls_context(files) if is_secure else None
    except (ProxyInvalid, TlsFileInvalid) as error:
        raise ConnectionInvalid(str(error)) from None
    return UpstreamPool(
        base_url,
        max_connections=max_connections,
        connect_timeout_s=connect_timeout_s,
        ssl_context=context,
        proxy=proxy,
    )


def _proxy_of(
    base_url: str,
    provider: ProviderDef,
    proxies: EnvironmentProxies,
    environment: Mapping[str, str],
    *,
    is_secure: bool,
) -> Proxy | None:
    """The proxy of a provider: its own setting, else that of the environment. Raises ProxyInvalid."""
    if provider.proxy_env is not None:
        text = environment.get(provider.proxy_env)
        if not text:
            raise ProxyInvalid(f"proxy_env: the environment variable {provider.proxy_env} is not set")
        return parse_proxy(text, provider.proxy_env)
    if provider.proxy is not None:
        return None if provider.proxy == "none" else parse_proxy(provider.proxy, "proxy")
    url = urlsplit(base_url)
    return proxies.proxy_for(url.hostname or "", url.port or (443 if is_secure else 80), is_secure=is_secure)
