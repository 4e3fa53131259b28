"""Finish reasons: the words of providers and servers, and what each means in chat and in messages.

A reason that is no end (the provider broke off) raises `NoAnswer`. An unknown reason is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .contract import Json, NoAnswer

STANDARD_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
"""The reasons of chat itself."""

# OpenAI, Azure, DeepSeek, Mistral, Groq, vLLM, SGLang, llama.cpp and Ollama use chat's own words and those named here.
_WORDS: Mapping[str, str] = {
    "stop": """stop eos eos_token stop_sequence stop_token end_turn endturn end_of_turn complete completed pause_turn
        finish_reason_stop""",
    "length": """length max_tokens max_output_tokens max_new_tokens max_length model_length token_limit
        model_context_window_exceeded context_length_exceeded""",
    "tool_calls": "tool_calls tool_call tool_use function_calls function_call",
    "content_filter": """content_filter content_filtered sensitive safety refusal recitation prohibited_content blocklist
        spii image_safety guardrail_intervened""",
}
_MEANINGS = {word: meaning for meaning, words in _WORDS.items() for word in words.split()}
# Of each: the type of error that a provider would have reported.
_NO_END: Mapping[str, str] = {
    "server_error": """error abort aborted cancelled canceled network_error internal_error server_error failed timeout
        unavailable""",
    "overloaded_error": "insufficient_system_resource overloaded",
    # The model wrote a call that the provider could not read.
    "tool_use_failed": "malformed_function_call unexpected_tool_call malformed_tool_call",
}
_FAULTS = {word: kind for kind, words in _NO_END.items() for word in words.split()}
_OF_MESSAGES = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_MESSAGES_OWN = frozenset({
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal", "model_context_window_exceeded",
})  # fmt: skip


def chat_reason(word: Any) -> str:
    """The word of chat for a finish reason; an unknown one as it is.

    Raises:
        NoAnswer: the reason is no end.
        TypeError: it is no word.
    """
    if not isinstance(word, str):
        raise TypeError("a finish reason must be a string")
    key = word.lower()
    kind, colon, detail = key.partition(":")  # Gemini's compatible API: "content_filter: RECITATION"
    for each in (detail.strip(), kind) if colon else (key,):
        if each in _FAULTS:
            raise broken_off(word, _FAULTS[each])
        if each in _MEANINGS:
            return _MEANINGS[each]
    return word


def messages_reason(word: Any) -> str:
    """The word of messages for a stop reason. As `chat_reason`."""
    if word in _MESSAGES_OWN:
        return word
    found = chat_reason(word)
    return _OF_MESSAGES.get(found, found)


def broken_off(word: str, kind: str = "server_error") -> NoAnswer:
    """The failure behind a finish reason that is no end."""
    return NoAnswer(
        {"error": {"message": f"the provider broke off the answer: finish reason {word}", "type": kind, "code": word}}
    )


def without_call(word: str) -> NoAnswer:
    """The failure of an answer that announces a tool call and has none, or one without a name."""
    message = f"the answer ends with {word}, but has no complete tool call"
    error: Json = {"message": message, "type": "tool_use_failed", "code": "no_tool_call"}
    return NoAnswer({"error": error})
