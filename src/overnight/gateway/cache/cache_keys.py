"""Cache keys: what must be equal before one call's answer may be given to another call. Pure.

Hashes are taken over JSON, whose quotes and brackets keep two different lists of names from running together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from overnight.wire_formats.request import Request

MAX_QUESTION_BYTES = 8_000
"""Characters of the last message. A longer one is a document, and similar documents may have different answers."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_TEXT_PARTS = frozenset({"text", "input_text"})


class CacheCaller(msgspec.Struct, frozen=True):
    """The caller, as far as cached answers are isolated: the tenant, the API key, and (for the semantic cache) the agent."""

    tenant_id: str
    key_scope: str = ""
    agent_id: str = ""


def exact_key(caller: CacheCaller, route: str, model: str, request: Request) -> bytes:
    """The key of the exact cache: 32 bytes. Stream flags, metadata, cache markers and the agent are not part of it."""
    head = request.links[-1].node.hex() if request.links else ""
    parts = [caller.tenant_id, caller.key_scope, request.format, route, model, head]
    return _digest(parts, request)


def semantic_realm(
    caller: CacheCaller, route: str, model: str, request: Request, prompt_version: str, embedding_model: str
) -> bytes:
    """The realm that vectors are compared within: 32 bytes.

    The conversation before the last message, the system prompt too, is part of it by its hash: only the last message may differ.
    """
    before = request.links[-1].parent.hex() if request.links else ""
    parts = [*msgspec.structs.astuple(caller), request.format, route, model, before, prompt_version, embedding_model]
    return _digest(parts, request)


def _digest(parts: list[str], request: Request) -> bytes:
    headers = sorted((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.pass_headers)
    # Parameters that say nothing leave an empty object where none at all leave nothing.
    params = b"" if request.stable_params == b"{}" else request.stable_params
    return hashlib.sha256(_encode([parts, request.tools_sha256, headers]) + params).digest()


def mark_of(key: bytes) -> str:
    """The fingerprint column of cache events, by which the second occurrence of a question in a job is found."""
    return f"cache:{key.hex()}"


def question_of(request: Request) -> str | None:
    """The text of the last message, if a person or program wrote it; None where similar text does not mean a similar question."""
    if not request.links or request.format == "embeddings" or request.choices != 1:
        return None
    message = _decode(request.links[-1].body)
    if not isinstance(message, dict):
        return None
    said = _text_of(cast("dict[str, Any]", message))
    return said if said is not None and said.strip() and len(said) <= MAX_QUESTION_BYTES else None


def _text_of(message: Mapping[str, Any]) -> str | None:
    if message.get("role") != "user":
        return None
    content: Any = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    found: list[str] = []
    for part in cast("list[Any]", content):
        fields = cast("dict[str, Any]", part) if isinstance(part, dict) else {}
        text = fields.get("text")
        # A picture or a tool's result beside the text: what is asked does not stand in the text alone.
        if fields.get("type") not in _TEXT_PARTS or not isinstance(text, str):
            return None
        found.append(text)
    return "\n".join(found)
