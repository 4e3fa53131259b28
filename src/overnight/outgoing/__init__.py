"""What: HTTP/1.1 requests to other hosts: connections, proxies, TLS, content decoding, and the policy of addresses.
Owns: sockets to other hosts.
Depends on: no other package of Overnight.
Never: repeats a request that a server may have received; knows nothing of providers and model calls.
"""

from .addresses import AddressPolicy, non_public_kind
from .client import Client, FetchResponse, UrlInvalid, parse_url
from .connection_pool import Check, Headers, UpstreamPool, UpstreamResponse, UpstreamStream
from .content_decoding import (
    ACCEPTED,
    BodyTruncated,
    ContentDecoder,
    InvalidEncoding,
    RatioExceeded,
    TooMuchDecoded,
    content_decoder,
)
from .proxies import EnvironmentProxies, Proxy, ProxyInvalid, parse_proxy
from .tls import TlsFileInvalid, TlsFiles, tls_context
from .transport_errors import (
    BodyCut,
    MalformedResponse,
    NeverSent,
    NotHttp,
    PoolBusy,
    ResponseLost,
    ResponseTooLarge,
    Unreachable,
    UpstreamError,
    UpstreamTimeout,
    no_connection,
)

__all__ = [
    "ACCEPTED",
    "AddressPolicy",
    "BodyCut",
    "BodyTruncated",
    "Check",
    "Client",
    "ContentDecoder",
    "EnvironmentProxies",
    "FetchResponse",
    "Headers",
    "InvalidEncoding",
    "MalformedResponse",
    "NeverSent",
    "NotHttp",
    "PoolBusy",
    "Proxy",
    "ProxyInvalid",
    "RatioExceeded",
    "ResponseLost",
    "ResponseTooLarge",
    "TlsFileInvalid",
    "TlsFiles",
    "TooMuchDecoded",
    "Unreachable",
    "UpstreamError",
    "UpstreamPool",
    "UpstreamResponse",
    "UpstreamStream",
    "UpstreamTimeout",
    "UrlInvalid",
    "content_decoder",
    "no_connection",
    "non_public_kind",
    "parse_proxy",
    "parse_url",
    "tls_context",
]
