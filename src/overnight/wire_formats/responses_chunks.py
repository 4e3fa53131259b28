"""Chunks of a chat completion → events of a Responses stream. The whole answer that ends it is the one that is recorded: both
are made by `responses_over_chat.answer`."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from overnight.pricing.usage import Cost, Usage

from .chat_stream import Assembly
from .contract import Asked, Json, Pieces
from .responses_answer import begun, told_usage
from .responses_over_chat import (
    answer,
    call_item,
    custom_names,
    logprobs_of,
    reasoning_of,
    text_of,
)
from .responses_stream import Events, emptied, with_cost

_decode = msgspec.json.Decoder().decode


class _Pieces:
    """An item is announced with its first piece. Reasoning is closed when the answer begins, everything else at the end."""

    __slots__ = ("_asked", "_assembly", "_calls", "_closed", "_custom", "_events", "_items", "_key", "_parts")

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._key = asked.answer_id.partition("_")[2]
        self._custom = custom_names(asked.body)
        self._assembly = Assembly()
        self._events: Events | None = None
        self._items: dict[str, int] = {}
        self._parts: dict[str, int] = {}
        self._calls: dict[int, Json] = {}
        self._closed: set[str] = set()

    def take(self, event: Json) -> list[Json]:
        self._assembly.take(event)
        events, told = self._events, list[Json]()
        if events is None:
            events = self._events = Events()
            told += events.begin(begun(self._asked))
        for choice in cast("list[Json]", event.get("choices") or ()):
            if choice.get("index", 0) == 0:
                self._delta(events, told, choice.get("delta") or {}, choice.get("logprobs"))
        return told

    def _delta(self, events: Events, told: list[Json], delta: Json, logprobs: Any) -> None:
        reasoning = f"rs_{self._key}"
        thought, item = reasoning_of(delta), {"id": reasoning, "type": "reasoning", "summary": list[Json]()}
        if thought and reasoning not in self._closed:
            self._say(events, told, item, "reasoning_text", thought)
        elif delta.get("thinking_blocks"):
            self._announce(events, told, item)
        text, refusal = text_of(delta.get("content")), delta.get("refusal") or ""
        calls = cast("list[Json]", delta.get("tool_calls") or ())
        if (text or refusal or calls) and reasoning in self._items and reasoning not in self._closed:
            self._close(events, told, self._whole()["output"][0])
        message: Json = {"id": f"msg_{self._key}", "type": "message", "role": "assistant", "content": []}
        if text:
            self._say(events, told, message, "output_text", text, logprobs_of(logprobs))
        if refusal:
            self._say(events, told, message, "refusal", refusal)
        for position, piece in enumerate(calls):
            self._call(events, told, piece.get("index", position), piece)

    def _say(
        self, events: Events, told: list[Json], item: Json, kind: str, said: str, logprobs: list[Json] | None = None
    ) -> None:
        """A piece of a part of an item; both announced where they are new."""
        index = self._announce(events, told, item)
        part: Json = {"type": kind, "refusal" if kind == "refusal" else "text": said}
        if kind == "output_text":
            part |= {"annotations": [], "logprobs": logprobs or []}
        at = {"item_id": item["id"], "output_index": index}
        place = self._parts.get(kind)
        if place is None:
            place = self._parts[kind] = 1 if kind == "refusal" and "output_text" in self._parts else 0
            told.append(events.part_added(at, place, part))
        told += events.delta(at, place, part)

    def _announce(self, events: Events, told: list[Json], item: Json) -> int:
        index = self._items.get(item["id"])
        if index is None:
            index = self._items[item["id"]] = len(self._items)
            told.append(events.event("output_item.added", output_index=index, item=emptied(item)))
        return index

    def _call(self, events: Events, told: list[Json], place: int, piece: Json) -> None:
        function: Json = piece.get("function") or {}
        item = self._calls.get(place)
        if item is None:
            if not function.get("name"):
                raise ValueError("a tool call begins without a name")
            # In the whole answer, calls are counted by their order.
            item = self._calls[place] = call_item(
                {**piece, "function": function}, len(self._calls), self._key, self._custom
            )
        index = self._announce(events, told, item)
        if item["type"] == "function_call" and function.get("arguments"):
            at = {"item_id": item["id"], "output_index": index}
            told += events.call_delta(at, {**item, "arguments": function["arguments"]})

    def _whole(self) -> Json:
        return answer(_decode(self._assembly.completion()), self._asked)

    def _close(self, events: Events, told: list[Json], item: Json) -> None:
        """Say that an item is complete; all of it, where nothing was said of it yet."""
        if item["id"] not in self._items:
            told += events.item(len(self._items), item)
            self._items[item["id"]] = len(self._items)
            return
        index = self._items[item["id"]]
        at: Json = {"item_id": item["id"], "output_index": index}
        self._closed.add(item["id"])
        for place, part in enumerate(cast("list[Json]", item.get("content") or ())):
            if part["type"] not in self._parts:
                told.append(events.part_added(at, place, part))
                told += events.delta(at, place, part)
            told += events.part_done(at, place, part)
        if item["type"] == "custom_tool_call":
            told += events.call_delta(at, item)
        if item["type"] in ("function_call", "custom_tool_call"):
            told.append(events.call_done(at, item))
        told.append(events.event("output_item.done", output_index=index, item=item))

    def end(self, cost_usd: Cost | None, usage: Usage) -> list[Json]:
        events, told = self._events, list[Json]()
        if events is None:
            events = Events()
            told += events.begin(begun(self._asked))
        whole = self._whole()
        for item in cast("list[Json]", whole["output"]):
            if item["id"] not in self._closed:
                self._close(events, told, item)
        if not whole["usage"]:
            whole["usage"] = told_usage(usage)
        told.append(events.last(with_cost(whole, cost_usd)))
        return told


def pieces(asked: Asked) -> Pieces:
    return _Pieces(asked)
