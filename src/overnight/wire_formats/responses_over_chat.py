"""Translate Responses to chat completions.

For tools, see `responses_tools.py`. Reasoning travels as `reasoning_content` and
`thinking_blocks`, packed in the `encrypted_content` of the reasoning item, so that signatures are preserved.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from overnight.pricing.usage import openai_usage

from .contract import (
    AnswerContext,
    Json,
    Losses,
)
from .finish_reasons import STANDARD_REASONS
from .responses_answer import initial_response, pack_thinking, usage_json
from .responses_input import messages, move_tool_media
from .responses_tools import ToolNames, set_tools, tool_names

__all__ = ["answer", "logprobs_of", "pivot", "request", "tool_names"]

_decode = msgspec.json.Decoder().decode
_SAME = (
    "model",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "temperature",
    "top_p",
    "user",
)
_HANDLED = frozenset({
    *_SAME,
    "client_metadata",
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "previous_response_id",
    "reasoning",
    "store",
    "stream",
    "stream_options",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
})  # fmt: skip
_NOTHING_ASKED: tuple[tuple[str, Any], ...] = (("truncation", "disabled"), ("background", False))
_LOGPROBS = "message.output_text.logprobs"
# Packed reasoning is always included.
_GIVEN_ANYWAY = frozenset({_LOGPROBS, "reasoning.encrypted_content"})


def request(body: Json, losses: Losses) -> Json:
    """Translate a request body. Raises InvalidBody for content without a chat equivalent, and for a required
    unsupported tool."""
    sent = pivot(body, losses)
    sent["messages"] = move_tool_media(sent["messages"])
    return sent


def pivot(body: Json, losses: Losses) -> Json:
    """Translate a request for a further translation. Images stay in tool results, which the next format may support."""
    sent: Json = {name: body[name] for name in _SAME if body.get(name) is not None}
    sent["messages"] = messages(body, losses)
    if body.get("max_output_tokens") is not None:
        sent["max_tokens"] = body["max_output_tokens"]
    if body.get("stream"):
        sent["stream"] = True
    set_tools(body, sent, losses)
    _text(body.get("text") or {}, sent, losses)
    reasoning: Json = body.get("reasoning") or {}
    if reasoning.get("effort"):
        sent["reasoning_effort"] = reasoning["effort"]
    losses += [f"reasoning.{name}" for name, value in reasoning.items() if name != "effort" and value is not None]
    include: list[str] = body.get("include") or []
    if _LOGPROBS in include or body.get("top_logprobs"):
        sent["logprobs"] = True
        if body.get("top_logprobs"):
            sent["top_logprobs"] = body["top_logprobs"]
    losses += [f"include ({name})" for name in include if name not in _GIVEN_ANYWAY]
    losses += [
        name
        for name, value in body.items()
        if name not in _HANDLED and value is not None and (name, value) not in _NOTHING_ASKED
    ]
    return sent


def _text(text: Json, sent: Json, losses: Losses) -> None:
    form: Json = text.get("format") or {}
    if form.get("type") == "json_schema":
        schema = {
            name: form[name] for name in ("name", "schema", "strict", "description") if form.get(name) is not None
        }
        sent["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif form.get("type") == "json_object":
        sent["response_format"] = {"type": "json_object"}
    if text.get("verbosity"):
        sent["verbosity"] = text["verbosity"]
    losses += [f"text.{name}" for name in text if name not in ("format", "verbosity")]


# ── the answer
# ───────────────────────────────────────────────────────────────────────────────────────────────────────


def answer(completion: Json, context: AnswerContext) -> Json:
    """Convert a chat completion to a response."""
    choice: Json = completion["choices"][0]
    message: Json = choice.get("message") or {}
    response = initial_response(context)
    response["output"] = output = _output(message, choice.get("logprobs"), context)
    given = choice.get("finish_reason") or "stop"
    reason = _CUT.get(given, None if given in STANDARD_REASONS else given)
    response["status"] = "incomplete" if reason else "completed"
    if reason:
        response["incomplete_details"] = {"reason": reason}
        if output and "status" in output[-1]:
            output[-1]["status"] = "incomplete"
    if isinstance(completion.get("service_tier"), str):
        response["service_tier"] = completion["service_tier"]
    usage = openai_usage(completion.get("usage"))
    response["usage"] = usage_json(usage) if usage else None
    return response


_URL = "url_citation"
_CUT = {"length": "max_output_tokens", "content_filter": "content_filter"}


def _output(message: Json, logprobs: Any, context: AnswerContext) -> list[Json]:
    key = context.answer_id.partition("_")[2]
    output: list[Json] = []
    thought = reasoning_of(message)
    blocks: list[Json] = message.get("thinking_blocks") or []
    if thought or blocks:
        output.append(reasoning_item(key, 0, thought, blocks))
    parts = _parts(message, logprobs)
    if parts:
        output.append(message_item(key, 0, parts))
    names = tool_names(context.body)
    for place, call in enumerate(cast("list[Json]", message.get("tool_calls") or ())):
        output.append(call_item(call, place, key, names))
    return output


def reasoning_item(key: str, number: int, text: str, blocks: list[Json]) -> Json:
    """An item of reasoning. `blocks` are packed with their signatures."""
    item: Json = {"id": item_id("rs", key, number), "type": "reasoning", "summary": []}
    item["content"] = [{"type": "reasoning_text", "text": text}] if text else []
    if blocks:
        item["encrypted_content"] = pack_thinking(blocks)
    return item


def message_item(key: str, number: int, parts: list[Json]) -> Json:
    """An item with the parts of a message."""
    head: Json = {"id": item_id("msg", key, number), "type": "message", "role": "assistant", "status": "completed"}
    return {**head, "content": parts}


def item_id(prefix: str, key: str, number: int) -> str:
    """The id of the item of a kind; `number`: of the items of this kind before it."""
    return f"{prefix}_{key}_{number}" if number else f"{prefix}_{key}"


def text_part(text: str, notes: list[Json], logprobs: list[Json]) -> Json:
    """A part of visible text, with the annotations of chat."""
    annotations = [{"type": _URL, **note[_URL]} for note in notes if note.get("type") == _URL]
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": logprobs}


def _parts(message: Json, logprobs: Any) -> list[Json]:
    parts: list[Json] = []
    if text := text_of(message.get("content")):
        parts.append(text_part(text, message.get("annotations") or [], logprobs_of(logprobs)))
    if message.get("refusal"):
        parts.append({"type": "refusal", "refusal": message["refusal"]})
    return parts


def call_item(call: Json, place: int, key: str, names: ToolNames) -> Json:
    """The item of a tool call, with the tool's name as the client knows it."""
    function: Json = call["function"]
    name, arguments = function["name"], function.get("arguments") or "{}"
    call_id = call.get("id") or f"call_{key}_{place}"
    is_custom, (namespace, own) = name in names.custom, names.namespaced.get(name, ("", name))
    named: Json = {"name": own, "namespace": namespace} if namespace else {"name": own}
    if is_custom:
        custom_item: Json = {"id": f"ctc_{key}_{place}", "type": "custom_tool_call", "call_id": call_id, **named}
        return {**custom_item, "input": _one_text(arguments)}
    item: Json = {"id": f"fc_{key}_{place}", "type": "function_call", "call_id": call_id, **named}
    return {**item, "arguments": arguments, "status": "completed"}


def _one_text(arguments: str) -> str:
    try:
        decoded: Any = _decode(arguments)
        return decoded["input"] if isinstance(decoded["input"], str) else arguments
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError):
        return arguments


def text_of(content: Any) -> str:
    """The text of a message's content, or of a fragment of it."""
    if not isinstance(content, list):
        return content or ""
    return "".join(part["text"] for part in cast("list[Json]", content) if part.get("type") == "text")


def reasoning_of(message: Json) -> str:
    """The reasoning of a message, from either of the two field names that servers use."""
    thought: Any = message.get("reasoning_content") or message.get("reasoning")
    return thought if isinstance(thought, str) else ""


def logprobs_of(logprobs: Json | None) -> list[Json]:
    tokens: list[Json] = (logprobs or {}).get("content") or []
    return [{**each, "bytes": each.get("bytes") or [], "top_logprobs": _top(each)} for each in tokens]


def _top(token: Json) -> list[Json]:
    return [{**each, "bytes": each.get("bytes") or []} for each in cast("list[Json]", token.get("top_logprobs") or ())]
