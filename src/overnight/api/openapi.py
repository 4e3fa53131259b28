"""The OpenAPI document, for tools that read it without a server."""

from __future__ import annotations


def document() -> bytes:
    """The document as JSON."""
    from .rest.application import document as merged

    return merged()
