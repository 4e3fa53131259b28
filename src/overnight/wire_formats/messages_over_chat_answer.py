"""Convert chat answers to Anthropic messages, complete and streamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from .ordered_parts import OrderedParts, Part, Step

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
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        found = None
    return dict_of(found) if isinstance(found, dict) else {"unparsed_input": arguments}


def _ended(choice: Json, context: AnswerContext, *, has_calls: bool, refusal: str) -> Json:
    given = text_of(choice.get("finish_reason"))
    reason = _STOPPED.get(given, given or "end_turn")
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


class StreamTranslator:
    """Converts chat chunks to message events. The last events are sent by `end`, when the usage is known.

    A chat `Assembly` must have numbered the tool calls of the chunks.
    """

    def __init__(self, context: AnswerContext) -> None:
        self._context = context
        self._names = names_back(context.body)
        self._begun = False
        self._parts = OrderedParts(drops_blank=True)
        self._blocks: dict[Part, Json] = {}
        self._choice: Json = {}

    def take(self, event: Json) -> list[Json]:
        events = self._begin()
        for choice in dicts_of(event.get("choices"))[:1]:
            delta = choice.get("delta")
            if isinstance(delta, dict) and delta:
                known = dict_of(delta)
                if (part := self._parts.grow_text(known)) is not None:
                    events.append(self._delta(part, {"type": "text_delta", "text": known["content"]}))
                else:
                    events += self._events(self._take_delta(known))
            if choice.get("finish_reason"):
                self._choice = choice
        return events

    def _take_delta(self, delta: Json) -> Iterator[Step]:
        if "thinking_blocks" not in delta:
            yield from self._parts.take(delta)
            return
        blocks = signed_blocks(delta)
        calls = {"tool_calls": delta.get("tool_calls")}
        yield from self._parts.take({name: value for name, value in delta.items() if name not in _AFTER_TEXT})
        for block in blocks:
            self._parts.add_block(block)
        yield from self._parts.take(calls)

    def arranged(self, answer: Json) -> Json:
        return {**answer, "content": [self._content(part) for part in self._parts.shown()]}

    def end(self, cost_usd: Cost | None, usage: Usage) -> list[Json]:
        events = [*self._begin(), *self._events(self._parts.end())]
        reported = messages_usage(usage)
        if cost_usd is not None:
            reported |= cost_fields(cost_usd)
        parts = self._parts.parts
        refusal = "".join(part.text() for part in parts if part.kind == "refusal")
        has_calls = any(part.kind == "call" for part in parts)
        ended = _ended(self._choice, self._context, has_calls=has_calls, refusal=refusal)
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

    def _events(self, steps: Iterator[Step]) -> list[Json]:
        events: list[Json] = []
        for step, part, piece in steps:
            if step == "open":
                self._blocks[part] = {"index": len(self._blocks)}
                empty = {name: _EMPTY.get(name, value) for name, value in self._content(part).items()}
                events.append({"type": "content_block_start", **self._blocks[part], "content_block": empty})
            elif step == "piece":
                events.append(self._delta(part, _delta_of(part.kind, piece)))
            else:
                if part.kind in ("thinking", "block"):
                    signed = {"type": "signature_delta", "signature": self._content(part)["signature"]}
                    events.append(self._delta(part, signed))
                events.append({"type": "content_block_stop", **self._blocks[part]})
        return events

    def _delta(self, part: Part, delta: Json) -> Json:
        return {"type": "content_block_delta", **self._blocks[part], "delta": delta}

    def _content(self, part: Part) -> Json:
        """The whole block of a part."""
        if part.kind == "block":
            return part.details["block"][0]
        if part.kind == "call":
            call_id = _call_id(part.call_id, part.number, self._context)
            name = self._names.get(part.name, part.name)
            return {"type": "tool_use", "id": call_id, "name": name, "input": _input(part.text())}
        if part.kind == "thinking":
            return {"type": "thinking", "thinking": part.text(), "signature": UNSIGNED_PREFIX + self._context.model}
        return {"type": "text", "text": part.text()}


_AFTER_TEXT = frozenset({"thinking_blocks", "tool_calls"})
_EMPTY: Json = {"thinking": "", "signature": "", "text": "", "input": {}}


def _delta_of(kind: str, piece: str) -> Json:
    if kind == "call":
        return {"type": "input_json_delta", "partial_json": piece}
    if kind == "thinking":
        return {"type": "thinking_delta", "thinking": piece}
    return {"type": "text_delta", "text": piece}
