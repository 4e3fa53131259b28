"""Dialects: fields that a provider rejects are removed and reported; all others are kept."""

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.wire_formats import CHAT, wire_between
from overnight.wire_formats.dialects import (
    DEFAULT_DIALECT,
    REASONING_FIELDS,
    adapt_fields,
    adapt_in_place,
    dialect_of,
    short_id,
)

HOSTS = {
    "openai": "https://api.openai.com/v1",
    "azure": "https://mine.openai.azure.com/openai/v1",
    "mistral": "https://api.mistral.ai/v1",
    "groq": "https://api.groq.com/openai/v1",
    "cerebras": "https://api.cerebras.ai/v1",
    "google": "https://generativelanguage.googleapis.com/v1beta/openai",
    "together": "https://api.together.xyz/v1",
    "fireworks": "https://api.fireworks.ai/inference/v1",
    "deepseek": "https://api.deepseek.com/v1",
    "moonshot": "https://api.moonshot.ai/v1",
    "openrouter": "https://openrouter.ai/api/v1",
    "own": "http://127.0.0.1:8000/v1",
}
TURN: dict[str, Any] = {
    "role": "assistant",
    "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "ok"}],
    "reasoning_content": "hm",
    "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}],
    "tool_calls": [{"id": "call_PTLP8xhu3uwZk4l3", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
THEIRS = msgspec.Raw(b'"theirs"')
HISTORY = [
    {"role": "user", "content": "go"},
    TURN,
    {"role": "tool", "tool_call_id": "call_PTLP8xhu3uwZk4l3", "content": "done"},
    {"role": "user", "content": "on"},
]


def sent(host: str, **body: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What goes to a host of a chat request, and what of it was left out."""
    request = CHAT.read(json.dumps({"model": "m", "messages": HISTORY, **body}).encode())
    wire = wire_between("chat", ("chat",))
    assert wire is not None
    prepared = wire.prepare(request, THEIRS, 100, dialect_of(HOSTS[host]))
    return json.loads(prepared.body), prepared.losses


# host: which thoughts of a message it keeps
KEPT = {
    "openai": set(),
    "azure": set(),
    "mistral": set(),
    "groq": set(),
    "cerebras": set(),
    "google": set(),
    "together": set(),
    "fireworks": {"reasoning_content"},
    "deepseek": {"reasoning_content"},
    "moonshot": {"reasoning_content"},
    "openrouter": {"reasoning_content"},
    "own": {"reasoning_content", "thinking_blocks"},
}


@pytest.mark.parametrize("host", HOSTS)
def test_foreign_reasoning_goes_only_to_supporting_models(host: str) -> None:
    body, losses = sent(host)
    turn = body["messages"][1]
    assert REASONING_FIELDS.intersection(turn) == KEPT[host]
    lost = {"reasoning_content", "thinking_blocks"} - KEPT[host]
    assert {f"messages[1].{name}" for name in lost} <= set(losses)
    parts = [part["type"] for part in turn["content"]]
    assert parts == (["thinking", "text"] if host == "own" else ["text"])
    assert ("messages[1].content[0]" in losses) == (host != "own")
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "tool", "user"]
    assert body["messages"][1]["tool_calls"][0]["id"] == body["messages"][2]["tool_call_id"]


def signed(*models: str) -> dict[str, Any]:
    """A turn whose thoughts say which models had them."""
    blocks = [{"type": "thinking", "thinking": "hm", "signature": "s", "model": model} for model in models]
    return {**TURN, "content": "ok", "thinking_blocks": blocks}


@pytest.mark.parametrize("host", HOSTS)
def test_signed_reasoning_goes_to_no_other_model(host: str) -> None:
    body, losses = sent(host, messages=[HISTORY[0], signed("a-1"), *HISTORY[2:]])
    turn = body["messages"][1]
    wants = host in ("deepseek", "moonshot")
    assert (turn.get("thinking_blocks"), turn.get("reasoning_content")) == (None, "" if wants else None)
    assert losses == ("messages[1].thinking_blocks[0]", "messages[1].reasoning_content")


def test_own_reasoning_is_returned_to_the_model() -> None:
    for name in ("theirs", "ant/theirs"):
        body, losses = sent("own", messages=[HISTORY[0], signed(name), *HISTORY[2:]])
        assert (body["messages"][1], losses) == (signed(name), ())
    body, losses = sent("own", messages=[HISTORY[0], signed("a-1", "theirs"), *HISTORY[2:]])
    assert body["messages"][1]["thinking_blocks"] == signed("theirs")["thinking_blocks"]
    assert losses == ("messages[1].thinking_blocks[0]", "messages[1].reasoning_content")
    # What is told in plain words only does not say whose it is.
    told = {"role": "assistant", "content": "ok", "reasoning_content": "hm"}
    body, losses = sent("deepseek", messages=[HISTORY[0], told, HISTORY[3]])
    assert (body["messages"][1], losses) == (told, ())


def test_recorded_request_is_unchanged() -> None:
    request = CHAT.read(json.dumps({"model": "m", "messages": HISTORY, "store": True}).encode())
    before = dict(request.fields)
    wire = wire_between("chat", ("chat",))
    assert wire is not None
    wire.prepare(request, msgspec.Raw(b'"m"'), 100, dialect_of(HOSTS["mistral"]))
    after = json.loads(wire.prepare(request, msgspec.Raw(b'"m"'), 100, DEFAULT_DIALECT).body)
    assert after["messages"] == HISTORY
    assert after["store"] is True
    assert before["messages"] == request.fields["messages"]


@pytest.mark.parametrize(
    ("host", "body", "left"),
    [
        ("openai", {"top_k": 5, "thinking": {"type": "enabled"}, "store": True}, ["thinking", "top_k"]),
        (
            "mistral",
            {"store": False, "user": "u", "metadata": {"a": "b"}, "temperature": 0},
            ["metadata", "store", "user"],
        ),
        ("mistral", {"safe_prompt": True, "random_seed": 3}, []),
        ("google", {"store": False, "reasoning_effort": "low"}, ["store"]),
        ("groq", {"logprobs": True, "service_tier": "flex"}, ["logprobs"]),
        ("own", {"top_k": 5, "store": True}, []),
    ],
)
def test_rejected_parameters_are_dropped_by_name(host: str, body: dict[str, Any], left: list[str]) -> None:
    got, losses = sent(host, **body)
    assert [name for name in losses if "[" not in name] == left
    assert set(body) - set(got) == set(left)


def test_ids_of_tool_calls_fit_and_still_agree() -> None:
    body, losses = sent("mistral")
    call, answer = body["messages"][1]["tool_calls"][0]["id"], body["messages"][2]["tool_call_id"]
    assert call == answer == short_id("call_PTLP8xhu3uwZk4l3")
    assert re.fullmatch("[a-zA-Z0-9]{9}", call)
    assert short_id("abcDEF123") == "abcDEF123"
    assert not [name for name in losses if "id" in name.split(".")[-1]]


def test_turn_without_reasoning_is_accepted() -> None:
    turn = {name: value for name, value in TURN.items() if name not in REASONING_FIELDS}
    body, _ = sent("deepseek", messages=[HISTORY[0], turn, *HISTORY[2:]])
    assert body["messages"][1]["reasoning_content"] == ""
    assert "reasoning_content" not in body["messages"][0]


def test_compatible_body_is_unchanged() -> None:
    request = CHAT.read(json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode())
    for url in HOSTS.values():
        fields, losses = adapt_fields(request.fields, dialect_of(url), THEIRS)
        assert fields is request.fields
        assert losses == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "type",
                    "text",
                    "tool_calls",
                    "id",
                    "tool_call_id",
                    "thinking",
                    *sorted(REASONING_FIELDS),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(VALUES, st.sampled_from(sorted(HOSTS)))
def test_fitting_a_body_is_idempotent(messages: Any, host: str) -> None:
    dialect = dialect_of(HOSTS[host])
    fields = {"messages": msgspec.Raw(msgspec.json.encode(messages)), "store": msgspec.Raw(b"true")}
    got, losses = adapt_fields(fields, dialect, THEIRS)
    body: dict[str, Any] = msgspec.json.decode(msgspec.json.encode({"messages": messages, "store": True}))
    body["model"] = THEIRS
    assert adapt_in_place(body, dialect) == losses
    assert msgspec.json.decode(msgspec.json.encode({**got, "model": THEIRS})) == {**body, "model": "theirs"}
    assert adapt_in_place(body, dialect) == []
    if isinstance(messages, list):
        for message in body["messages"]:
            if isinstance(message, dict):
                assert dialect.rejected_message_fields.isdisjoint(message)
