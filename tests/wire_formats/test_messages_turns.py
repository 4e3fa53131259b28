"""Turns of Claude Code towards chat targets: joined where chat requires it; summaries kept; what is lost is named."""

import json
from typing import Any

import msgspec
import pytest

from overnight.wire_formats import MESSAGES, wire_between
from overnight.wire_formats.dialects import DEFAULT_DIALECT

TOOLS = [{"name": "look", "input_schema": {"type": "object", "properties": {}}}]
EDITS = {"edits": [{"type": "compact_20260112", "trigger": {"type": "input_tokens", "value": 50_000}}]}


def sent(messages: list[Any], target: str = "chat", **fields: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    body = {"model": "m", "max_tokens": 100, "messages": messages, "tools": TOOLS, **fields}
    wire = wire_between("messages", (target,))
    assert wire is not None
    prepared = wire.prepare(MESSAGES.read(json.dumps(body).encode()), msgspec.Raw(b'"m"'), 100, DEFAULT_DIALECT)
    return json.loads(prepared.body), prepared.losses


def use(name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": name, "name": "look", "input": {}}


def result(name: str) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": name, "content": "ok"}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


TURNS: dict[str, tuple[list[list[dict[str, Any]]], str | None, list[str]]] = {
    "text, then a call": ([[text("I look")], [use("a")]], "I look", ["a"]),
    "a call, then text": ([[use("a")], [text("wait")]], "wait", ["a"]),
    "two calls": ([[use("a")], [use("b")]], None, ["a", "b"]),
    "two texts": ([[text("one")], [text("two")]], "one\ntwo", []),
    "three": ([[text("one")], [use("a")], [text("two"), use("b")]], "one\ntwo", ["a", "b"]),
}


@pytest.mark.parametrize("name", TURNS)
def test_consecutive_assistant_turns_are_joined(name: str) -> None:
    turns, content, calls = TURNS[name]
    messages: list[Any] = [{"role": "user", "content": "go"}]
    messages += [{"role": "assistant", "content": blocks} for blocks in turns]
    messages.append({"role": "user", "content": [*map(result, calls), text("on")]})
    body, losses = sent(messages)
    assert [each["role"] for each in body["messages"]] == ["user", "assistant", *["tool"] * len(calls), "user"]
    assert body["messages"][1]["content"] == content
    assert [each["id"] for each in body["messages"][1].get("tool_calls", ())] == calls
    assert losses == ()


def test_summary_of_a_compaction_is_kept() -> None:
    compaction = {"type": "compaction", "content": "We renamed the file."}
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": [compaction, text("Done.")]},
        {"role": "user", "content": "on"},
    ]
    body, losses = sent(messages)
    assert body["messages"][1]["content"] == "Summary of the conversation so far:\nWe renamed the file.\n\nDone."
    assert losses == ()
    assert sent(messages, "messages")[0]["messages"] == messages


def test_context_management_is_passed_on_or_named() -> None:
    messages = [{"role": "user", "content": "go"}]
    body, losses = sent(messages, "messages", context_management=EDITS)
    assert (body["context_management"], losses) == (EDITS, ())
    body, losses = sent(messages, context_management=EDITS)
    assert ("context_management" in body, losses) == (False, ("context_management",))
