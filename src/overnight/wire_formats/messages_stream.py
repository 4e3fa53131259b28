"""Streams of Anthropic messages: assemble a message from events, and convert a message to events. Pure.

An event is *terminal* when a client could act on it: it ends a tool block, completes the tool's input, or carries the
stop reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import msgspec

from overnight.domain.json_text import BYTE_ORDER_MARK, decode_json, encode_json
from overnight.pricing.usage import (
    Cost,
    Usage,
    anthropic_usage,
    cost_fields,
)

from .chat_stream import numbers_of
from .finish_reasons import messages_reason, without_call
from .growing_json import GrowingJson, GrowingText
from .messages_repair import corrected_message

Json = dict[str, Any]
_encode = msgspec.json.Encoder().encode
_complete = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# Usage fields of a message_delta event; its counts are totals.
_DELTA_USAGE = (
    "input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens",
    "server_tool_use", "output_tokens_details",
)  # fmt: skip


def is_tool(block: Json) -> bool:
    """Whether the block is a tool call, of the client or of the provider."""
    return str(block["type"]).endswith("tool_use")


class _GrowingBlock:
    """One block under construction: its start event, and the fragments per field."""

    __slots__ = ("block", "open", "pieces")

    def __init__(self, block: Json) -> None:
        self.block = {**block, "citations": [*block["citations"]]} if block.get("citations") else block
        self.pieces: dict[str, GrowingText] = {}
        self.open = True

    def take(self, delta: Json) -> int:
        """Add a delta. Returns the number of characters in it."""
        if delta["type"] == "citations_delta":
            self.block["citations"] = citations = self.block.get("citations") or []
            citations.append(delta["citation"])
            return 0
        came = 0
        # Each string field of a delta grows, including fields of unknown delta types.
        for name, value in delta.items():
            if name == "type":
                continue
            if isinstance(value, str):
                pieces = self.pieces.get(name)
                if pieces is None:
                    pieces = self.pieces[name] = GrowingJson() if name == "partial_json" else GrowingText()
                pieces.append(value)
                came += len(value)
            else:
                self.block[name] = value
        return came

    def completes(self, delta: Json) -> bool:
        """Whether the delta completes the tool's input."""
        piece: str = delta.get("partial_json") or ""
        text = self.pieces.get("partial_json")
        return bool(piece) and isinstance(text, GrowingJson) and text.ends_with(piece)

    def completed(self) -> Json:
        block = dict(self.block)
        for name, pieces in self.pieces.items():
            if name != "partial_json":
                block[name] = str(block.get(name) or "") + "".join(pieces)
        text = "".join(self.pieces.get("partial_json", ()))
        if text.strip():
            block["input"] = msgspec.Raw(text.encode()) if _is_object(text) else {"unparsed_input": text}
        return block


class Assembly:
    """Add decoded events in order. `characters` counts received characters; `usage` is the most recent report."""

    __slots__ = ("_blocks", "_message_fields", "_stopped", "characters", "is_ended", "is_odd", "usage")

    def __init__(self) -> None:
        self._message_fields: Json = {}
        self._blocks: dict[int, _GrowingBlock] = {}
        self._stopped = self.is_ended = self.is_odd = False
        self.characters = 0
        self.usage: Json | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the stop reason arrived and all blocks ended."""
        return self._stopped and not any(each.open for each in self._blocks.values())

    @property
    def has_output(self) -> bool:
        return (
            bool(self.characters)
            or self._stopped
            or any(each.block["type"] != "text" for each in self._blocks.values())
        )

    def closing_events(self) -> list[Json]:
        """None: `MessagesRepair` completes a stream whose last event is known."""
        return []

    def take(self, event: Json) -> bool:
        """Add an event. Returns True if it is terminal. Unknown event types are ignored.

        Raises:
            TypeError, ValueError, KeyError, AttributeError: the event has an unknown shape.
        """
        kind = event["type"]
        if not isinstance(kind, str):
            raise TypeError("the type of an event must be a string")
        match kind:
            case "content_block_delta":
                growing = self._blocks[event["index"]]
                delta: Json = event["delta"]
                self.characters += growing.take(delta)
                return growing.completes(delta)
            case "content_block_start":
                self._blocks[event["index"]] = _GrowingBlock(dict(event["content_block"]))
            case "content_block_stop":
                growing = self._blocks[event["index"]]
                growing.open = False
                return is_tool(growing.block)
            case "message_start":
                message: Json = event["message"]
                self._message_fields = {
                    name: value for name, value in message.items() if name not in ("content", "usage")
                }
                self.usage = dict(message.get("usage") or {})
                self.usage.pop("output_tokens", None)  # the count at the start, not the final one
            case "message_delta":
                return self._take_end(event)
            case _:
                pass
        return False

    def _take_end(self, event: Json) -> bool:
        delta: Json = event["delta"]
        if reason := delta.get("stop_reason"):
            delta["stop_reason"] = self._reason(reason)
        further = {name: value for name, value in event.items() if name not in ("type", "delta", "usage")}
        self._message_fields |= {**delta, **further}
        reported: Json = event.get("usage") or {}
        self.usage = {**(self.usage or {}), **{name: value for name, value in reported.items() if value is not None}}
        if not delta.get("stop_reason"):
            return False
        self._stopped = True
        return True

    def _reason(self, given: Any) -> str:
        """The stop reason in the words of the format. Raises NoAnswer."""
        reason = messages_reason(given)
        if reason == "tool_use" and not any(is_tool(each.block) for each in self._blocks.values()):
            raise without_call(reason)
        return reason

    def reported_usage(self) -> Usage | None:
        return anthropic_usage(self.usage)

    def completion(self) -> bytes:
        """The assembled message, as JSON."""
        content = [self._blocks[index].completed() for index in sorted(self._blocks)]
        return encode_json({**self._message_fields, "content": content, "usage": self.usage or {}}, exact=self.is_odd)


def _is_object(text: str) -> bool:
    try:
        _complete(text)
    except msgspec.DecodeError:
        return False
    return True


class _Block(msgspec.Struct):
    type: str
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _Content(msgspec.Struct):
    content: list[msgspec.Raw]


_content = msgspec.json.Decoder(_Content).decode
_block = msgspec.json.Decoder(_Block).decode


def decode_answer(message: bytes) -> Any:
    """Decode a complete message, with the `input` of tool calls as JSON text.

    Other formats carry it as text, and a client must receive the same text with and without streaming.
    """
    whole: Any = decode_json(message)
    if not isinstance(whole, dict):
        return whole
    found = corrected_whole(cast("Json", whole))
    if isinstance(blocks := found.get("content"), list) and any("input" in each for each in blocks):  # pyright: ignore[reportUnknownVariableType]
        raws = _raw_inputs(message, len(cast("list[Any]", blocks)))
        for block, raw in zip(cast("list[Json]", blocks), raws, strict=True):
            if "input" in block:
                block["input"] = raw if raw is not None else encode_json(block["input"] or {}).decode()
    return found


def _raw_inputs(message: bytes, count: int) -> list[str | None]:
    """The inputs of the blocks as they were sent; None for each where the message is no strict JSON."""
    try:
        return [bytes(_block(raw).input).decode() for raw in _content(message.removeprefix(BYTE_ORDER_MARK)).content]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return [None] * count


def corrected_whole(message: Json) -> Json:
    """A whole message of a loose server as it should be. Raises NoAnswer if the provider broke it off."""
    message = corrected_message(message)
    usage: Any = message.get("usage")
    if isinstance(usage, dict) and any(type(count) is str for count in cast("Json", usage).values()):
        message = {**message, "usage": numbers_of(cast("Json", usage))}
    reason = message.get("stop_reason")
    if not reason or not isinstance(blocks := message.get("content"), list):
        return message
    found = messages_reason(reason)
    if found == "tool_use" and not any(is_tool(each) for each in cast("list[Json]", blocks)):
        failure = without_call(found)
        failure.error["usage"] = message.get("usage")
        raise failure
    return message if found == reason else {**message, "stop_reason": found}


def stream_events(message: bytes, cost_usd: Cost | None) -> Iterator[bytes]:
    """Convert a recorded message to stream events. With `cost_usd`, the usage contains the cost."""
    for event in events_of(decode_json(message), cost_usd):
        yield encode(event)


def events_of(message: Json, cost_usd: Cost | None = None) -> Iterator[Json]:
    usage: Json = message.get("usage") or {}
    ended = {name: message.get(name) for name in ("stop_reason", "stop_sequence")}
    if message.get("stop_details"):
        ended["stop_details"] = message["stop_details"]
    started: Json = {**message, "content": [], **dict.fromkeys(ended), "usage": {**usage, "output_tokens": 0}}
    yield {"type": "message_start", "message": started}
    for index, block in enumerate(cast("list[Json]", message["content"])):
        start, deltas = _apart(block)
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    reported = {name: usage[name] for name in _DELTA_USAGE if usage.get(name) is not None}
    reported.setdefault("output_tokens", None)  # 0 would report a count that the provider did not send
    if cost_usd is not None:
        reported |= cost_fields(cost_usd)
    yield {"type": "message_delta", "delta": ended, "usage": reported}
    yield {"type": "message_stop"}


def _apart(block: Json) -> tuple[Json, list[Json]]:
    """The start event of a block, and its deltas. A block without deltas is sent complete."""
    kind = block["type"]
    if kind == "text":
        deltas = [{"type": "text_delta", "text": block["text"]}] if block["text"] else []
        cited = [{"type": "citations_delta", "citation": each} for each in block.get("citations") or ()]
        return {**block, "text": "", **({"citations": []} if cited else {})}, deltas + cited
    if kind == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": block["thinking"]}] if block["thinking"] else []
        deltas.append({"type": "signature_delta", "signature": block.get("signature") or ""})
        return {**block, "thinking": "", "signature": ""}, deltas
    if is_tool(block):
        arguments = _encode(block.get("input") or {}).decode()
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": arguments}]
    return block, []


def encode(event: Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), encode_json(event))
