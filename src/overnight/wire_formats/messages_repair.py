"""Put right the events of loose messages servers: blocks without a start or a stop, a start without content, an end without
a stop reason. Events of Anthropic itself pass as they are.
"""

from __future__ import annotations

from typing import Any, cast

from .lenient_json import Json, dict_of, list_of, text_of

_FIELDS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "tool_use"}


class MessagesRepair:
    """The events of one stream. `take` returns None for an event that needs no correction."""

    __slots__ = ("_has_call", "_held", "_is_open", "_is_started", "_last", "_stopped")

    def __init__(self) -> None:
        self._is_started = self._is_open = self._has_call = self._stopped = False
        self._last: Any = -1
        """The index of the last block; `_is_open`: whether it has not ended."""
        self._held: Json | None = None
        """A `message_delta` without a stop reason, until it is clear whether it is the last one."""

    def take(self, event: Json) -> list[Json] | None:
        """The events to use in place of `event`; None if it is as it should be."""
        if self._held is not None:
            return self._after_held(event)
        match event.get("type"):
            case "content_block_delta":
                return None if self._is_open and event.get("index") == self._last else self._delta(event)
            case "content_block_start":
                return self._start(event)
            case "content_block_stop":
                return self._stop(event)
            case "message_start":
                self._is_started = True
                message: Any = event.get("message")
                return None if _is_usual(message) else [{**event, "message": _completed(dict_of(message))}]
            case "message_delta" if not dict_of(event.get("delta")).get("stop_reason"):
                self._held = event
                return self._closed()
            case "message_delta":
                self._stopped = True
                return [*self._closed(), event] if self._is_open else None
            case "message_stop" if not self._stopped and self._is_started:
                self._stopped = True
                return [*self._closed(), self._reason({"type": "message_delta", "delta": {}}), event]
            case _:
                return None

    def _after_held(self, event: Json) -> list[Json]:
        held, self._held = self._held, None
        if held is not None and event.get("type") == "message_stop":
            self._stopped = True
            return [self._reason(held), event]
        found = self.take(event)
        return [*([held] if held else []), *([event] if found is None else found)]

    def _reason(self, event: Json) -> Json:
        reason = "tool_use" if self._has_call else "end_turn"
        return {**event, "delta": {"stop_sequence": None, **dict_of(event.get("delta")), "stop_reason": reason}}

    def _closed(self) -> list[Json]:
        """The end of the open block, if any."""
        if not self._is_open:
            return []
        self._is_open = False
        return [{"type": "content_block_stop", "index": self._last}]

    def _start(self, event: Json) -> list[Json] | None:
        before = self._closed()
        block = dict_of(event.get("content_block"))
        self._last, self._is_open = event.get("index"), True
        kind = text_of(block.get("type"))
        self._has_call |= kind == "tool_use"
        defaults: Json = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}.get(kind, {})
        if kind.endswith("tool_use"):
            defaults = {"input": {}}
        missing = {name: value for name, value in defaults.items() if block.get(name) is None}
        if missing and kind != "thinking":
            event = {**event, "content_block": {**block, **missing}}
        elif missing:
            event = {**event, "content_block": {**missing, **block}}
        elif not before:
            return None
        return [*before, event]

    def _delta(self, event: Json) -> list[Json] | None:
        """A delta outside of the open block."""
        kind = _FIELDS.get(text_of(dict_of(event.get("delta")).get("type")))
        index = event.get("index")
        if kind in (None, "tool_use") or not isinstance(index, int) or index <= self._last:
            return None  # unknown, without a name, or of an earlier block, which the assembly judges
        before = self._closed()
        self._last, self._is_open = index, True
        empty: Json = {"thinking": "", "signature": ""} if kind == "thinking" else {"text": ""}
        start: Json = {"type": "content_block_start", "index": index, "content_block": {"type": kind, **empty}}
        return [*before, start, event]

    def _stop(self, event: Json) -> list[Json] | None:
        if self._is_open and event.get("index") == self._last:
            self._is_open = False
            return None
        return [] if event.get("index") == self._last else None


def _is_usual(message: Any) -> bool:
    if not isinstance(message, dict):
        return False
    fields = cast("Json", message)
    return isinstance(fields.get("content"), list) and "role" in fields and "type" in fields


def _completed(message: Json) -> Json:
    defaults: Json = {"type": "message", "role": "assistant", "stop_reason": None, "stop_sequence": None}
    return {**defaults, **message, "content": list_of(message.get("content"))}


def corrected_message(message: Json) -> Json:
    """A whole message with its content as a list."""
    if isinstance(message.get("content"), list) or not message.get("stop_reason"):
        return message
    text = text_of(message.get("content"))
    return {**_completed(message), "content": [{"type": "text", "text": text}] if text else []}
