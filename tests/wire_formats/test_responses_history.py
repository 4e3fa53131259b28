"""Responses items in any order, as chat messages and Anthropic turns: each result follows its call."""

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.wire_formats import RESPONSES, wire_between
from overnight.wire_formats.dialects import DEFAULT_DIALECT


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def call(name: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": name, "name": "look", "arguments": "{}"}


def output(name: str, text: str = "") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": name, "output": text or f"of {name}"}


def sent(items: list[dict[str, Any]], target: str = "chat") -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The messages that a target receives, and what was changed."""
    request = RESPONSES.read(json.dumps({"model": "m", "input": items}).encode())
    wire = wire_between("responses", (target,))
    assert wire is not None
    prepared = wire.prepare(request, msgspec.Raw(b'"m"'), 100, DEFAULT_DIALECT)
    return json.loads(prepared.body)["messages"], prepared.losses


def short(messages: list[dict[str, Any]]) -> list[str]:
    """One word for each message: its role, and its calls or its text."""
    shown: list[str] = []
    for message in messages:
        calls = ",".join(each["id"] for each in message.get("tool_calls") or ())
        shown.append(" ".join(filter(None, (message["role"], message.get("content") or "", calls))))
    return shown


ORDERS: dict[str, tuple[list[dict[str, Any]], list[str], tuple[str, ...]]] = {
    "usual": ([user("go"), call("a"), output("a")], ["user go", "assistant a", "tool of a"], ()),
    "parallel": (
        [call("a"), call("b"), output("b"), output("a")],
        ["assistant a,b", "tool of a", "tool of b"],
        (),
    ),
    "one after the other": (
        [call("a"), output("a"), call("b"), output("b")],
        ["assistant a", "tool of a", "assistant b", "tool of b"],
        (),
    ),
    "the user between call and output": (
        [call("a"), user("stop"), output("a")],
        ["assistant a", "tool of a", "user stop"],
        (),
    ),
    "text between call and output": (
        [call("a"), said("wait"), output("a"), user("on")],
        ["assistant wait a", "tool of a", "user on"],
        (),
    ),
    "output before its call": ([user("go"), output("a"), call("a")], ["user go", "assistant a", "tool of a"], ()),
    "outputs after later calls": (
        [call("a"), output("a"), call("b"), user("x"), call("c"), output("c"), output("b")],
        ["assistant a", "tool of a", "assistant b", "tool of b", "user x", "assistant c", "tool of c"],
        (),
    ),
    "interrupted call": (
        [user("go"), call("a"), user("never mind")],
        ["user go", "assistant a", "tool (no output)", "user never mind"],
        ("input[1] (no output)",),
    ),
    "last call without output": (
        [user("go"), call("a")],
        ["user go", "assistant a", "tool (no output)"],
        ("input[1] (no output)",),
    ),
    "output without a call": (
        [user("go"), output("z", "found")],
        ["user go", "user Output of a tool call that is not in this conversation: found"],
        ("input[1] (no call)",),
    ),
    "id of two calls": (
        [call("a"), output("a", "one"), user("x"), call("a"), output("a", "two")],
        ["assistant a", "tool one", "user x", "assistant a", "tool two"],
        (),
    ),
    "two outputs of a call": (
        [call("a"), output("a", "one"), output("a", "two")],
        ["assistant a", "tool one", "user Output of a tool call that is not in this conversation: two"],
        ("input[2] (no call)",),
    ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_results_follow_their_calls(name: str) -> None:
    items, expected, losses = ORDERS[name]
    messages, lost = sent(items)
    assert (short(messages), lost) == (expected, losses)


item = st.one_of(
    st.builds(user, st.sampled_from(["x", "y"])),
    st.builds(said, st.just("z")),
    st.builds(call, st.sampled_from("abc")),
    st.builds(output, st.sampled_from("abc")),
)


@given(items=st.lists(item, max_size=8))
def test_any_order_is_acceptable_to_chat_and_messages(items: list[dict[str, Any]]) -> None:
    items = [user("go"), *items]
    messages, _ = sent(items)
    pending: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            pending.remove(message["tool_call_id"])
            continue
        assert not pending
        pending = [each["id"] for each in message.get("tool_calls") or ()]
    assert not pending
    texts = json.dumps(messages)
    assert all(f"of {each['call_id']}" in texts for each in items if each.get("type") == "function_call_output")

    turns, _ = sent(items, "messages")
    assert all(one["role"] != other["role"] for one, other in pairwise(turns))
    before: set[str] = set()
    for turn in turns:
        blocks = turn["content"]
        results = [each["tool_use_id"] for each in blocks if each["type"] == "tool_result"]
        if turn["role"] == "user":
            assert set(results) == before
            assert [each["type"] for each in blocks][: len(results)] == ["tool_result"] * len(results)
        before = {each["id"] for each in blocks if each["type"] == "tool_use"}
    assert not before
