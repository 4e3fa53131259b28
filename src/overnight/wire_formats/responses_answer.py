"""The fields of a response object besides its output: request parameters, usage and packed reasoning."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from typing import Any

import msgspec

from overnight.pricing.usage import Usage

from .contract import AnswerContext, Json

OWN_REASONING = "overnight.1."
"""The prefix of `encrypted_content` that contains packed thinking blocks instead of a provider's reasoning."""

_SEALED = re.compile(rb'"encrypted_content"\s*:\s*"(?!' + re.escape(OWN_REASONING.encode()) + rb")")
_blocks = msgspec.json.Decoder(list[Json]).decode
_encode = msgspec.json.Encoder().encode
_DEFAULTS: Json = {
    "background": False,
    "error": None,
    "incomplete_details": None,
    # The request record contains instructions and tools once; each answer would repeat them.
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


def initial_response(context: AnswerContext) -> Json:
    """The response object before any output, with the parameters of the request."""
    echoed = {name: value for name, value in context.body.items() if name in _ECHOED and value is not None}
    if "text" in echoed:
        echoed["text"] = {**_DEFAULTS["text"], **echoed["text"]}
    return {
        "id": context.answer_id,
        "object": "response",
        "created_at": context.created_at,
        "status": "in_progress",
        "model": context.model,
        **_DEFAULTS,
        **echoed,
    }


def usage_json(usage: Usage) -> Json:
    """Usage in the Responses format."""
    written = usage.cache_write_tokens + usage.cache_write_1h_tokens
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": written},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def has_sealed_items(given: bytes) -> bool:
    """Whether the input has an item that a provider encrypted."""
    return _SEALED.search(given) is not None


def pack_thinking(blocks: list[Json]) -> str:
    """Pack thinking blocks, including signatures, as the `encrypted_content` of a reasoning item."""
    return OWN_REASONING + b64encode(_encode(blocks)).decode()


def unpack_thinking(content: Any) -> list[Json] | None:
    """Unpack the thinking blocks of a reasoning item. Returns None for a provider's own or damaged content."""
    if not isinstance(content, str) or not content.startswith(OWN_REASONING):
        return None
    try:
        return _blocks(b64decode(content.removeprefix(OWN_REASONING), validate=True))
    except (NotBase64, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
