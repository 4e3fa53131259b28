"""Recorded answers in each client format: whether one is complete, whether it calls tools, and what its text is. Pure.

A reader returns None for an answer that was truncated, refused or filtered. It raises KeyError, TypeError or AttributeError
for another body.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import msgspec

Json = dict[str, Any]
_CHAT = frozenset({"stop", "tool_calls", "function_call"})
_MESSAGES = frozenset({"end_turn", "stop_sequence", "tool_use"})


class ReadAnswer(msgspec.Struct, frozen=True):
    """A complete answer: its text, and whether it calls `tools`."""

    text: str
    tools: bool


def read_chat(answer: Json) -> ReadAnswer | None:
    texts: list[str] = []
    tools = False
    choices: list[Json] = answer["choices"]
    for choice in choices:
        if choice["finish_reason"] not in _CHAT or choice["message"].get("refusal"):
            return None
        message: Json = choice["message"]
        tools = tools or bool(message.get("tool_calls") or message.get("function_call"))
        texts.append(_text(message.get("content")))
    return ReadAnswer("\n".join(texts), tools) if choices else None


def read_messages(answer: Json) -> ReadAnswer | None:
    if answer["stop_reason"] not in _MESSAGES:
        return None
    blocks = [*_dicts(answer["content"])]
    return ReadAnswer(_text(blocks), any(str(block.get("type", "")).endswith("tool_use") for block in blocks))


def read_responses(answer: Json) -> ReadAnswer | None:
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


def read_embeddings(answer: Json) -> ReadAnswer | None:
    return ReadAnswer("", False) if answer["data"] else None


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in _dicts(content) if isinstance(part.get("text"), str))


def _dicts(value: Any) -> Iterator[Json]:
    for each in cast("list[Any]", value) if isinstance(value, list) else []:
        if isinstance(each, dict):
            yield cast("Json", each)
