"""Thought signatures: kept for the model that made them, in any format, and never sent to another one.

Gemini signs the parts of an answer. In chat, all signatures of an answer form one block of `thinking_blocks`. In the
other direction, the reasoning blocks of a chat target become the signature of a Gemini part.
"""

from __future__ import annotations

from base64 import b64decode, urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from typing import Any, NamedTuple

import msgspec

from .lenient_json import Json, dict_of, dicts_of, list_of, text_of

GEMINI_PREFIX = "gemini/"
"""The prefix of the signature of a reasoning block that holds Gemini's signatures."""
OWN_PREFIX = b"overnight/"
OWN_MARK = urlsafe_b64encode(OWN_PREFIX)[:13].decode()
"""How our own signatures of Gemini parts begin, in base64."""
SKIPPED = "skip_thought_signature_validator"
"""What Gemini accepts instead of a signature, for calls that another model made:
https://ai.google.dev/gemini-api/docs/thought-signatures"""
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Signatures(NamedTuple):
    """The signatures of an answer: of its text, and of each tool call; "" for an unsigned part."""

    text: str
    calls: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.text) or any(self.calls)


def pack(signatures: Signatures, model: str) -> str:
    """The signature of a reasoning block in the other formats."""
    packed = urlsafe_b64encode(_encode([signatures.text, list(signatures.calls)])).decode().rstrip("=")
    return f"{GEMINI_PREFIX}{model}/{packed}"


def packed_model(signature: str) -> str:
    """The model that a packed signature names."""
    return signature.removeprefix(GEMINI_PREFIX).rpartition("/")[0]


def unpack(signature: str) -> Signatures | None:
    """The signatures of a packed one; None if it is none."""
    if not signature.startswith(GEMINI_PREFIX):
        return None
    found = _unpacked(signature.rpartition("/")[2])
    if not isinstance(found, list):
        return None
    text, calls = (*list_of(found), None, None)[:2]
    return Signatures(text_of(text), tuple(text_of(each) for each in list_of(calls)))


def packed_block(signature: str) -> Json | None:
    """The reasoning block of chat that holds a packed signature; None for another signature."""
    if unpack(signature) is None:
        return None
    return {"type": "thinking", "thinking": "", "signature": signature, "model": packed_model(signature)}


def split_packed(blocks: list[Json]) -> tuple[list[Json], list[Json]]:
    """The reasoning blocks of a chat message, and those that hold packed signatures. These come after the text."""
    packed = [each for each in blocks if text_of(each.get("signature")).startswith(GEMINI_PREFIX)]
    return [each for each in blocks if each not in packed], packed


def signed_blocks(message: Json) -> list[Json]:
    """The blocks of Anthropic messages for the packed signatures of a chat message, or of a piece of it."""
    signatures = (text_of(each.get("signature")) for each in dicts_of(message.get("thinking_blocks")))
    return [
        {"type": "thinking", "thinking": "", "signature": signature}
        for signature in signatures
        if signature.startswith(GEMINI_PREFIX)
    ]


def sign_own(model: str, blocks: list[Json]) -> str:
    """The signature of a Gemini part that holds the reasoning blocks of a chat target, or only names its model."""
    return urlsafe_b64encode(OWN_PREFIX + _encode({"model": model, "blocks": blocks})).decode()


def read_own(signature: str) -> tuple[str, list[Json]] | None:
    """The model and the reasoning blocks of a signature made by `sign_own`; None for another one."""
    if not signature.startswith(OWN_MARK):
        return None
    try:
        # Google's libraries decode a signature and encode it again, with either alphabet.
        raw = b64decode(signature.replace("-", "+").replace("_", "/") + "=" * (-len(signature) % 4))
        found: Any = _decode(raw.removeprefix(OWN_PREFIX))
    except (Error, ValueError, msgspec.DecodeError, RecursionError):
        return None
    held = dict_of(found)
    return text_of(held.get("model")), [dict_of(each) for each in list_of(held.get("blocks"))]


def _unpacked(text: str) -> Any:
    try:
        return _decode(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (Error, ValueError, msgspec.DecodeError, RecursionError):
        return None
