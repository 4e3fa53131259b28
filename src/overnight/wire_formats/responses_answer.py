"""What a response object says besides its output: what was asked for and how much was used; reasoning sealed for its way back."""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from typing import Any

import msgspec

from overnight.pricing.usage import Usage

from .contract import Asked, Json

OWN_REASONING = "overnight.1."
"""How encrypted reasoning begins that is no provider's, but thinking blocks put there to survive the round trip."""

_blocks = msgspec.json.Decoder(list[Json]).decode
_encode = msgspec.json.Encoder().encode
_USUAL: Json = {
    "background": False,
    "error": None,
    "incomplete_details": None,
    # Instructions and tools stand in the record of the request, once; here each answer would repeat them.
    "instructions": None,
    "tools": [],
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "output": [],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "usage": None,
    "user": None,
}
_ECHOED = frozenset({
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "parallel_tool_calls",
    "previous_response_id",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "store",
    "temperature",
    "text",
    "tool_choice",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
})  # fmt: skip


def begun(asked: Asked) -> Json:
    """A response of which nothing is known yet but what was asked for."""
    told = {name: value for name, value in asked.body.items() if name in _ECHOED and value is not None}
    if "text" in told:
        told["text"] = {**_USUAL["text"], **told["text"]}
    return {
        "id": asked.answer_id,
        "object": "response",
        "created_at": asked.created_at,
        "status": "in_progress",
        "model": asked.model,
        **_USUAL,
        **told,
    }


def told_usage(usage: Usage) -> Json:
    """Usage as Responses tells it."""
    written = usage.cache_write_tokens + usage.cache_write_1h_tokens
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": written},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def sealed(blocks: list[Json]) -> str:
    """Thinking blocks, signatures and all, as the encrypted content of a reasoning item."""
    return OWN_REASONING + b64encode(_encode(blocks)).decode()


def unsealed(content: Any) -> list[Json] | None:
    """The thinking blocks in a reasoning item's encrypted content; None when it is a provider's own, or damaged."""
    if not isinstance(content, str) or not content.startswith(OWN_REASONING):
        return None
    try:
        return _blocks(b64decode(content.removeprefix(OWN_REASONING), validate=True))
    except (NotBase64, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
