"""Read a rules file of the scripted provider. Reports all problems at once, with line and nearest known key.

The first matching rule determines the answer; without one, the answer is an echo. All keys are optional, but a rule
needs `answer` or `fault`:

    models: [extra-model]               # for /v1/models, in addition to exact names in rules
    rules:
      - name: order status
        match:                          # all conditions must be met
          model: gpt-*                  # exact, or a glob with * ? [
          user_contains: order          # last user message, case-sensitive
          user_regex: 'order (\\d+)'
          system_contains: terse        # system and developer messages
          tool_result: false            # whether the last message is a tool result
          tools_offered: [get_order]    # the request offers all of these
          headers: {x-job-id: j1}       # exact values; names case-insensitive
          times: 3                      # matches at most 3 calls
          after: 1                      # does not match the first call
          between_requests: [2, 4]      # replaces `after` and `times`; from 1, inclusive
          fail_for_ms: 500              # matches only for this time after its first call
        answer:                         # or only a text
          text: 'Order {match[1]}'      # {last_user} {tool_result} {model} {count} {match[1]} {match[name]}
          thinking: 'First, {last_user}'  # the reasoning of the model
          repeat_words: 1000            # repeats the words of the text up to this number
          tool_calls: [{name: get_order, arguments: {id: '{match[1]}'}}]   # text is sent unchanged
          usage: {prompt_tokens: 9, completion_tokens: 9, cached_tokens: 3, cache_write_tokens: 2, reasoning_tokens: 0}
          finish_reason: stop
        fault:
          delay_ms: 50                  # before the first byte
          chunk_delay_ms: 5             # between streamed events
          cut_after_chunks: 3           # close during the stream, without [DONE]; other answers are cut in half
          reset: true                   # end with a TCP reset; without cut_after_chunks, before any answer and unpaid
          broken_json: true
          stall: true                   # without other faults: accept, charge, never answer
      - fault: {status: 429, retry_after_ms: 100, code: insufficient_quota, message: Pay first}   # unpaid
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from .scripted_rules import NO_FAULT, SLOT, Answer, Fault, Match, Rule, RuleSet, ToolCall

MAX_FILE_CHARS = 262_144
MAX_RULES = 1_000
MAX_NODES = 50_000
MAX_DEPTH = 32
MAX_WORDS = 200_000
MAX_MS = 3_600_000
MAX_COUNT = 1_000_000_000

Leaf = Callable[[Any], Any]


class RulesError(ValueError):
    """The rules are invalid. `problems` has one line per problem: `file:line: place: problem and remedy`."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {value!r}; put it in quotes")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")
    return value


def _whole(low: int, high: int) -> Leaf:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {value!r}")
        return value

    return check


def _one_of(*known: str) -> Leaf:
    def check(value: Any) -> str:
        if value not in known:
            raise ValueError(f"must be one of {', '.join(known)}, not {value!r}")
        return value

    return check


def _regex(value: Any) -> re.Pattern[str]:
    try:
        return re.compile(_text(value))
    except re.error as problem:
        raise ValueError(f"is not a regular expression: {problem}") from None


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list of names")
    return tuple(_text(item) for item in cast("list[Any]", value))


def _headers(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise ValueError("must be a mapping of header names to values")
    return tuple((name.lower(), _text(wanted)) for name, wanted in cast("dict[str, Any]", value).items())


def _span(value: Any) -> tuple[int, int]:
    match value:
        case [int(first), int(last)] if 1 <= first <= last <= MAX_COUNT:
            return first, last
        case _:
            raise ValueError("must be [first, last], counted from 1, both included")


def _arguments(value: Any) -> dict[str, Any] | str:
    if not isinstance(value, dict | str):
        raise ValueError("must be a mapping, or text to send unchanged")
    return cast("dict[str, Any] | str", value)


_ms = _whole(0, MAX_MS)
_count = _whole(0, MAX_COUNT)

MATCH: dict[str, Leaf] = {
    "model": _text,
    "user_contains": _text,
    "user_regex": _regex,
    "system_contains": _text,
    "tool_result": _flag,
    "tools_offered": _names,
    "headers": _headers,
    "after": _count,
    "times": _whole(1, MAX_COUNT),
    "between_requests": _span,
    "fail_for_ms": _ms,
}
ANSWER: dict[str, Leaf] = {
    "text": _text,
    "thinking": _text,
    "repeat_words": _whole(1, MAX_WORDS),
    "finish_reason": _one_of("stop", "length", "tool_calls", "content_filter"),
}
TOOL_CALL: dict[str, Leaf] = {"name": _text, "arguments": _arguments}
USAGE: dict[str, Leaf] = dict.fromkeys(
    ("prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens"), _count
)
PARTS = (
    ("cached_tokens", "prompt_tokens"),
    ("cache_write_tokens", "prompt_tokens"),
    ("reasoning_tokens", "completion_tokens"),
)
FAULT: dict[str, Leaf] = {
    "status": _whole(400, 599),
    "retry_after_ms": _ms,
    "code": _text,
    "message": _text,
    "delay_ms": _ms,
    "chunk_delay_ms": _ms,
    "cut_after_chunks": _count,
    "stall": _flag,
    "reset": _flag,
    "broken_json": _flag,
}


class YamlValue(NamedTuple):
    """A YAML value and its position. A mapping keeps its pairs, a list its items; a scalar only has `value`."""

    line: int
    value: Any = None
    pairs: list[tuple[YamlValue, YamlValue]] | None = None
    items: list[YamlValue] | None = None

    def plain(self) -> Any:
        if self.pairs is not None:
            return {str(key.value): value.plain() for key, value in self.pairs}
        if self.items is not None:
            return [item.plain() for item in self.items]
        return self.value


class _Reader:
    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[str] = []
        self._yaml = YAML(typ="safe", pure=True)
        self._nodes = 0

    def report(self, line: int, where: str, problem: str) -> None:
        self.problems.append(f"{self.source}:{line}: {where + ': ' if where else ''}{problem}")

    def parse(self, text: str) -> YamlValue | None:
        """The document as a tree of values; None for an empty one."""
        if len(text) > MAX_FILE_CHARS:
            self.report(1, "", f"the file is longer than {MAX_FILE_CHARS} characters; split it or shorten it")
            return None
        try:
            node: Any = cast("Any", self._yaml).compose(text)
            return None if node is None else self._yaml_value(node, 0)
        except MarkedYAMLError as error:
            marked = cast("Any", error)
            line = marked.problem_mark.line + 1 if marked.problem_mark else 1
            self.report(line, "", f"is not YAML: {marked.problem}")
        except (YAMLError, ValueError) as error:
            self.report(1, "", f"is not YAML: {' '.join(str(error).split())}")
        return None

    def _yaml_value(self, node: Any, depth: int) -> YamlValue:
        # An alias repeats the same node: without limits, a few lines could expand without end.
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_NODES} values or {MAX_DEPTH} levels")
        line: int = node.start_mark.line + 1
        kind = node.tag.rpartition(":")[2]
        if isinstance(node.value, str):
            is_text = kind not in ("int", "float", "bool", "null")
            return YamlValue(line, node.value if is_text else self._yaml.constructor.construct_object(node))
        if kind == "map":
            return YamlValue(
                line,
                pairs=[
                    (self._yaml_value(key, depth + 1), self._yaml_value(value, depth + 1)) for key, value in node.value
                ],
            )
        return YamlValue(line, items=[self._yaml_value(item, depth + 1) for item in node.value])

    def fields(
        self, spot: YamlValue, where: str, leaves: Mapping[str, Leaf], nested: Collection[str] = ()
    ) -> dict[str, Any]:
        """The valid values of a mapping; keys in `nested` keep their YAML value. Invalid values are reported and omitted."""
        if spot.pairs is None:
            self.report(spot.line, where, f"must be a mapping with some of: {', '.join([*nested, *leaves])}")
            return {}
        found: dict[str, Any] = {}
        for key_spot, value in spot.pairs:
            key = str(key_spot.value)
            if key in found:
                self.report(key_spot.line, where, f"`{key}` appears twice; keep one")
            elif key in nested:
                found[key] = value
            elif key in leaves:
                try:
                    found[key] = leaves[key](value.plain())
                except ValueError as problem:
                    self.report(value.line, where, f"`{key}` {problem}")
            else:
                known = [*nested, *leaves]
                near = difflib.get_close_matches(key, known, 1, 0.5)
                way_out = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
                self.report(key_spot.line, where, f"unknown key `{key}`; {way_out}")
        return found

    def listed(self, spot: YamlValue, where: str) -> list[YamlValue]:
        if spot.items is None:
            self.report(spot.line, where, "must be a list")
        return spot.items or []


def parse_rules(text: str, source: str) -> RuleSet:
    """Parse rules from YAML (or JSON) text. `source` names the text in problems. Raises RulesError with all problems."""
    reader = _Reader(source)
    root = reader.parse(text)
    rules: list[Rule] = []
    models: tuple[str, ...] = ()
    if root is not None:
        top = reader.fields(root, "", {"models": _names}, ("rules",))
        models = top.get("models", ())
        parse = reader.listed(top["rules"], "rules") if "rules" in top else []
        if len(parse) > MAX_RULES:
            reader.report(root.line, "rules", f"more than {MAX_RULES} rules; remove some")
        rules = [_rule(reader, spot, number) for number, spot in enumerate(parse[:MAX_RULES], 1)]
    if reader.problems:
        raise RulesError(reader.problems)
    return RuleSet(tuple(rules), models)


def _rule(reader: _Reader, spot: YamlValue, number: int) -> Rule:
    where = f"rule {number}"
    found = reader.fields(spot, where, {"name": _text}, ("match", "answer", "fault"))
    if spot.pairs is not None and not ("answer" in found or "fault" in found):
        reader.report(spot.line, where, "has no effect; give it `answer` or `fault`")
    match = _match(reader, found["match"], f"{where}, match") if "match" in found else Match()
    answer = _answer(reader, found["answer"], f"{where}, answer", match) if "answer" in found else None
    fault = _fault(reader, found["fault"], f"{where}, fault", answer) if "fault" in found else NO_FAULT
    return Rule(found.get("name", where), spot.line, match, answer, fault)


def _match(reader: _Reader, spot: YamlValue, where: str) -> Match:
    found = reader.fields(spot, where, MATCH)
    if span := found.pop("between_requests", None):
        if "after" in found or "times" in found:
            reader.report(spot.line, where, "`between_requests` is equivalent to `after` with `times`; keep one")
        found |= {"after": span[0] - 1, "times": span[1] - span[0] + 1}
    return Match(**found)


def _answer(reader: _Reader, spot: YamlValue, where: str, match: Match) -> Answer:
    if isinstance(spot.value, str):
        spot = YamlValue(spot.line, pairs=[(YamlValue(spot.line, "text"), spot)])
    found = reader.fields(spot, where, ANSWER, ("tool_calls", "usage"))
    for key, value in spot.pairs or ():
        _check_slots(reader, value, f"{where}, {key.value}", match)
    if "usage" in found:
        usage_spot: YamlValue = found["usage"]
        usage = found["usage"] = reader.fields(usage_spot, f"{where}, usage", USAGE)
        for part, whole in PARTS:
            if whole in usage and usage.get(part, 0) > usage[whole]:
                reader.report(usage_spot.line, f"{where}, usage", f"`{part}` is a part of `{whole}`; lower it")
    calls: list[ToolCall] = []
    for item in reader.listed(found["tool_calls"], f"{where}, tool_calls") if "tool_calls" in found else ():
        call = reader.fields(item, f"{where}, tool_calls", TOOL_CALL)
        if item.pairs is not None and not any(key.value == "name" for key, _ in item.pairs):
            reader.report(item.line, f"{where}, tool_calls", "has no `name`; name the tool to call")
        calls.append(ToolCall(call.get("name", ""), call.get("arguments", {})))
    found["tool_calls"] = tuple(calls)
    return Answer(**found)


def _check_slots(reader: _Reader, spot: YamlValue, where: str, match: Match) -> None:
    for inner in [value for _, value in spot.pairs or ()] + (spot.items or []):
        _check_slots(reader, inner, where, match)
    pattern = match.user_regex
    for slot in SLOT.finditer(spot.value) if isinstance(spot.value, str) else ():
        group = slot[2]
        if group and not (pattern and (group in pattern.groupindex or group in map(str, range(pattern.groups + 1)))):
            reader.report(
                spot.line, where, f"`{slot[0]}` refers to a missing group of `user_regex`; add the group or remove it"
            )


def _fault(reader: _Reader, spot: YamlValue, where: str, answer: Answer | None) -> Fault:
    found = reader.fields(spot, where, FAULT)
    given = {key for key, value in found.items() if value is not False}
    if "status" in given:
        clash = given & {"chunk_delay_ms", "cut_after_chunks", "stall", "reset", "broken_json"}
        if clash or answer:
            other = ", ".join(sorted(clash)) or "answer"
            reader.report(
                spot.line, where, f"`status` rejects the call, so `{other}` cannot be combined with it; keep one"
            )
    elif alone := given & {"retry_after_ms", "code", "message"}:
        reader.report(spot.line, where, f"`{', '.join(sorted(alone))}` belongs to an error answer; add `status`")
    elif "stall" in given and (clash := given - {"stall"}):
        reader.report(
            spot.line,
            where,
            f"`stall` never answers, so `{', '.join(sorted(clash))}` cannot be combined with it; keep one",
        )
    return Fault(**found)
