"""The names of the wire formats, and the kinds of providers. `wire_formats` has a codec for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class ProviderKind(NamedTuple):
    """What the providers of a kind have in common: the formats that they accept, and the header of the key."""

    apis: tuple[str, ...]
    key_header: str = "authorization"
    key_prefix: str = "Bearer "


ROUTED_FORMATS = ("chat", "responses", "messages", "embeddings", "gemini")
"""The client formats that conditions of routes can name."""
API_FORMATS = ("chat", "responses", "messages", "embeddings", "gemini", "gemini_embeddings")
"""The formats that a provider may accept (`apis`)."""
PROVIDER_KINDS: Mapping[str, ProviderKind] = {
    "openai": ProviderKind(("chat", "embeddings")),
    "anthropic": ProviderKind(("messages",), "x-api-key", ""),
    "gemini": ProviderKind(("gemini", "gemini_embeddings"), "x-goog-api-key", ""),
    "library": ProviderKind(("chat",)),
}
