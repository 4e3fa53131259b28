"""Convert Anthropic answers to chat completions, complete and streamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from overnight.pricing.usage import (
    Cost,
    Usage,
    anthropic_usage,
    cost_fields,
)

from .contract import AnswerContext
from .identifiers import MESSAGES_NAME, original_names
from .lenient_json import (
    Json,
    dict_of,
    dicts_of,
    list_of,
    text_of,
)

ANSWER_TOOL = "structured_answer"
"""The tool that a model without schema support is forced to call; its input is the answer."""

_FINISHED = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_encode = msgspec.json.Encoder().encode


def names_back(body: Json) -> Mapping[str, str]:
    """Map sent tool names to the client's names."""
    functions = [dict_of(tool.get("function")) for tool in dicts_of(body.get("tools"))]
    functions += dicts_of(body.get("functions"))
    return original_names((text_of(each.get("name")) for each in functions), MESSAGES_NAME)


def answer(message: Json, context: AnswerContext) -> Json:
    """The chat completion. Reasoning names its model, since only that model accepts it again."""
    names = names_back(context.body)
    texts: list[str] = []
    thoughts: list[Json] = []
    calls: list[Json] = []
    offset = 0
    annotations: list[Json] = []
    for block in dicts_of(message["content"]):
        match block["type"]:
            case "text":
                texts.append(block["text"])
                annotations += _annotations(block.get("citations"), offset, offset + len(block["text"]))
                offset += len(block["text"])
            case "thinking" | "redacted_thinking":
                thoughts.append(_reasoning_block(block, len(thoughts), context))
            case "tool_use" if block["name"] == ANSWER_TOOL:
                texts.append(_arguments(block.get("input")))
            case "tool_use":
                call = {"name": names.get(block["name"], block["name"]), "arguments": _arguments(block.get("input"))}
                calls.append({"id": block["id"], "type": "function", "function": call})
            case _:
                pass
    message_out: Json = {"role": "assistant", "content": "".join(texts) or None, "refusal": _refusal(message)}
    if thoughts:
        message_out["thinking_blocks"] = thoughts
    if reasoning := "".join(text_of(each.get("thinking")) for each in thoughts):
        message_out["reasoning_content"] = reasoning
    if calls:
        message_out["tool_calls"] = calls
    if annotations:
        message_out["annotations"] = annotations
    choice = {
        "index": 0,
        "message": message_out,
        "logprobs": None,
        "finish_reason": _finish(message, calls=bool(calls)),
    }
    completion: Json = {
        "id": context.answer_id,
        "object": "chat.completion",
        "created": context.created_at,
        "model": context.model,
    }
    completion["choices"] = [choice]
    usage = anthropic_usage(message.get("usage"))
    if usage is not None:
        completion["usage"] = chat_usage(usage)
    return completion


def chat_usage(usage: Usage) -> Json:
    """Usage in the chat format, with the parts that have different prices."""
    fields: Json = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
    if written := usage.cache_write_tokens + usage.cache_write_1h_tokens:
        fields["prompt_tokens_details"]["cache_write_tokens"] = written
    return fields


def _finish(message: Json, *, calls: bool) -> str:
    given = text_of(message.get("stop_reason"))
    reason = _FINISHED.get(given, given or "stop")
    # The tool of the structured answer is internal, so its call is not returned.
    return "stop" if reason == "tool_calls" and not calls else reason


def _refusal(message: Json) -> str | None:
    if message.get("stop_reason") != "refusal":
        return None
    return text_of(dict_of(message.get("stop_details")).get("explanation")) or None


def _arguments(given: Any) -> str:
    return given if isinstance(given, str) else _encode(given or {}).decode()


def _reasoning_block(block: Json, index: int, context: AnswerContext) -> Json:
    # Clients assemble list fragments by their index.
    return {**block, "index": index, "model": context.model}


def _annotations(citations: Any, start: int, end: int) -> list[Json]:
    """The citations of a text. Citations without a URL are passed through unchanged."""
    annotations: list[Json] = []
    for each in dicts_of(citations):
        if url := text_of(each.get("url")):
            citation = {"url": url, "title": text_of(each.get("title")), "start_index": start, "end_index": end}
            annotations.append({"type": "url_citation", "url_citation": citation})
        else:
            annotations.append({**each, "start_index": start, "end_index": end})
    return annotations


class StreamTranslator:
    """Converts message events to chat chunks."""

    def __init__(self, context: AnswerContext) -> None:
        self._context = context
        self._names = names_back(context.body)
        self._message_fields = {
            "id": context.answer_id,
            "object": "chat.completion.chunk",
            "created": context.created_at,
            "model": context.model,
        }
        self._block: Json = {}
        self._sent_input = False
        self._reasoning_blocks = self._calls = self._characters = 0
        self._annotations: list[Json] = []
        self._ended: Json = {}

    def take(self, event: Json) -> list[Json]:
        match event["type"]:
            case "content_block_delta":
                return self._piece(event["delta"])
            case "message_start":
                return [self._chunk({"role": "assistant", "content": None, "refusal": None})]
            case "content_block_start":
                return self._start(dict(event["content_block"]))
            case "content_block_stop":
                return self._stop()
            case "message_delta" if dict_of(event["delta"]).get("stop_reason"):
                self._ended = event["delta"]
                return self._finish()
            case _:
                return []

    def arranged(self, answer: Json) -> Json:
        return answer  # chat has no order of parts

    def end(self, cost_usd: Cost | None, usage: Usage) -> list[Json]:
        if cost_usd is None:
            return []
        return [{**self._message_fields, "choices": [], "usage": {**chat_usage(usage), **cost_fields(cost_usd)}}]

    def _start(self, block: Json) -> list[Json]:
        self._block, self._sent_input = block, False
        if block["type"] == "text":
            block["start"] = self._characters
            return self._text(block["text"])
        if block["type"] == "thinking":
            thought = text_of(block.get("thinking"))
            return [self._chunk({"reasoning_content": thought})] if thought else []
        if block["type"] == "tool_use" and block["name"] != ANSWER_TOOL:
            function = {"name": self._names.get(block["name"], block["name"]), "arguments": ""}
            call = {"index": self._calls, "id": block["id"], "type": "function", "function": function}
            return [self._chunk({"tool_calls": [call]})]
        return []

    def _piece(self, delta: Json) -> list[Json]:
        block = self._block
        match delta["type"]:
            case "text_delta":
                return self._text(delta["text"])
            case "thinking_delta":
                block.setdefault("pieces", []).append(delta["thinking"])
                return [self._chunk({"reasoning_content": delta["thinking"]})]
            case "signature_delta":
                block["signature"] = text_of(block.get("signature")) + delta["signature"]
            case "input_json_delta" if block["type"] == "tool_use":
                return self._input(delta["partial_json"])
            case "citations_delta":
                block["citations"] = citations = list_of(block.get("citations"))
                citations.append(delta["citation"])
            case _:
                pass
        return []

    def _text(self, text: str) -> list[Json]:
        self._characters += len(text)
        return [self._chunk({"content": text})] if text else []

    def _input(self, piece: str) -> list[Json]:
        if not piece:
            return []
        self._sent_input = True
        if self._block["name"] == ANSWER_TOOL:
            return [self._chunk({"content": piece})]
        return [self._chunk({"tool_calls": [{"index": self._calls, "function": {"arguments": piece}}]})]

    def _stop(self) -> list[Json]:
        block, self._block = self._block, {}
        match block["type"]:
            case "thinking" | "redacted_thinking":
                if pieces := block.pop("pieces", None):
                    block["thinking"] = text_of(block.get("thinking")) + "".join(pieces)
                thought = _reasoning_block(block, self._reasoning_blocks, self._context)
                self._reasoning_blocks += 1
                return [self._chunk({"thinking_blocks": [thought]})]
            case "tool_use":
                self._block = block
                last = [] if self._sent_input else self._input(_arguments(block.get("input")))
                self._calls += block["name"] != ANSWER_TOOL
                return last
            case "text":
                self._annotations += _annotations(block.get("citations"), block["start"], self._characters)
            case _:
                pass
        return []

    def _finish(self) -> list[Json]:
        delta: Json = {"annotations": self._annotations} if self._annotations else {}
        if refusal := _refusal(self._ended):
            delta["refusal"] = refusal
        return [self._chunk(delta, _finish(self._ended, calls=self._calls > 0))]

    def _chunk(self, delta: Json, reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._message_fields, "choices": [choice]}
