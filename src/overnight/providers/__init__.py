"""What: one request to a provider and its answer: over the pooled connections of `outgoing`, or through the optional library.
Owns: targets, and the classes of provider failures: what was sent, and what can have been billed.
Depends on: outgoing.
Never: repeats a request that a provider may have received, or knows what a model call is.
"""

from overnight.outgoing import UpstreamError, UpstreamStream, UpstreamTimeout

from .library_pool import (
    INSTALL,
    LibraryPool,
    LibraryStream,
    installed,
)

__all__ = [
    "INSTALL",
    "LibraryPool",
    "LibraryStream",
    "UpstreamError",
    "UpstreamStream",
    "UpstreamTimeout",
    "installed",
]
