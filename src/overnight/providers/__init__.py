"""What: one request to a provider and its answer: over pooled HTTP/1.1 connections, or through the optional library.
Owns: sockets to providers.
Depends on: nothing of ours.
Never: repeats a request that a provider may have received, or knows what a model call is.
"""

from .connection_pool import (
    Headers,
    UpstreamPool,
    UpstreamResponse,
    UpstreamStream,
)
from .library_pool import (
    INSTALL,
    LibraryPool,
    LibraryStream,
    installed,
)
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
)

__all__ = [
    "INSTALL",
    "BodyCut",
    "Headers",
    "LibraryPool",
    "LibraryStream",
    "MalformedResponse",
    "NeverSent",
    "NotHttp",
    "PoolBusy",
    "ResponseLost",
    "ResponseTooLarge",
    "Unreachable",
    "UpstreamError",
    "UpstreamPool",
    "UpstreamResponse",
    "UpstreamStream",
    "UpstreamTimeout",
    "installed",
]
