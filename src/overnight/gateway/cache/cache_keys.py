"""Cache keys: hashes of all that must be equal before the answer of one call may be used for another. Pure.

The hashes are taken over JSON, so that two different lists of names cannot have the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from overnight.wire_formats import routed_format
from overnight.wire_formats.request import Request

MAX_QUESTION_BYTES = 8_000
"""Maximum length of the last message. A longer one is a document, and similar documents may have different answers."""

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
    """The realm within which vectors are compared: 32 bytes.

    It includes a hash of the conversation before the last message and of the system prompt: only the last message may differ.
    """
    before = request.links[-1].parent.hex() if request.links else ""
    parts = [*msgspec.structs.astuple(caller), request.format, route, model, before, prompt_version, embedding_model]
    return _digest(parts, request)


def _digest(parts: list[str], request: Request) -> bytes:
    headers = sorted((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.pass_headers)
    # An empty object of parameters is the same as none.
    params = b"" if request.stable_params == b"{}" else request.stable_params
    return hashlib.sha256(_encode([parts, request.tools_sha256, headers]) + params).digest()


def event_fingerprint(key: bytes) -> str:
    """The fingerprint column of cache events. It finds the second occurrence of a question in a job."""
    return f"cache:{key.hex()}"


def question_of(request: Request) -> str | None:
    """The text of the last message, if it is a user message; None if similar text does not imply a similar question."""
    if not request.links or routed_format(request.format) == "embeddings" or request.choices != 1:
        return None
    message = _decode(request.links[-1].body)
    if not isinstance(message, dict):
        return None
    text = _text_of(cast("dict[str, Any]", message))
    return text if text is not None and text.strip() and len(text) <= MAX_QUESTION_BYTES else None


def _text_of(message: Mapping[str, Any]) -> str | None:
    if message.get("role") != "user":
        return None
    content: Any = message.get("content", message.get("parts"))
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    found: list[str] = []
    for part in cast("list[Any]", content):
        fields = cast("dict[str, Any]", part) if isinstance(part, dict) else {}
        text = fields.get("text")
        # With an image or a tool result beside the text, the text alone is not the question.
        is_text = fields.get("type") in _TEXT_PARTS or fields.keys() == {"text"}
        if not is_text or not isinstance(text, str):
            return None
        found.append(text)
    return "\n".join(found)
