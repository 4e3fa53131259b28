"""Convert chat chunks to events of a Responses stream.

The items come in the order of the stream, in the events as in the final response and in the record.
`responses_over_chat.answer` builds the rest of the response.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from overnight.domain.json_text import decode_json
from overnight.pricing.usage import Cost, Usage

from .chat_stream import Assembly
from .contract import AnswerContext, Json, StreamTranslator
from .ordered_parts import OrderedParts, Part, Step
from .responses_answer import initial_response, usage_json
from .responses_over_chat import (
    answer,
    call_item,
    logprobs_of,
    message_item,
    reasoning_item,
    text_part,
    tool_names,
)
from .responses_stream import Events, announced_item, with_cost


class _StreamTranslator:
    """Each part of the choice becomes an item; text and a refusal that follows it share one."""

    __slots__ = (
        "_assembly",
        "_context",
        "_events",
        "_indexes",
        "_item_ids",
        "_items_begun",
        "_key",
        "_message_numbers",
        "_names",
        "_parts",
    )

    def __init__(self, context: AnswerContext) -> None:
        self._context = context
        self._key = context.answer_id.partition("_")[2]
        self._names = tool_names(context.body)
        self._assembly = Assembly()
        self._events: Events | None = None
        self._indexes: dict[Part, int] = {}
        self._message_numbers: dict[Part, int] = {}
        self._item_ids: dict[Part, str] = {}
        self._items_begun = 0
        self._parts = OrderedParts(drops_blank=False)

    def take(self, event: Json) -> list[Json]:
        self._assembly.take(event)
        emitted = self._begin()
        for choice in cast("list[Json]", event.get("choices") or ()):
            if choice.get("index", 0) == 0 and (delta := choice.get("delta")):
                given = choice.get("logprobs")
                if not given and (part := self._parts.grow_text(delta)) is not None:
                    self._piece(emitted, part, delta["content"], [])
                else:
                    self._emit(emitted, self._parts.take(delta), logprobs_of(given))
        return emitted

    def arranged(self, answer: Json) -> Json:
        return {**answer, "output": self._output(answer["status"])}

    def end(self, cost_usd: Cost | None, usage: Usage) -> list[Json]:
        emitted = self._begin()
        whole = self.arranged(answer(decode_json(self._assembly.completion()), self._context))
        self._emit(emitted, self._parts.end(), [], whole["output"])
        if not whole["usage"]:
            whole["usage"] = usage_json(usage)
        emitted.append(self._present().last(with_cost(whole, cost_usd)))
        return emitted

    def _begin(self) -> list[Json]:
        if self._events is not None:
            return []
        self._events = Events()
        return self._events.begin(initial_response(self._context))

    def _present(self) -> Events:
        if self._events is None:
            raise RuntimeError("the stream has not begun")
        return self._events

    # ── items ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _output(self, status: str) -> list[Json]:
        output = [self._item(part) for part in self._parts.shown() if self._owner(part) is part]
        if status == "incomplete" and output and "status" in output[-1]:
            output[-1]["status"] = "incomplete"
        return output

    def _neighbour(self, part: Part, distance: int) -> Part | None:
        parts = self._parts.parts
        at = part.at + distance
        return parts[at] if 0 <= at < len(parts) else None

    def _owner(self, part: Part) -> Part:
        """The part that begins the item: a refusal shares the item of the text before it."""
        before = self._neighbour(part, -1) if part.kind == "refusal" else None
        return before if before is not None and before.kind == "text" else part

    def _refusal_after(self, part: Part) -> Part | None:
        after = self._neighbour(part, 1) if part.kind == "text" else None
        return after if after is not None and after.kind == "refusal" else None

    def _item(self, part: Part) -> Json:
        """The whole item of a part."""
        if part.kind == "thinking":
            return reasoning_item(self._key, part.number, part.text(), part.details.get("thinking_blocks") or [])
        if part.kind == "call":
            function = {"name": part.name, "arguments": part.text()}
            return call_item({"id": part.call_id, "function": function}, part.number, self._key, self._names)
        number = self._message_numbers.setdefault(part, len(self._message_numbers))
        parts = [part, *([refused] if (refused := self._refusal_after(part)) else [])]
        return message_item(self._key, number, [self._content(each) for each in parts])

    def _content(self, part: Part) -> Json:
        if part.kind == "refusal":
            return {"type": "refusal", "refusal": part.text()}
        return text_part(part.text(), part.details.get("annotations") or [], part.details.get("logprobs") or [])

    def _emit(
        self, emitted: list[Json], steps: Iterator[Step], logprobs: list[Json], final: list[Json] | None = None
    ) -> None:
        """Emit the steps. `final`: the items of the final response, for those that end with it."""
        for step, part, piece in steps:
            if step == "open":
                self._open(emitted, part)
            elif step == "piece":
                if part.kind == "text" and logprobs:
                    part.details.setdefault("logprobs", []).extend(logprobs)
                self._piece(emitted, part, piece, logprobs)
            else:
                index = self._indexes[part]
                self._close(emitted, index, part, self._item(self._owner(part)) if final is None else final[index])

    def _open(self, emitted: list[Json], part: Part) -> None:
        events, owner = self._present(), self._owner(part)
        if owner is part:
            index = self._indexes[part] = self._items_begun
            self._items_begun += 1
            item = self._item(part)
            emitted.append(events.event("output_item.added", output_index=index, item=announced_item(item)))
            self._item_ids[part] = item["id"]
        else:
            self._indexes[part], self._item_ids[part] = self._indexes[owner], self._item_ids[owner]
        if part.kind in ("text", "refusal"):
            emitted.append(events.part_added(self._at(part), self._place(part), _EMPTY[part.kind]))

    def _at(self, part: Part) -> Json:
        return {"item_id": self._item_ids[part], "output_index": self._indexes[part]}

    def _place(self, part: Part) -> int:
        """The place of a part in the content of its item."""
        return 1 if part.kind == "refusal" and self._owner(part) is not part else 0

    def _piece(self, emitted: list[Json], part: Part, piece: str, logprobs: list[Json]) -> None:
        events, at = self._present(), self._at(part)
        if part.kind == "call":
            if part.name not in self._names.custom:  # the input of a custom tool is inside of the arguments
                emitted += events.call_delta(at, {"type": "function_call", "arguments": piece})
            return
        if part.kind == "thinking" and "begun" not in part.details:  # reasoning may have no text
            part.details["begun"] = []
            emitted.append(events.part_added(at, 0, _EMPTY[part.kind]))
        field = "refusal" if part.kind == "refusal" else "text"
        more: Json = {"logprobs": logprobs} if part.kind == "text" else {}
        place = self._place(part) if part.kind == "refusal" else 0
        emitted += events.delta(at, place, {**_EMPTY[part.kind], field: piece, **more})

    def _close(self, emitted: list[Json], index: int, part: Part, item: Json) -> None:
        events, at = self._present(), self._at(part)
        if part.kind == "call":
            if item["type"] == "custom_tool_call" or not part.text().strip():
                emitted += events.call_delta(at, item)
            emitted.append(events.call_done(at, item))
        elif item.get("content"):
            place = self._place(part)
            emitted += events.part_done(at, place, item["content"][place])
        if self._refusal_after(part) is None:
            emitted.append(events.event("output_item.done", output_index=index, item=item))


_EMPTY: dict[str, Json] = {
    "text": {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
    "refusal": {"type": "refusal", "refusal": ""},
    "thinking": {"type": "reasoning_text", "text": ""},
}
"""The content part that each kind begins with."""


def stream_translator(context: AnswerContext) -> StreamTranslator:
    return _StreamTranslator(context)
