"""Tool calls in recorded answers, and their results in later requests, in every client format. Pure.

Only tools that the caller runs are read; those of the provider, such as web search, have their result in the same answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import msgspec

Json = dict[str, Any]
TOOL_MARKS = (b"tool", b"_call_output", b"functionResponse", b'"function"')
"""One of these is in every recorded message that holds the result of a tool."""


class ToolCallRef(msgspec.Struct, frozen=True):
    """A tool call of a model, or its result. `call_id` is None where the format, such as Gemini, has none; `name` is None in
    results that give the id only."""

    name: str | None
    call_id: str | None


def asked_tools(answer: Json) -> list[ToolCallRef]:
    """The tool calls of a recorded answer that the caller has to run."""
    found: list[ToolCallRef] = []
    for choice in _dicts(answer.get("choices")):
        message = _dict(choice.get("message"))
        for call in _dicts(message.get("tool_calls")):
            found.append(_ref(_dict(call.get("function") or call.get("custom")).get("name"), call.get("id")))
        if called := message.get("function_call"):
            found.append(_ref(_dict(called).get("name"), None))
    for block in _dicts(answer.get("content")):
        if block.get("type") == "tool_use":
            found.append(_ref(block.get("name"), block.get("id")))
    found += _of_responses(answer)
    for candidate in _dicts(answer.get("candidates")):
        for part in _dicts(_dict(candidate.get("content")).get("parts")):
            if called := part.get("functionCall"):
                found.append(_ref(_dict(called).get("name"), _dict(called).get("id")))
    return found


def _of_responses(answer: Json) -> Iterator[ToolCallRef]:
    items = [*_dicts(answer.get("output"))]
    done = {item.get("call_id") for item in items if _kind(item).endswith("_call_output")}
    for item in items:
        call_id, kind = item.get("call_id"), _kind(item)
        if kind.endswith("_call") and isinstance(call_id, str) and call_id not in done:
            yield _ref(item.get("name") or kind.removesuffix("_call"), call_id)


def tool_results(message: Json) -> list[ToolCallRef]:
    """The results of tools in one recorded message or input item of a request."""
    if message.get("role") == "tool":
        return [_ref(message.get("name"), message.get("tool_call_id"))]
    if message.get("role") == "function":
        return [_ref(message.get("name"), None)]
    if _kind(message).endswith("_call_output"):
        return [_ref(None, message.get("call_id"))]
    blocks = [block for block in _dicts(message.get("content")) if block.get("type") == "tool_result"]
    found = [_ref(None, block.get("tool_use_id")) for block in blocks]
    for part in _dicts(message.get("parts")):
        if given := part.get("functionResponse"):
            found.append(_ref(_dict(given).get("name"), _dict(given).get("id")))
    return found


def assistant_text(answer: Json) -> str:
    """The text of a recorded answer, of a truncated one too; "" if it has none."""
    texts = [_dict(choice.get("message")).get("content") for choice in _dicts(answer.get("choices"))]
    blocks = [*_dicts(answer.get("content"))]
    for item in _dicts(answer.get("output")):
        if item.get("type") == "message":
            blocks += _dicts(item.get("content"))
    for candidate in _dicts(answer.get("candidates")):
        blocks += [part for part in _dicts(_dict(candidate.get("content")).get("parts")) if not part.get("thought")]
    for text in list(texts):
        blocks += _dicts(text)
    found = [text for text in texts if isinstance(text, str)]
    return "\n".join([*found, *(block["text"] for block in blocks if isinstance(block.get("text"), str))])


def _ref(name: Any, call_id: Any) -> ToolCallRef:
    return ToolCallRef(name if isinstance(name, str) else None, call_id if isinstance(call_id, str) else None)


def _kind(item: Json) -> str:
    return str(item.get("type", ""))


def _dict(value: Any) -> Json:
    return cast("Json", value) if isinstance(value, dict) else {}


def _dicts(value: Any) -> Iterator[Json]:
    for each in cast("list[Any]", value) if isinstance(value, list) else []:
        if isinstance(each, dict):
            yield cast("Json", each)
