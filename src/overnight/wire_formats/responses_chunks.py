"""Convert chat chunks to events of a Responses stream.

`responses_over_chat.answer` builds both the complete answer in the last event and the recorded one.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from overnight.pricing.usage import Cost, Usage

from .chat_stream import Assembly
from .contract import AnswerContext, Json, StreamTranslator
from .responses_answer import initial_response, usage_json
from .responses_over_chat import (
    answer,
    call_item,
    logprobs_of,
    reasoning_of,
    text_of,
    tool_names,
)
from .responses_stream import Events, announced_item, with_cost

_decode = msgspec.json.Decoder().decode


class _StreamTranslator:
    """Announces an item with its first fragment. Reasoning ends when the answer starts; all other items end with the
    stream."""

    __slots__ = ("_assembly", "_calls", "_closed", "_context", "_events", "_items", "_key", "_names", "_parts")

    def __init__(self, context: AnswerContext) -> None:
        self._context = context
        self._key = context.answer_id.partition("_")[2]
        self._names = tool_names(context.body)
        self._assembly = Assembly()
        self._events: Events | None = None
        self._items: dict[str, int] = {}
        self._parts: dict[str, int] = {}
        self._calls: dict[int, Json] = {}
        self._closed: set[str] = set()

    def take(self, event: Json) -> list[Json]:
        self._assembly.take(event)
        events, emitted = self._events, list[Json]()
        if events is None:
            events = self._events = Events()
            emitted += events.begin(initial_response(self._context))
        for choice in cast("list[Json]", event.get("choices") or ()):
            if choice.get("index", 0) == 0:
                self._delta(events, emitted, choice.get("delta") or {}, choice.get("logprobs"))
        return emitted

    def _delta(self, events: Events, emitted: list[Json], delta: Json, logprobs: Any) -> None:
        reasoning = f"rs_{self._key}"
        thought, item = reasoning_of(delta), {"id": reasoning, "type": "reasoning", "summary": list[Json]()}
        if thought and reasoning not in self._closed:
            self._append_text(events, emitted, item, "reasoning_text", thought)
        elif delta.get("thinking_blocks"):
            self._announce(events, emitted, item)
        text, refusal = text_of(delta.get("content")), delta.get("refusal") or ""
        calls = cast("list[Json]", delta.get("tool_calls") or ())
        if (text or refusal or calls) and reasoning in self._items and reasoning not in self._closed:
            self._close(events, emitted, self._whole()["output"][0])
        message: Json = {"id": f"msg_{self._key}", "type": "message", "role": "assistant", "content": []}
        if text:
            self._append_text(events, emitted, message, "output_text", text, logprobs_of(logprobs))
        if refusal:
            self._append_text(events, emitted, message, "refusal", refusal)
        for position, piece in enumerate(calls):
            self._call(events, emitted, piece.get("index", position), piece)

    def _append_text(
        self, events: Events, emitted: list[Json], item: Json, kind: str, text: str, logprobs: list[Json] | None = None
    ) -> None:
        """Emit a text fragment of a part; first announce its item and part if they are new."""
        index = self._announce(events, emitted, item)
        part: Json = {"type": kind, "refusal" if kind == "refusal" else "text": text}
        if kind == "output_text":
            part |= {"annotations": [], "logprobs": logprobs or []}
        at = {"item_id": item["id"], "output_index": index}
        place = self._parts.get(kind)
        if place is None:
            place = self._parts[kind] = 1 if kind == "refusal" and "output_text" in self._parts else 0
            emitted.append(events.part_added(at, place, part))
        emitted += events.delta(at, place, part)

    def _announce(self, events: Events, emitted: list[Json], item: Json) -> int:
        index = self._items.get(item["id"])
        if index is None:
            index = self._items[item["id"]] = len(self._items)
            emitted.append(events.event("output_item.added", output_index=index, item=announced_item(item)))
        return index

    def _call(self, events: Events, emitted: list[Json], place: int, piece: Json) -> None:
        function: Json = piece.get("function") or {}
        item = self._calls.get(place)
        if item is None:
            if not function.get("name"):
                raise ValueError("a tool call starts without a name")
            # The complete answer numbers calls by their order.
            item = self._calls[place] = call_item(
                {**piece, "function": function}, len(self._calls), self._key, self._names
            )
        index = self._announce(events, emitted, item)
        if item["type"] == "function_call" and function.get("arguments"):
            at = {"item_id": item["id"], "output_index": index}
            emitted += events.call_delta(at, {**item, "arguments": function["arguments"]})

    def _whole(self) -> Json:
        return answer(_decode(self._assembly.completion()), self._context)

    def _close(self, events: Events, emitted: list[Json], item: Json) -> None:
        """Emit the end of an item, or the complete item if it was not announced yet."""
        if item["id"] not in self._items:
            emitted += events.item(len(self._items), item)
            self._items[item["id"]] = len(self._items)
            return
        index = self._items[item["id"]]
        at: Json = {"item_id": item["id"], "output_index": index}
        self._closed.add(item["id"])
        for place, part in enumerate(cast("list[Json]", item.get("content") or ())):
            if part["type"] not in self._parts:
                emitted.append(events.part_added(at, place, part))
                emitted += events.delta(at, place, part)
            emitted += events.part_done(at, place, part)
        if item["type"] == "custom_tool_call":
            emitted += events.call_delta(at, item)
        if item["type"] in ("function_call", "custom_tool_call"):
            emitted.append(events.call_done(at, item))
        emitted.append(events.event("output_item.done", output_index=index, item=item))

    def end(self, cost_usd: Cost | None, usage: Usage) -> list[Json]:
        events, emitted = self._events, list[Json]()
        if events is None:
            events = Events()
            emitted += events.begin(initial_response(self._context))
        whole = self._whole()
        for item in cast("list[Json]", whole["output"]):
            if item["id"] not in self._closed:
                self._close(events, emitted, item)
        if not whole["usage"]:
            whole["usage"] = usage_json(usage)
        emitted.append(events.last(with_cost(whole, cost_usd)))
        return emitted


def stream_translator(context: AnswerContext) -> StreamTranslator:
    return _StreamTranslator(context)
