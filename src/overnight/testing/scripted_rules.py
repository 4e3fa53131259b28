"""Rules of the scripted provider: conditions on requests, and answers. No I/O."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import msgspec

SLOT = re.compile(r"\{(last_user|tool_result|model|count|match\[(\w+)\])\}")


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class ChatRequest(msgspec.Struct):
    """The fields of a request that determine the answer, in the chat format; other fields are accepted and ignored.

    `text` is the field of a Responses request, which its response repeats.
    """

    model: str
    messages: list[dict[str, Any]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[dict[str, Any]] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    text: dict[str, Any] | None = None


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions of a rule; all must be met. Counters count only requests that meet the other conditions."""

    model: str | None = None
    user_contains: str | None = None
    user_regex: re.Pattern[str] | None = None
    system_contains: str | None = None
    tool_result: bool | None = None
    tools_offered: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    after: int = 0
    times: int | None = None
    fail_for_ms: int | None = None


class ToolCall(msgspec.Struct, frozen=True):
    """A mapping in `arguments` is sent as JSON; text is sent unchanged, so that it may be invalid."""

    name: str
    arguments: dict[str, Any] | str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    text: str | None = None
    thinking: str | None = None
    repeat_words: int | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    usage: dict[str, int] | None = None
    finish_reason: str | None = None


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A fault and its timing. Times in milliseconds; `cut_after_chunks` counts SSE events before `[DONE]`."""

    status: int | None = None
    retry_after_ms: int | None = None
    code: str | None = None
    message: str | None = None
    delay_ms: int = 0
    chunk_delay_ms: int = 0
    cut_after_chunks: int | None = None
    stall: bool = False
    reset: bool = False
    broken_json: bool = False


NO_FAULT = Fault()


def text_of(content: Any) -> str:
    """The text of a message's `content`: a string, or the text parts of a list joined by line breaks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [cast("dict[str, Any]", part) for part in cast("list[Any]", content) if isinstance(part, dict)]
    return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))


class Call:
    """One request, prepared for rule matching; rarely used fields are computed on first use."""

    def __init__(
        self, request: ChatRequest, headers: Sequence[tuple[bytes, bytes]], stop_sequences: tuple[str, ...] = ()
    ) -> None:
        self.request = request
        self.stop_sequences = stop_sequences
        self.model = request.model
        self._headers = headers

    @cached_property
    def last_user(self) -> str:
        for message in reversed(self.request.messages):
            if message.get("role") == "user":
                return text_of(message.get("content"))
        return ""

    @cached_property
    def system(self) -> str:
        return "\n".join(
            text_of(m.get("content")) for m in self.request.messages if m.get("role") in ("system", "developer")
        )

    @cached_property
    def tool_result(self) -> str | None:
        """The text of the last message if it is a tool result, else None."""
        last = self.request.messages[-1]
        return text_of(last.get("content")) if last.get("role") == "tool" else None

    @cached_property
    def tools_offered(self) -> frozenset[str]:
        functions = [tool.get("function") for tool in self.request.tools or ()]
        names = [cast("dict[str, Any]", f).get("name") for f in functions if isinstance(f, dict)]
        return frozenset(name for name in names if isinstance(name, str))

    @cached_property
    def headers(self) -> dict[str, str]:
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self._headers}


class RuleMatch(msgspec.Struct, frozen=True):
    """A call and its matching rule. `count` is the number of this call among those of the rule, from 1."""

    call: Call
    rule: Rule
    count: int
    groups: re.Match[str] | None

    def fill(self, text: str) -> str:
        """Replace placeholders such as `{last_user}` and `{match[1]}`; other braces stay unchanged."""
        return SLOT.sub(self._value, text) if "{" in text else text

    def fill_all(self, value: Any) -> Any:
        """`fill` for every string in a tree of mappings and lists."""
        if isinstance(value, str):
            return self.fill(value)
        if isinstance(value, list):
            return [self.fill_all(item) for item in cast("list[Any]", value)]
        if isinstance(value, dict):
            return {key: self.fill_all(item) for key, item in cast("dict[str, Any]", value).items()}
        return value

    def _value(self, slot: re.Match[str]) -> str:
        name, group = slot[1], slot[2]
        if group is not None:
            return (self.groups[int(group) if group.isdecimal() else group] or "") if self.groups else ""
        if name == "count":
            return str(self.count)
        return getattr(self.call, name) or ""


class Rule:
    """A rule and its counters. `name` and `line` identify it in messages."""

    def __init__(self, name: str, line: int, match: Match, answer: Answer | None, fault: Fault) -> None:
        self.name = name
        self.line = line
        self.match = match
        self.answer = answer
        self.fault = fault
        is_glob = match.model is not None and any(sign in match.model for sign in "*?[")
        self._model_fits = re.compile(fnmatch.translate(match.model)).match if match.model and is_glob else None
        self.reset()

    def reset(self) -> None:
        """Reset the counters of the rule."""
        self.seen = 0
        self.taken = 0
        self._ends_at: float | None = None

    def take(self, call: Call, now: float) -> RuleMatch | None:
        """Match a call and count it. Returns None if the rule does not match. `now` is a monotonic time in seconds."""
        match = self.match
        if not self._fits(call):
            return None
        groups = match.user_regex.search(call.last_user) if match.user_regex else None
        if match.user_regex and groups is None:
            return None
        self.seen += 1
        if self.seen <= match.after or (match.times is not None and self.taken >= match.times):
            return None
        if match.fail_for_ms is not None:
            if self._ends_at is None:
                self._ends_at = now + match.fail_for_ms / 1000
            if now >= self._ends_at:
                return None
        self.taken += 1
        return RuleMatch(call, self, self.taken, groups)

    def _fits(self, call: Call) -> bool:
        match = self.match
        if self._model_fits:
            if not self._model_fits(call.model):
                return False
        elif match.model is not None and match.model != call.model:
            return False
        if match.user_contains is not None and match.user_contains not in call.last_user:
            return False
        if match.system_contains is not None and match.system_contains not in call.system:
            return False
        if match.tool_result is not None and match.tool_result != (call.tool_result is not None):
            return False
        if match.tools_offered and not call.tools_offered.issuperset(match.tools_offered):
            return False
        return all(call.headers.get(name) == value for name, value in match.headers)


class RuleSet(msgspec.Struct, frozen=True):
    """Ordered rules, and the model names to list in addition to those in rules."""

    rules: tuple[Rule, ...] = ()
    models: tuple[str, ...] = ()

    def first(self, call: Call, now: float) -> RuleMatch | None:
        """The match of the first matching rule, or None."""
        for rule in self.rules:
            if taken := rule.take(call, now):
                return taken
        return None

    def before(self, other: RuleSet) -> RuleSet:
        """These rules, followed by those of `other` with their counters."""
        return RuleSet(self.rules + other.rules, tuple(dict.fromkeys(self.models + other.models)))

    def model_names(self) -> list[str]:
        """The model names of `/v1/models`: given names, and exact names in rules; never empty."""
        named = [r.match.model for r in self.rules if r.match.model and not any(s in r.match.model for s in "*?[")]
        return list(dict.fromkeys([*self.models, *named])) or ["scripted"]
