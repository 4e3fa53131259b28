"""Streams of Gemini: each event is an answer of its own, and their parts together are the whole one. Pure.

An event is *terminal* when a client could act on it: it holds a function call, which is always complete, or the finish
reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import msgspec

from overnight.pricing.usage import Cost, cost_fields

from .contract import Json
from .lenient_json import dict_of, dicts_of

FAILED = frozenset({
    "MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "MALFORMED_RESPONSE",
    "MISSING_THOUGHT_SIGNATURE",
})  # fmt: skip
"""Finish reasons of an answer that the provider itself could not use. Asked again, the model may do better."""
_REPEATED = ("modelVersion", "responseId")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def encode(event: Json) -> bytes:
    return b"data: %b\r\n\r\n" % _encode(event)


def is_failed(candidate: Json) -> bool:
    return candidate.get("finishReason") in FAILED


def is_blocked(answer: Json) -> bool:
    """Whether the prompt was refused: there is no candidate then, and no further event."""
    return bool(dict_of(answer.get("promptFeedback")).get("blockReason"))


class _Parts:
    """The parts of one candidate. Texts that follow each other are one part, unless the earlier one is signed."""

    __slots__ = ("_texts", "parts")

    def __init__(self) -> None:
        self.parts: list[Json] = []
        self._texts: list[str] | None = None

    def add(self, part: Json) -> int:
        """Add a part. Returns the characters that it adds."""
        text: Any = part.get("text")
        if not isinstance(text, str):
            self._close()
            self.parts.append(part)
            call = part.get("functionCall")
            return len(_encode(call)) if call is not None else 0
        plain = part.keys() <= {"text", "thought"}
        if self._texts is not None and plain and bool(part.get("thought")) == bool(self.parts[-1].get("thought")):
            self._texts.append(text)
        else:
            self._close()
            self.parts.append(dict(part))
            self._texts = [text] if plain else None
        return len(text)

    def _close(self) -> None:
        if self._texts is not None:
            self.parts[-1]["text"] = "".join(self._texts)
            self._texts = None

    def finished(self) -> list[Json]:
        self._close()
        return self.parts


class Assembly:
    """The answer of a stream. `characters` counts those of texts and calls; `usage` is the most recent report."""

    __slots__ = ("_candidates", "_fields", "_parts", "characters", "is_odd", "usage")

    def __init__(self) -> None:
        self._fields: Json = {}
        self._candidates: dict[int, Json] = {}
        self._parts: dict[int, _Parts] = {}
        self.characters = 0
        self.is_odd = False
        self.usage: Json | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every candidate has a finish reason, or the prompt was refused."""
        if not self._candidates:
            return is_blocked(self._fields)
        return all(each.get("finishReason") for each in self._candidates.values())

    def take(self, event: Json) -> bool:
        """Add an event. Returns True if it is terminal.

        Raises:
            TypeError, ValueError, KeyError, AttributeError: the event has an unknown shape, or ends without an answer.
        """
        if isinstance(event.get("usageMetadata"), dict):
            self.usage = event["usageMetadata"]
        candidates: list[Json] = event.get("candidates") or []
        self._fields |= {name: value for name, value in event.items() if name not in ("candidates", "usageMetadata")}
        is_terminal = is_blocked(event)
        for candidate in candidates:
            index: int = candidate.get("index") or 0
            if not isinstance(index, int):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError("the index of a candidate must be a number")
            if is_failed(candidate):
                raise ValueError(f"the model's answer was unusable: {candidate['finishReason']}")
            held = self._candidates.setdefault(index, {})
            parts = self._parts.setdefault(index, _Parts())
            content: Json = candidate.get("content") or {}
            for part in cast("list[Json]", content.get("parts") or ()):
                is_terminal |= "functionCall" in part
                self.characters += parts.add(part)
            held |= {name: value for name, value in candidate.items() if name != "content" and value is not None}
            held["role"] = content.get("role") or held.get("role") or "model"
            is_terminal |= bool(candidate.get("finishReason"))
        return is_terminal

    @property
    def has_output(self) -> bool:
        return bool(self.characters) or self.is_complete

    @property
    def is_ended(self) -> bool:
        return False

    def closing_events(self) -> list[Json]:
        return []

    def completion(self) -> bytes:
        body: Json = {}
        if self._candidates:
            body["candidates"] = [self._finished(index) for index in sorted(self._candidates)]
        body |= self._fields
        if self.usage is not None:
            body["usageMetadata"] = self.usage
        return _encode(body)

    def _finished(self, index: int) -> Json:
        held = dict(self._candidates[index])
        content = {"parts": self._parts[index].finished(), "role": held.pop("role")}
        return {"content": content, **held}


def stream_events(body: bytes, cost_usd: Cost | None) -> Iterator[bytes]:
    """A recorded answer as two events: the parts, then the rest. With `cost_usd`, the usage contains the cost."""
    answer: Json = _decode(body)
    candidates = dicts_of(answer.get("candidates"))
    parts = [{name: each[name] for name in ("content", "index") if name in each} for each in candidates]
    if any("content" in each for each in parts):
        yield encode({"candidates": parts, **{name: answer[name] for name in _REPEATED if name in answer}})
        empty = {"parts": [{"text": ""}], "role": "model"}
        ended = [{**each, **({"content": empty} if "content" in each else {})} for each in candidates]
        answer = {**answer, "candidates": ended}
    yield encode(answer if cost_usd is None else with_cost(answer, cost_usd))


def with_cost(answer: Json, cost_usd: Cost) -> Json:
    return {**answer, "usageMetadata": {**dict_of(answer.get("usageMetadata")), **cost_fields(cost_usd)}}


def text_parts(answer: Json) -> Iterator[str]:
    """The texts of an answer, without thoughts."""
    for candidate in dicts_of(answer.get("candidates")):
        for part in dicts_of(dict_of(candidate.get("content")).get("parts")):
            if isinstance(part.get("text"), str) and not part.get("thought"):
                yield part["text"]
