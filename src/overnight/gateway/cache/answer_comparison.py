"""Recorded answers in any client format: whether one is complete, whether it calls tools, and what its text is. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import msgspec

Json = dict[str, Any]
AGREES_FROM = 0.8
"""The minimum share of common words, from 0 to 1, of two answers that agree."""

MAX_WORDS = 20_000

_decode = msgspec.json.Decoder().decode
_WHOLE = {
    "chat": frozenset({"stop", "tool_calls", "function_call"}),
    "messages": frozenset({"end_turn", "stop_sequence", "tool_use"}),
}


class ReadAnswer(msgspec.Struct, frozen=True):
    """A complete answer: its text, and whether it calls `tools`."""

    text: str
    tools: bool


def read_answer(form: str, body: bytes) -> ReadAnswer | None:
    """The complete answer in a body of this client format; None for a truncated, refused or filtered one, or another body."""
    try:
        answer: Any = _decode(body)
        return _READERS[form](cast("Json", answer)) if isinstance(answer, dict) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def _chat(answer: Json) -> ReadAnswer | None:
    texts: list[str] = []
    tools = False
    choices: list[Json] = answer["choices"]
    for choice in choices:
        if choice["finish_reason"] not in _WHOLE["chat"] or choice["message"].get("refusal"):
            return None
        message: Json = choice["message"]
        tools = tools or bool(message.get("tool_calls") or message.get("function_call"))
        texts.append(_text(message.get("content")))
    return ReadAnswer("\n".join(texts), tools) if choices else None


def _messages(answer: Json) -> ReadAnswer | None:
    if answer["stop_reason"] not in _WHOLE["messages"]:
        return None
    blocks = [*_dicts(answer["content"])]
    return ReadAnswer(_text(blocks), any(str(block.get("type", "")).endswith("tool_use") for block in blocks))


def _responses(answer: Json) -> ReadAnswer | None:
    if answer["status"] != "completed" or answer.get("error"):
        return None
    texts: list[str] = []
    tools = False
    for item in _dicts(answer["output"]):
        tools = tools or str(item.get("type", "")).endswith("_call")
        for part in _dicts(item.get("content")):
            if part.get("type") == "refusal":
                return None
            texts.append(_text([part]) if item.get("type") == "message" else "")
    return ReadAnswer("\n".join(filter(None, texts)), tools)


def _embeddings(answer: Json) -> ReadAnswer | None:
    return ReadAnswer("", False) if answer["data"] else None


_READERS = {"chat": _chat, "messages": _messages, "responses": _responses, "embeddings": _embeddings}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in _dicts(content) if isinstance(part.get("text"), str))


def _dicts(value: Any) -> Iterator[Json]:
    for each in cast("list[Any]", value) if isinstance(value, list) else []:
        if isinstance(each, dict):
            yield cast("Json", each)


class Difference(msgspec.Struct, frozen=True):
    """How two answers differ. `overlap`: shared words (with their counts) of all words, from 0 to 1."""

    same: bool
    overlap: float

    @property
    def agrees(self) -> bool:
        return self.same or self.overlap >= AGREES_FROM


def compare(one: ReadAnswer, other: ReadAnswer) -> Difference:
    """Compare two answers, without case and spacing. An answer that calls tools agrees only with the same text and no tools."""
    if one.tools or other.tools:
        return Difference(False, 0.0)
    words, others = _words(one), _words(other)
    if words == others:
        return Difference(True, 1.0)
    counts, theirs = Counter(words), Counter(others)
    union = sum((counts | theirs).values())
    return Difference(False, round(sum((counts & theirs).values()) / union, 3))


def _words(answer: ReadAnswer) -> list[str]:
    return answer.text.casefold().split(None, MAX_WORDS)[:MAX_WORDS]
