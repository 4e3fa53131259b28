"""Chat streams: assemble a completion from chunks, and convert a completion to chunks. Pure.

A chunk is *terminal* when a client could act on it: it completes the arguments of a tool call, or carries the finish
reason. The stream withholds a terminal chunk and everything after it until the call is durable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import msgspec

from overnight.domain.json_text import decode_json, encode_json
from overnight.pricing.usage import Cost, cost_fields

from .chat_calls import ToolCalls, plain_calls
from .contract import NoAnswer
from .finish_reasons import STANDARD_REASONS, chat_reason, without_call
from .growing_json import GrowingText
from .sse import DONE

Json = dict[str, Any]
_encode = msgspec.json.Encoder().encode
# Fields that some providers send once and others with every chunk.
_ONCE = frozenset({"role", "id", "type", "name"})
_CONTENT_FIELDS = ("content", "refusal", "reasoning_content", "reasoning")
_CALLED = frozenset({"tool_calls", "function_call"})
_NOTHING_USED: Json = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


class Assembly:
    """Add decoded chunks in order, and correct them in place where they are not as clients expect them.

    `characters` counts received characters; `usage` is the most recent report. `is_rewritten`: whether the last chunk was
    corrected.
    """

    __slots__ = (
        "_called", "_choices", "_finished", "_message_fields", "_text_characters", "is_ended", "is_odd",
        "is_rewritten", "usage",
    )  # fmt: skip

    def __init__(self) -> None:
        self._message_fields: Json = {}
        self._choices: dict[int, Json] = {}
        self._finished: set[int] = set()
        self._called: list[ToolCalls] = []
        self._text_characters = 0
        self.is_ended = self.is_odd = self.is_rewritten = False
        self.usage: Json | None = None

    @property
    def characters(self) -> int:
        return self._text_characters + sum(each.characters for each in self._called)

    @property
    def has_output(self) -> bool:
        return bool(self._text_characters or self._called or self._finished)

    @property
    def is_complete(self) -> bool:
        """Whether every choice has a finish reason."""
        return bool(self._finished) and len(self._finished) == len(self._choices)

    def take(self, event: Json) -> bool:
        """Add an event. Returns True if it is terminal. Sets the `index` of each tool call fragment to the position of
        its call.

        Raises:
            NoAnswer: the provider breaks off the answer.
            TypeError, ValueError, KeyError, AttributeError: the event has an unknown shape.
        """
        self.is_rewritten = False
        if not self._message_fields:
            self._message_fields = {
                key: value for key, value in event.items() if key not in ("choices", "usage", "object")
            }
        choices = cast("list[Json]", event.get("choices") or ())
        if isinstance(event.get("usage"), dict):
            self.usage = event["usage"]
            self.is_ended = not choices
        is_terminal = False
        for choice in choices:
            index: int = choice.get("index") or 0
            held = self._choices.get(index)
            if held is None:
                if not isinstance(index, int):  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise TypeError("the index of a choice must be a number")
                held = self._choices[index] = {"index": index, "message": {}, "logprobs": None, "finish_reason": None}
            delta = choice.get("delta")
            if delta:
                is_terminal |= self._merge(held["message"], delta)
            elif delta is None and isinstance(choice.get("message"), dict):
                is_terminal |= self._merge(held["message"], self._whole_as_delta(choice))
            logprobs = choice.get("logprobs")
            if logprobs:
                held["logprobs"] = _joined_logprobs(held["logprobs"], logprobs)
            reason = choice.get("finish_reason")
            if reason or "error" in choice:
                is_terminal |= self._finish(held, choice, reason)
            elif reason is not None:
                choice["finish_reason"] = None  # an empty string on each chunk
                self.is_rewritten = True
        if is_terminal and self.usage is None and isinstance(own := event.get("x_groq"), dict):
            self.usage = cast("Json", own).get("usage")
        return is_terminal

    def _whole_as_delta(self, choice: Json) -> Json:
        """The delta of a choice with a whole message, as servers send that only imitate a stream."""
        choice["delta"] = delta = choice.pop("message")
        for place, call in enumerate(cast("list[Json]", delta.get("tool_calls") or ())):
            call.setdefault("index", place)
        self.is_rewritten = True
        return delta

    def _finish(self, held: Json, choice: Json, reason: Any) -> bool:
        if choice.get("error"):
            raise NoAnswer({"error": choice["error"]})
        if not reason:
            return False
        if reason not in STANDARD_REASONS:
            reason = chat_reason(reason)
            if reason != choice["finish_reason"]:
                choice["finish_reason"] = reason
                self.is_rewritten = True
        message: Json = held["message"]
        calls: ToolCalls | None = message.get("tool_calls")
        if calls is None and reason in _CALLED and "function_call" not in message:
            raise without_call(reason)
        if calls is not None and not calls.are_named():
            raise without_call(reason)
        held["finish_reason"] = reason
        self._finished.add(held["index"])
        return True

    def _merge(self, message: Json, delta: Json) -> bool:
        # Text after a call ends the call with its present arguments.
        is_terminal = bool(self._called) and any(delta.get(name) for name in _CONTENT_FIELDS)
        for key, value in delta.items():
            if key == "tool_calls":
                if value:
                    is_terminal |= self._merge_calls(message, value)
            elif key == "function_call":
                if value:
                    is_terminal |= self._merge_function(message, value)
            else:
                self._put(message, key, value)
        return is_terminal

    def _merge_calls(self, message: Json, parts: list[Json]) -> bool:
        calls: ToolCalls | None = message.get("tool_calls")
        if calls is None:
            calls = message["tool_calls"] = ToolCalls(f"call_{self._message_fields.get('id') or ''}_")
            self._called.append(calls)
        is_terminal = calls.take(parts)
        if calls.is_rewritten:
            calls.is_rewritten, self.is_rewritten = False, True
        return is_terminal

    def _merge_function(self, message: Json, fragment: Json) -> bool:
        """Add a fragment of a call in the older form, of which a message has at most one."""
        if "function_call" not in message:
            message["function_call"] = {}
            self._called.append(ToolCalls(""))
        calls = self._called[-1]
        is_terminal = calls.merge_function(cast("Json", message["function_call"]), fragment)
        self.is_rewritten |= calls.is_rewritten
        return is_terminal

    def _put(self, into: Json, key: str, value: Any) -> None:
        if isinstance(value, str) and key not in _ONCE:
            self._text_characters += len(value)
            held = into.get(key)
            if isinstance(held, GrowingText):
                held.append(value)
            else:
                into[key] = GrowingText([value])
        elif isinstance(value, list) and isinstance(into.get(key), list):
            into[key] += cast("list[Any]", value)
        elif isinstance(value, list):
            into[key] = [*cast("list[Any]", value)]
        elif isinstance(value, dict) and key == "audio":
            audio: Json = into.get(key) or {}
            into[key] = audio
            for name, item in cast("Json", value).items():
                self._put(audio, name, item)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            into[key] = {**into[key], **cast("Json", value)}
        elif value or key not in into:
            into[key] = value

    def closing_events(self) -> list[Json]:
        """A chunk with the finish reasons of the choices that are still open, if their tool calls are complete."""
        if not (self._text_characters or self._called) or not all(calls.are_complete() for calls in self._called):
            return []
        choices: list[Json] = [
            {"index": index, "delta": {}, "finish_reason": "tool_calls" if "tool_calls" in held["message"] else "stop"}
            for index, held in self._choices.items()
            if index not in self._finished
        ]
        return [{**self._message_fields, "object": "chat.completion.chunk", "choices": choices}] if choices else []

    def completion(self) -> bytes:
        """The assembled chat completion, as JSON."""
        choices = [_finished(self._choices[index]) for index in sorted(self._choices)]
        body: Json = {**self._message_fields, "object": "chat.completion", "choices": choices}
        if self.usage is not None:
            body["usage"] = self.usage
        return encode_json(body, exact=self.is_odd)

    def usage_piece(self, cost_usd: Cost, estimate: Json) -> bytes:
        """The last chunk, with the cost of the call. `estimate` replaces missing usage."""
        usage: Json = {**(numbers_of(self.usage) if self.usage else estimate), **cost_fields(cost_usd)}
        body: Json = {**self._message_fields, "object": "chat.completion.chunk", "choices": [], "usage": usage}
        return b"data: %b\n\n" % encode_json(body)


def numbers_of(usage: Json) -> Json:
    """The usage with counts that some servers write as strings as numbers."""
    return {
        name: int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 16 else value
        for name, value in usage.items()
    }


def _joined_logprobs(held: Json | None, more: Json) -> Json:
    if held is None:
        return {key: [*value] if isinstance(value, list) else value for key, value in more.items()}  # pyright: ignore[reportUnknownVariableType]
    for key, value in more.items():
        if isinstance(held.get(key), list):
            held[key] += value or ()
        elif value:
            held[key] = value
    return held


def _finished(choice: Json) -> Json:
    message = cast("Json", _plain({key: value for key, value in choice["message"].items() if key not in _CALLED}))
    message.setdefault("role", "assistant")
    message.setdefault("content", None)
    if isinstance(calls := choice["message"].get("tool_calls"), ToolCalls):
        message["tool_calls"] = plain_calls(calls)
    if isinstance(call := choice["message"].get("function_call"), dict):
        message["function_call"] = _plain(cast("Json", call)["function"])
    return {**choice, "message": message}


def _plain(value: Any) -> Any:
    if isinstance(value, GrowingText):
        return "".join(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in cast("Json", value).items()}
    return value


def stream_events(completion: bytes, cost_usd: Cost | None) -> Iterator[bytes]:
    """Convert a recorded chat completion to stream chunks. With `cost_usd`, a usage chunk is included. Ends with the
    end mark."""
    body: Json = decode_json(completion)
    head = {key: value for key, value in body.items() if key not in ("choices", "usage", "object")}
    head["object"] = "chat.completion.chunk"

    def piece(index: int, delta: Json, reason: str | None, logprobs: Json | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return b"data: %b\n\n" % encode_json({**head, "choices": [choice]})

    for choice in cast("list[Json]", body.get("choices") or ()):
        index: int = choice.get("index", 0)
        delta: Json = dict(choice.get("message") or {})
        calls = delta.get("tool_calls")
        if calls:
            delta["tool_calls"] = [{"index": place, **call} for place, call in enumerate(cast("list[Json]", calls))]
        yield piece(index, delta, None, choice.get("logprobs"))
        yield piece(index, {}, choice.get("finish_reason") or "stop")
    if cost_usd is not None:
        usage: Json = {**numbers_of(body.get("usage") or _NOTHING_USED), **cost_fields(cost_usd)}
        yield b"data: %b\n\n" % encode_json({**head, "choices": [], "usage": usage})
    yield DONE
