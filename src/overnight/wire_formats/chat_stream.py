"""The answer of a stream, put together from its pieces, and taken apart again. Pure.

A piece is *telling* when a client could act on it: the one that completes the arguments of a tool call, and the one with
the finish reason. From a telling piece on, everything waits until the call is durable.
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
# Sent once by some providers and with every piece by others.
_ONCE = frozenset({"role", "id", "type", "name"})
_SAID = ("content", "refusal", "reasoning_content", "reasoning")


class _Text(list[str]):
    """Text that still grows; joined once, at the end."""

    __slots__ = ()


class _Calls:
    """The tool calls of a choice, in the order in which they began, and which of them a piece belongs to.

    Some servers give all calls the same index, or none: there a new id begins a new call, and so does a name after arguments
    that are complete.
    """

    __slots__ = ("_ids", "_latest", "begun")

    def __init__(self) -> None:
        self.begun: list[Json] = []
        self._ids: dict[tuple[int, str], int] = {}
        self._latest: dict[int, int] = {}

    def place(self, part: Json, position: int) -> int:
        """The place of the piece's call, a new one where it begins a call."""
        index: int | None = part.get("index")
        given = position if index is None else index
        call_id: str | None = part.get("id")
        place = self._ids.get((given, call_id)) if call_id else None
        if place is None:
            place = self._latest.get(given)
            if place is None or _begins_another(self.begun[place], part):
                place = len(self.begun)
                self.begun.append({})
            if call_id:
                self._ids[given, call_id] = place
        self._latest[given] = place
        return place


class Assembly:
    """Feed it the decoded pieces in order. `characters` counts what was received; `usage` is the last one told."""

    __slots__ = ("_called", "_choices", "_finished", "_head", "characters", "usage")

    def __init__(self) -> None:
        self._head: Json = {}
        self._choices: dict[int, Json] = {}
        self._finished: set[int] = set()
        self._called = False
        self.characters = 0
        self.usage: Json | None = None

    @property
    def whole(self) -> bool:
        """Has every choice that began come to its finish reason?"""
        return bool(self._finished) and len(self._finished) == len(self._choices)

    def take(self, event: Json) -> bool:
        """Put an event in its place. True when it is telling. The pieces of tool calls in it are numbered: each gets its call's
        place as its `index`. Raises TypeError, ValueError, KeyError or AttributeError for a shape unknown."""
        if not self._head:
            self._head = {key: value for key, value in event.items() if key not in ("choices", "usage", "object")}
        if isinstance(event.get("usage"), dict):
            self.usage = event["usage"]
        telling = False
        for choice in cast("list[Json]", event.get("choices") or ()):
            index: int = choice.get("index") or 0
            held = self._choices.get(index)
            if held is None:
                if not isinstance(index, int):  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise TypeError("the index of a choice is no number")
                held = self._choices[index] = {"index": index, "message": {}, "logprobs": None, "finish_reason": None}
            delta = choice.get("delta")
            if delta:
                telling |= self._merge(held["message"], delta)
            logprobs = choice.get("logprobs")
            if logprobs:
                held["logprobs"] = _joined_logprobs(held["logprobs"], logprobs)
            reason = choice.get("finish_reason")
            if reason:
                held["finish_reason"] = reason
                self._finished.add(index)
                telling = True
        return telling

    def _merge(self, message: Json, delta: Json) -> bool:
        # What is said after a call ends it, with whatever arguments it has by then.
        telling = self._called and any(delta.get(name) for name in _SAID)
        for key, value in delta.items():
            if key == "tool_calls" and value:
                self._called = True
                telling |= self._merge_calls(message.setdefault("tool_calls", _Calls()), value)
            elif key == "function_call" and value:
                self._called = True
                telling |= self._merge_call(message.setdefault("function_call", {"function": {}}), {"function": value})
            else:
                self._put(message, key, value)
        return telling

    def _merge_calls(self, calls: _Calls, parts: list[Json]) -> bool:
        telling = False
        for position, part in enumerate(parts):
            before = len(calls.begun)
            place = part["index"] = calls.place(part, position)
            # The next call ends the one before it.
            telling |= 0 < before == place
            telling |= self._merge_call(calls.begun[place], part)
        return telling

    def _merge_call(self, call: Json, part: Json) -> bool:
        """A piece of a tool call. True when its arguments are complete."""
        for key, value in part.items():
            if key == "function":
                function: Json = call.setdefault("function", {})
                for name, text in cast("Json", value).items():
                    self._put(function, name, text)
            elif key != "index":
                self._put(call, key, value)
        said: Json = part.get("function") or {}
        piece = said.get("arguments")
        if not piece:
            return False
        # Only its last character can complete an object.
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
            spoken: Json = into.get(key) or {}
            into[key] = spoken
            for name, said in cast("Json", value).items():
                self._put(spoken, name, said)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            into[key] = {**into[key], **cast("Json", value)}
        elif value or key not in into:
            into[key] = value

    def completion(self) -> bytes:
        """The chat completion that the stream amounts to, as JSON."""
        choices = [_finished(self._choices[index]) for index in sorted(self._choices)]
        body: Json = {**self._head, "object": "chat.completion", "choices": choices}
        if self.usage is not None:
            body["usage"] = self.usage
        return _encode(body)

    def usage_piece(self, cost_usd: Cost, estimate: Json) -> bytes:
        """The last piece, with what the call cost; `estimate` stands in where the provider told no usage."""
        usage: Json = {**(self.usage or estimate), **cost_fields(cost_usd)}
        body: Json = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}
        return b"data: %b\n\n" % _encode(body)


def _start(arguments: list[str]) -> str:
    return next((text.lstrip()[:1] for text in arguments if text.strip()), "")


def _is_complete(arguments: list[str]) -> bool:
    if _start(arguments) not in ("{", "["):
        return True  # a number or a word is complete at any of its characters
    try:
        _complete("".join(arguments))
    except msgspec.DecodeError:
        return False
    except RecursionError:
        return True  # nested too deep to know: it waits
    return True


def _begins_another(call: Json, part: Json) -> bool:
    """Does a piece, under the index of this call, begin the next one?"""
    said: Json = part.get("function") or {}
    name = said.get("name")
    if not name:
        return False
    held: Json = call.get("function") or {}
    arguments: list[str] = held.get("arguments") or []
    if part.get("id") and call.get("id"):
        # Some servers make up a new id with every piece of one call.
        return name != held.get("name") or _is_complete(arguments)
    return bool(said.get("arguments") and _start(arguments)) and _is_complete(arguments)


def _joined_logprobs(held: Json | None, more: Json) -> Json:
    if held is None:
        return dict(more)
    return {key: [*(held.get(key) or ()), *(more.get(key) or ())] for key in {**held, **more}}


def _finished(choice: Json) -> Json:
    message = cast("Json", _plain(choice["message"]))
    message.setdefault("role", "assistant")
    message.setdefault("content", None)
    if isinstance(calls := message.get("tool_calls"), _Calls):
        message["tool_calls"] = [{"type": "function", **cast("Json", _plain(call))} for call in calls.begun]
    if isinstance(call := message.get("function_call"), dict):
        message["function_call"] = cast("Json", call)["function"]
    return {**choice, "message": message}


def _plain(value: Any) -> Any:
    if isinstance(value, _Text):
        return "".join(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in cast("Json", value).items()}
    return value


def taken_apart(completion: bytes, cost_usd: Cost | None) -> Iterator[bytes]:
    """A recorded chat completion as the events of a stream; with `cost_usd`, the usage piece too. Ends with the end mark."""
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
