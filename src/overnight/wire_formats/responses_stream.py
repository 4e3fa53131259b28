"""Events of a Responses stream: assemble a response from events, and convert a response to events. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from overnight.domain.json_text import decode_json, encode_json
from overnight.pricing.usage import Cost, cost_fields

from .contract import Json
from .growing_json import GrowingJson, GrowingText
from .sse import encode_event

_LAST = {"completed": "response.completed", "incomplete": "response.incomplete"}
FINAL_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed"})
"""The events that end a stream."""
_CALLS = frozenset({"function_call", "custom_tool_call"})
_ARGUMENTS = "response.function_call_arguments.delta"
_ARGUMENTS_DONE = frozenset({"response.function_call_arguments.done", "response.custom_tool_call_input.done"})
_CLIENT_ACTIONS = _CALLS | {
    "computer_call",
    "local_shell_call",
    "shell_call",
    "apply_patch_call",
    "tool_search_call",
    "mcp_approval_request",
}
"""Items that ask the client to act. The provider executes all other calls."""


def encode(event: Json) -> bytes:
    return encode_event(encode_json(event), event["type"])


class Assembly:
    """The assembled response of a target that accepts Responses. The final event carries the complete response; where its
    output is empty, the items of the stream take its place."""

    __slots__ = ("_answer", "_arguments", "_begun", "_items", "_texts", "characters", "has_output", "is_odd", "usage")

    def __init__(self) -> None:
        self._answer: Json | None = None
        self._begun: Json = {}
        self._arguments: dict[int, GrowingJson] = {}
        self._items: dict[int, Json] = {}
        self._texts: dict[int, GrowingText] = {}
        self.characters = 0
        self.has_output = self.is_odd = False
        self.usage: Json | None = None

    @property
    def is_complete(self) -> bool:
        return self._answer is not None

    @property
    def is_ended(self) -> bool:
        return False

    def take(self, event: Json) -> bool:
        kind: str = event["type"]
        if kind.endswith(".delta"):
            return self._take_delta(kind, event)
        if kind in FINAL_EVENTS:
            return self._take_end(kind, event)
        if kind.startswith("response.output_item."):
            self.has_output = True
            item: Json = event["item"]
            if kind == "response.output_item.done":
                self._items[event["output_index"]] = item
                return item["type"] in _CLIENT_ACTIONS
            return False
        if kind == "response.created":
            self._begun = event["response"]
        return kind in _ARGUMENTS_DONE

    def _take_delta(self, kind: str, event: Json) -> bool:
        self.has_output = True
        piece: Any = event["delta"]
        if not isinstance(piece, str):
            return False
        self.characters += len(piece)
        if kind == _ARGUMENTS:
            pieces = self._arguments.setdefault(event["output_index"], GrowingJson())
            pieces.append(piece)
            return bool(piece) and pieces.ends_with(piece)
        if kind == "response.output_text.delta":
            self._texts.setdefault(event.get("output_index") or 0, GrowingText()).append(piece)
        return False

    def _take_end(self, kind: str, event: Json) -> bool:
        answer: Json = event["response"]
        if isinstance(answer.get("usage"), dict):
            self.usage = answer["usage"]
        if kind != "response.failed":
            output: Any = answer.get("output")
            if not output:
                answer["output"] = output = self._streamed_output()
            if not isinstance(output, list):
                raise TypeError("the final response has no output")
            self._answer = answer
        return True

    def _streamed_output(self) -> list[Json]:
        """The items of the stream in order. A text whose item never came complete becomes a message."""
        items = dict(self._items)
        for index, text in self._texts.items():
            if index not in items:
                part: Json = {"type": "output_text", "text": "".join(text), "annotations": [], "logprobs": []}
                head: Json = {"id": f"msg_{index}", "type": "message", "role": "assistant", "status": "completed"}
                items[index] = {**head, "content": [part]}
        return [items[index] for index in sorted(items)]

    def closing_events(self) -> list[Json]:
        """The final event of a stream that told its end otherwise, if the output is complete."""
        output = self._streamed_output()
        if not output or any(index not in self._items for index in self._arguments):
            return []
        response: Json = {"object": "response", **self._begun, "status": "completed", "output": output}
        return [{"type": "response.completed", "response": response}]

    def completion(self) -> bytes:
        return encode_json(self._answer, exact=self.is_odd)


class Events:
    """Stream events with consecutive sequence numbers."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0

    def event(self, kind: str, **fields: Any) -> Json:
        number, self._next = self._next, self._next + 1
        return {"type": f"response.{kind}", "sequence_number": number, **fields}

    def begin(self, answer: Json) -> list[Json]:
        """The events that announce the response before its first output."""
        empty: Json = {**answer, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
        empty.pop("completed_at", None)
        return [self.event("created", response=empty), self.event("in_progress", response=empty)]

    def last(self, answer: Json) -> Json:
        return self.event(_LAST[answer["status"]].removeprefix("response."), response=answer)

    # ── a complete item
    # ──────────────────────────────────────────────────────────────────────────────────────────────

    def item(self, index: int, item: Json) -> Iterator[Json]:
        """All events of one complete item."""
        at: Json = {"item_id": item.get("id"), "output_index": index}
        kind = item.get("type")
        yield self.event("output_item.added", output_index=index, item=announced_item(item))
        if kind in ("message", "reasoning"):
            for place, part in enumerate(cast("list[Json]", item.get("summary") or ())):
                yield from self._summary({**at, "summary_index": place}, part)
            for place, part in enumerate(cast("list[Json]", item.get("content") or ())):
                if part.get("type") not in _FIELDS:  # a later kind of content, which is sent complete
                    yield self.event("content_part.added", **at, content_index=place, part=part)
                    yield self.event("content_part.done", **at, content_index=place, part=part)
                    continue
                yield self.part_added(at, place, part)
                yield from self.delta(at, place, part)
                yield from self.part_done(at, place, part)
        elif kind in _CALLS:
            yield from self.call_delta(at, item)
            yield self.call_done(at, item)
        yield self.event("output_item.done", output_index=index, item=item)

    def _summary(self, at: Json, part: Json) -> Iterator[Json]:
        yield self.event("reasoning_summary_part.added", **at, part={**part, "text": ""})
        yield self.event("reasoning_summary_text.delta", **at, delta=part["text"])
        yield self.event("reasoning_summary_text.done", **at, text=part["text"])
        yield self.event("reasoning_summary_part.done", **at, part=part)

    # ── parts of an item
    # ─────────────────────────────────────────────────────────────────────────────────────────────

    def part_added(self, at: Json, place: int, part: Json) -> Json:
        field = _FIELDS[part["type"]]
        empty: Json = {**part, field: ""}
        if "annotations" in part:
            empty["annotations"] = []
        if "logprobs" in part:
            empty["logprobs"] = []
        return self.event("content_part.added", **at, content_index=place, part=empty)

    def delta(self, at: Json, place: int, part: Json) -> Iterator[Json]:
        """The delta events of one content part, or of a fragment of it."""
        kind = part["type"]
        if text := part[_FIELDS[kind]]:
            more: Json = {"logprobs": part.get("logprobs") or []} if kind == "output_text" else {}
            yield self.event(f"{kind}.delta", **at, content_index=place, delta=text, **more)

    def part_done(self, at: Json, place: int, part: Json) -> Iterator[Json]:
        kind = part["type"]
        field = _FIELDS[kind]
        more: Json = {"logprobs": part.get("logprobs") or []} if kind == "output_text" else {}
        for number, annotation in enumerate(cast("list[Json]", part.get("annotations") or ())):
            numbered = {"annotation_index": number, "annotation": annotation}
            yield self.event("output_text.annotation.added", **at, content_index=place, **numbered)
        yield self.event(f"{kind}.done", **at, content_index=place, **{field: part[field]}, **more)
        yield self.event("content_part.done", **at, content_index=place, part=part)

    def call_delta(self, at: Json, item: Json) -> Iterator[Json]:
        name, field = _CALL_FIELDS[item["type"]]
        if item[field]:
            yield self.event(f"{name}.delta", **at, delta=item[field])

    def call_done(self, at: Json, item: Json) -> Json:
        name, field = _CALL_FIELDS[item["type"]]
        more: Json = {"name": item["name"]} if field == "arguments" else {}
        return self.event(f"{name}.done", **at, **{field: item[field]}, **more)


_FIELDS = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text"}
_CALL_FIELDS = {
    "function_call": ("function_call_arguments", "arguments"),
    "custom_tool_call": ("custom_tool_call_input", "input"),
}


def announced_item(item: Json) -> Json:
    """The item as it is announced, without its content."""
    kind = item.get("type")
    if kind == "message":
        return {**item, "content": [], "status": "in_progress"}
    if kind == "reasoning":
        bare = {name: value for name, value in item.items() if name not in ("content", "encrypted_content", "status")}
        return {**bare, "summary": []}
    if kind in _CALLS:
        empty: Json = {**item, _CALL_FIELDS[kind][1]: ""}
        return {**empty, "status": "in_progress"} if "status" in item else empty
    return item


def stream_events(body: bytes, cost_usd: Cost | None) -> Iterator[bytes]:
    """Convert a recorded response to stream events. With `cost_usd`, the usage of the final event contains the cost."""
    answer: Json = decode_json(body)
    events = Events()
    for event in events.begin(answer):
        yield encode(event)
    for index, item in enumerate(cast("list[Json]", answer.get("output") or ())):
        for event in events.item(index, item):
            yield encode(event)
    yield encode(events.last(with_cost(answer, cost_usd)))


def with_cost(answer: Json, cost_usd: Cost | None) -> Json:
    if cost_usd is None or not answer.get("usage") or not isinstance(answer["usage"], dict):
        return answer
    return {**answer, "usage": {**answer["usage"], **cost_fields(cost_usd)}}
