"""Convert chat answers to Anthropic messages, complete and streamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from overnight.pricing.usage import (
    Cost,
    Usage,
    cost_fields,
    estimated_usage,
    openai_usage,
)

from .chat_over_messages_turns import UNSIGNED_PREFIX
from .contract import AnswerContext
from .gemini_signatures import signed_blocks
from .identifiers import (
    CHAT_NAME,
    MESSAGES_ID,
    fit_name,
    original_names,
)
from .lenient_json import (
    Json,
    dict_of,
    dicts_of,
    list_of,
    text_of,
)
from .messages import estimate_input_tokens

_STOPPED = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_REASONING = ("reasoning_content", "reasoning")
_decode = msgspec.json.Decoder().decode


def names_back(body: Json) -> Mapping[str, str]:
    """Map sent tool names to the client's names."""
    return original_names((text_of(tool.get("name")) for tool in dicts_of(body.get("tools"))), CHAT_NAME)


def answer(completion: Json, context: AnswerContext) -> Json:
    """The message. Its reasoning is signed with the model name."""
    choices = dicts_of(completion["choices"])
    choice = choices[0] if choices else dict_of(None)
    message = dict_of(choice.get("message"))
    names = names_back(context.body)
    content: list[Json] = []
    if thought := _reasoning(message):
        content.append({"type": "thinking", "thinking": thought, "signature": UNSIGNED_PREFIX + context.model})
    text = _text(message)
    # Anthropic rejects text of only whitespace, so the client could not send it back.
    if text.strip():
        content.append({"type": "text", "text": text})
    content += signed_blocks(message)
    calls = dicts_of(message.get("tool_calls"))
    if function := dict_of(message.get("function_call")):
        calls.append({"function": function})
    for at, call in enumerate(calls):
        function = dict_of(call.get("function"))
        name = text_of(function.get("name"))
        call_id = _call_id(text_of(call.get("id")), at, context)
        made = {"type": "tool_use", "id": call_id, "name": names.get(name, name)}
        content.append({**made, "input": _input(function.get("arguments"))})
    usage = openai_usage(completion.get("usage")) or estimated_usage(
        4 * estimate_input_tokens(context.body), len(text) + len(thought)
    )
    ended = _ended(choice, context, has_calls=bool(calls), refusal=text_of(message.get("refusal")))
    return {**_message_fields(context), "content": content, **ended, "usage": messages_usage(usage)}


def messages_usage(usage: Usage) -> Json:
    """Usage in Anthropic's format: tokens read from a cache or written to it are not part of the input tokens."""
    written = usage.cache_write_tokens + usage.cache_write_1h_tokens
    fields: Json = {
        "input_tokens": usage.input_tokens - usage.cached_tokens - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
    }
    if usage.reasoning_tokens:
        fields["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return fields


def _message_fields(context: AnswerContext) -> Json:
    return {"id": context.answer_id, "type": "message", "role": "assistant", "model": context.model}


def _reasoning(message: Json) -> str:
    return next((text for name in _REASONING if (text := text_of(message.get(name)))), "")


def _text(message: Json) -> str:
    content = message.get("content")
    if not isinstance(content, str):
        content = "".join(text_of(part.get("text")) for part in dicts_of(content))
    return content + text_of(message.get("refusal"))


def _call_id(given: str, at: int, context: AnswerContext) -> str:
    return fit_name(given, MESSAGES_ID) if given else f"toolu_{context.answer_id.removeprefix('msg_')}_{at}"


def _input(arguments: Any) -> Json:
    if not isinstance(arguments, str):
        return dict_of(arguments)
    if not arguments.strip():
        return {}
    try:
        found: Any = _decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        found = None
    return dict_of(found) if isinstance(found, dict) else {"unparsed_input": arguments}


def _ended(choice: Json, context: AnswerContext, *, has_calls: bool, refusal: str) -> Json:
    reason = _STOPPED.get(text_of(choice.get("finish_reason")), "end_turn")
    if has_calls and reason == "end_turn":
        reason = "tool_use"
    # Some servers report which of the client's stop sequences matched.
    stop = choice.get("stop_reason")
    stop = stop if reason == "end_turn" and stop in list_of(context.body.get("stop_sequences")) else None
    ended: Json = {"stop_reason": "stop_sequence" if stop else reason, "stop_sequence": stop}
    if refusal or reason == "refusal":
        details = {"type": "refusal", "category": None, "explanation": refusal or None}
        ended |= {"stop_reason": "refusal", "stop_details": details}
    return ended


class _Call:
    """A tool call under construction. `index` is set once its block started; `kept` buffers fragments before that."""

    __slots__ = ("call_id", "index", "kept", "name")

    def __init__(self) -> None:
        self.call_id = self.name = ""
        self.index = -1
        self.kept = ""


class StreamTranslator:
    """Converts chat chunks to message events. The last events are sent by `end`, when the usage is known.

    A chat `Assembly` must have numbered the tool calls of the chunks.
    """

    def __init__(self, context: AnswerContext) -> None:
        self._context = context
        self._names = names_back(context.body)
        self._begun = False
        self._kind = self._space = ""
        self._index = -1
        self._grown: dict[str, int] = {}
        self._calls: dict[int, _Call] = {}
        self._choice: Json = {}
        self._refusal = ""

    def take(self, event: Json) -> list[Json]:
        events = self._begin()
        for choice in dicts_of(event.get("choices"))[:1]:
            delta = dict_of(choice.get("delta"))
            if thought := _reasoning(delta):
                events += self._grow("thinking", {"type": "thinking_delta", "thinking": thought})
            self._refusal += text_of(delta.get("refusal"))
            if text := _text(delta):
                events += self._grow_text(text)
            for block in signed_blocks(delta):
                events += self._open("", {**block, "signature": ""})
                events.append(self._delta({"type": "signature_delta", "signature": block["signature"]}))
                events.append({"type": "content_block_stop", "index": self._index})
            calls = list_of(delta.get("tool_calls"))
            if function := dict_of(delta.get("function_call")):
                calls = [*calls, {"index": 0, "function": function}]
            for position, call in enumerate(calls):
                events += self._grow_call(dict_of(call), position)
            if choice.get("finish_reason"):
                self._choice = choice
                events += self._close()
        return events

    def end(self, cost_usd: Cost | None, usage: Usage) -> list[Json]:
        events = [*self._begin(), *self._close()]
        reported = messages_usage(usage)
        if cost_usd is not None:
            reported |= cost_fields(cost_usd)
        ended = _ended(self._choice, self._context, has_calls=bool(self._calls), refusal=self._refusal)
        return [*events, {"type": "message_delta", "delta": ended, "usage": reported}, {"type": "message_stop"}]

    def _begin(self) -> list[Json]:
        if self._begun:
            return []
        self._begun = True
        usage = messages_usage(estimated_usage(4 * estimate_input_tokens(self._context.body), 0))
        message: Json = {
            **_message_fields(self._context),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return [{"type": "message_start", "message": message}]

    def _open(self, kind: str, block: Json) -> list[Json]:
        events = self._close()
        self._kind = kind
        self._index += 1
        return [*events, {"type": "content_block_start", "index": self._index, "content_block": block}]

    def _close(self) -> list[Json]:
        kind, self._kind = self._kind, ""
        if not kind:
            return []
        events: list[Json] = []
        if kind == "thinking":
            events.append(self._delta({"type": "signature_delta", "signature": UNSIGNED_PREFIX + self._context.model}))
        return [*events, {"type": "content_block_stop", "index": self._index}]

    def _grow_text(self, text: str) -> list[Json]:
        text = self._space + text
        self._space = ""
        if "text" not in self._grown and not text.strip():
            self._space = text
            return []
        return self._grow("text", {"type": "text_delta", "text": text})

    def _grow(self, kind: str, delta: Json) -> list[Json]:
        index = self._grown.get(kind)
        if index is not None:
            # Interleaved content belongs to the one block of its kind in the complete answer.
            return [self._delta(delta, index)]
        empty = {"thinking": "", "signature": ""} if kind == "thinking" else {"text": ""}
        events = self._open(kind, {"type": kind, **empty})
        self._grown[kind] = self._index
        return [*events, self._delta(delta)]

    def _grow_call(self, part: Json, position: int) -> list[Json]:
        at = part.get("index")
        call = self._calls.setdefault(at if isinstance(at, int) else position, _Call())
        function = dict_of(part.get("function"))
        call.call_id = call.call_id or text_of(part.get("id"))
        call.name = call.name or text_of(function.get("name"))
        piece = call.kept + text_of(function.get("arguments"))
        if not call.name:
            call.kept = piece
            return []
        events: list[Json] = []
        if call.index < 0:
            call_id = _call_id(call.call_id, len(self._calls) - 1, self._context)
            name = self._names.get(call.name, call.name)
            events = self._open("tool_use", {"type": "tool_use", "id": call_id, "name": name, "input": {}})
            call.index, call.kept = self._index, ""
        if piece:
            events.append(self._delta({"type": "input_json_delta", "partial_json": piece}, call.index))
        return events

    def _delta(self, delta: Json, index: int | None = None) -> Json:
        return {"type": "content_block_delta", "index": self._index if index is None else index, "delta": delta}
