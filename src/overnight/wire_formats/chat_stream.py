"""Chat streams: assemble a completion from chunks, and convert a completion to chunks. Pure.

A chunk is *terminal* when a client could act on it: it completes the arguments of a tool call, or carries the finish
reason. The stream withholds a terminal chunk and everything after it until the call is durable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import msgspec

from overnight.pricing.usage import Cost, cost_fields

from .sse import DONE

Json = dict[str, Any]
_encode = msgspec.json.Encoder().encode
_complete = msgspec.json.Decoder(msgspec.Raw).decode
# Fields that some providers send once and others with every chunk.
_ONCE = frozenset({"role", "id", "type", "name"})
_CONTENT_FIELDS = ("content", "refusal", "reasoning_content", "reasoning")


class _Text(list[str]):
    """Growing text, joined once at the end."""

    __slots__ = ()


class _Calls:
    """The tool calls of a choice in the order of their start, and the assignment of fragments to calls.

    Some servers give all calls the same index, or none. Then a new call starts with a new id, or with a name after
    complete arguments.
    """

    __slots__ = ("_ids", "_latest", "calls_in_order")

    def __init__(self) -> None:
        self.calls_in_order: list[Json] = []
        self._ids: dict[tuple[int, str], int] = {}
        self._latest: dict[int, int] = {}

    def place(self, part: Json, position: int) -> int:
        """The position of the call that a fragment belongs to. A fragment that starts a call gets a new position."""
        index: int | None = part.get("index")
        given = position if index is None else index
        call_id: str | None = part.get("id")
        place = self._ids.get((given, call_id)) if call_id else None
        if place is None:
            place = self._latest.get(given)
            if place is None or _begins_another(self.calls_in_order[place], part):
                place = len(self.calls_in_order)
                self.calls_in_order.append({})
            if call_id:
                self._ids[given, call_id] = place
        self._latest[given] = place
        return place


class Assembly:
    """Add decoded chunks in order. `characters` counts received characters; `usage` is the most recent report."""

    __slots__ = ("_called", "_choices", "_finished", "_message_fields", "characters", "usage")

    def __init__(self) -> None:
        self._message_fields: Json = {}
        self._choices: dict[int, Json] = {}
        self._finished: set[int] = set()
        self._called = False
        self.characters = 0
        self.usage: Json | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every choice has a finish reason."""
        return bool(self._finished) and len(self._finished) == len(self._choices)

    def take(self, event: Json) -> bool:
        """Add an event. Returns True if it is terminal. Sets the `index` of each tool call fragment to the position of
        its call.

        Raises:
            TypeError, ValueError, KeyError, AttributeError: the event has an unknown shape.
        """
        if not self._message_fields:
            self._message_fields = {
                key: value for key, value in event.items() if key not in ("choices", "usage", "object")
            }
        if isinstance(event.get("usage"), dict):
            self.usage = event["usage"]
        is_terminal = False
        for choice in cast("list[Json]", event.get("choices") or ()):
            index: int = choice.get("index") or 0
            held = self._choices.get(index)
            if held is None:
                if not isinstance(index, int):  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise TypeError("the index of a choice must be a number")
                held = self._choices[index] = {"index": index, "message": {}, "logprobs": None, "finish_reason": None}
            delta = choice.get("delta")
            if delta:
                is_terminal |= self._merge(held["message"], delta)
            logprobs = choice.get("logprobs")
            if logprobs:
                held["logprobs"] = _joined_logprobs(held["logprobs"], logprobs)
            reason = choice.get("finish_reason")
            if reason:
                held["finish_reason"] = reason
                self._finished.add(index)
                is_terminal = True
        return is_terminal

    def _merge(self, message: Json, delta: Json) -> bool:
        # Text after a call ends the call with its present arguments.
        is_terminal = self._called and any(delta.get(name) for name in _CONTENT_FIELDS)
        for key, value in delta.items():
            if key == "tool_calls" and value:
                self._called = True
                is_terminal |= self._merge_calls(message.setdefault("tool_calls", _Calls()), value)
            elif key == "function_call" and value:
                self._called = True
                is_terminal |= self._merge_call(
                    message.setdefault("function_call", {"function": {}}), {"function": value}
                )
            else:
                self._put(message, key, value)
        return is_terminal

    def _merge_calls(self, calls: _Calls, parts: list[Json]) -> bool:
        is_terminal = False
        for position, part in enumerate(parts):
            before = len(calls.calls_in_order)
            place = part["index"] = calls.place(part, position)
            # A new call ends the one before it.
            is_terminal |= 0 < before == place
            is_terminal |= self._merge_call(calls.calls_in_order[place], part)
        return is_terminal

    def _merge_call(self, call: Json, part: Json) -> bool:
        """Add a fragment of a tool call. Returns True if its arguments are complete."""
        for key, value in part.items():
            if key == "function":
                function: Json = call.setdefault("function", {})
                for name, text in cast("Json", value).items():
                    self._put(function, name, text)
            elif key != "index":
                self._put(call, key, value)
        fragment: Json = part.get("function") or {}
        piece = fragment.get("arguments")
        if not piece:
            return False
        # An object can only be complete at its last character.
        arguments: _Text = call["function"]["arguments"]
        return (piece.rstrip()[-1:] in ("}", "]") or _start(arguments) not in ("{", "[")) and _is_complete(arguments)

    def _put(self, into: Json, key: str, value: Any) -> None:
        if isinstance(value, str) and key not in _ONCE:
            self.characters += len(value)
            held = into.get(key)
            if isinstance(held, _Text):
                held.append(value)
            else:
                into[key] = _Text([value])
        elif isinstance(value, list) and isinstance(into.get(key), list):
            into[key] = [*into[key], *cast("list[Any]", value)]
        elif isinstance(value, dict) and key == "audio":
            audio: Json = into.get(key) or {}
            into[key] = audio
            for name, item in cast("Json", value).items():
                self._put(audio, name, item)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            into[key] = {**into[key], **cast("Json", value)}
        elif value or key not in into:
            into[key] = value

    def completion(self) -> bytes:
        """The assembled chat completion, as JSON."""
        choices = [_finished(self._choices[index]) for index in sorted(self._choices)]
        body: Json = {**self._message_fields, "object": "chat.completion", "choices": choices}
        if self.usage is not None:
            body["usage"] = self.usage
        return _encode(body)

    def usage_piece(self, cost_usd: Cost, estimate: Json) -> bytes:
        """The last chunk, with the cost of the call. `estimate` replaces missing usage."""
        usage: Json = {**(self.usage or estimate), **cost_fields(cost_usd)}
        body: Json = {**self._message_fields, "object": "chat.completion.chunk", "choices": [], "usage": usage}
        return b"data: %b\n\n" % _encode(body)


def _start(arguments: list[str]) -> str:
    return next((text.lstrip()[:1] for text in arguments if text.strip()), "")


def _is_complete(arguments: list[str]) -> bool:
    if _start(arguments) not in ("{", "["):
        return True  # a number or a word may end at any character
    try:
        _complete("".join(arguments))
    except msgspec.DecodeError:
        return False
    except RecursionError:
        return True  # nesting too deep to parse: treated as complete, so that the chunk is withheld
    return True


def _begins_another(call: Json, part: Json) -> bool:
    """Whether a fragment with the index of this call starts the next call."""
    fragment: Json = part.get("function") or {}
    name = fragment.get("name")
    if not name:
        return False
    held: Json = call.get("function") or {}
    arguments: list[str] = held.get("arguments") or []
    if part.get("id") and call.get("id"):
        # Some servers generate a new id for every fragment of one call.
        return name != held.get("name") or _is_complete(arguments)
    return bool(fragment.get("arguments") and _start(arguments)) and _is_complete(arguments)


def _joined_logprobs(held: Json | None, more: Json) -> Json:
    if held is None:
        return dict(more)
    return {key: [*(held.get(key) or ()), *(more.get(key) or ())] for key in {**held, **more}}


def _finished(choice: Json) -> Json:
    message = cast("Json", _plain(choice["message"]))
    message.setdefault("role", "assistant")
    message.setdefault("content", None)
    if isinstance(calls := message.get("tool_calls"), _Calls):
        message["tool_calls"] = [{"type": "function", **cast("Json", _plain(call))} for call in calls.calls_in_order]
    if isinstance(call := message.get("function_call"), dict):
        message["function_call"] = cast("Json", call)["function"]
    return {**choice, "message": message}


def _plain(value: Any) -> Any:
    if isinstance(value, _Text):
        return "".join(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in cast("Json", value).items()}
    return value


def stream_events(completion: bytes, cost_usd: Cost | None) -> Iterator[bytes]:
    """Convert a recorded chat completion to stream chunks. With `cost_usd`, a usage chunk is included. Ends with the
    end mark."""
    body: Json = msgspec.json.decode(completion)
    head = {key: value for key, value in body.items() if key not in ("choices", "usage", "object")}
    head["object"] = "chat.completion.chunk"

    def piece(index: int, delta: Json, reason: str | None, logprobs: Json | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return b"data: %b\n\n" % _encode({**head, "choices": [choice]})

    for choice in cast("list[Json]", body.get("choices") or ()):
        index: int = choice.get("index", 0)
        delta: Json = dict(choice.get("message") or {})
        calls = delta.get("tool_calls")
        if calls:
            delta["tool_calls"] = [{"index": place, **call} for place, call in enumerate(cast("list[Json]", calls))]
        yield piece(index, delta, None, choice.get("logprobs"))
        yield piece(index, {}, choice.get("finish_reason") or "stop")
    if cost_usd is not None:
        usage: Json = {**(body.get("usage") or {}), **cost_fields(cost_usd)}
        yield b"data: %b\n\n" % _encode({**head, "choices": [], "usage": usage})
    yield DONE
