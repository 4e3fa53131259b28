"""Chat over Anthropic messages and back: official types, the scripted API, random conversations."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import anthropic.types
import msgspec
import openai.types.chat
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from openai.lib.streaming._deltas import accumulate_delta
from pydantic import TypeAdapter

from overnight.pricing.usage import anthropic_usage, openai_usage
from overnight.testing.scripted_messages import read, signature
from overnight.wire_formats import chat_over_messages, messages_over_chat
from overnight.wire_formats.chat_stream import Assembly as ChatAssembly
from overnight.wire_formats.contract import AnswerContext, InvalidBody, Losses
from overnight.wire_formats.messages_stream import (
    Assembly,
    decode_answer,
    encode,
    events_of,
    stream_events,
)
from overnight.wire_formats.sse import SseParser

Json = dict[str, Any]
VERSION = [(b"anthropic-version", b"2023-06-01")]
CLAUDE = "claude-opus-4-8"
OLD_CLAUDE = "claude-sonnet-4-5"
PNG = "data:image/png;base64,iVBORw0KGgo="
EVENT = TypeAdapter(anthropic.types.RawMessageStreamEvent)
TOOL = {"type": "function", "function": {"name": "file", "parameters": {"type": "object", "properties": {}}}}


def asked(answer_id: str = "x_1", model: str = "model-a", **body: Any) -> AnswerContext:
    return AnswerContext(answer_id, model, {"messages": [{"role": "user", "content": "hi"}], **body}, 1_767_225_600)


def to_messages(body: Json, model: str = CLAUDE) -> tuple[Json, list[str]]:
    """The request as Anthropic gets it, which must be one that it takes, and what was lost."""
    losses = Losses()
    out = chat_over_messages.request({"model": model, "max_tokens": 8000, **body}, losses)
    read(msgspec.json.encode(out), VERSION)
    return out, list(losses)


def to_chat(body: Json, model: str = "some-model") -> tuple[Json, list[str]]:
    losses = Losses()
    out = messages_over_chat.request({"model": model, "max_tokens": 8000, **body}, losses)
    check_chat(out)
    return out, list(losses)


def check_chat(body: Json) -> None:
    """What OpenAI refuses of a conversation."""
    open_calls: set[str] = set()
    for message in body["messages"]:
        role, content = message["role"], message.get("content")
        if role == "tool":
            assert message["tool_call_id"] in open_calls
            assert isinstance(content, str)
            open_calls.remove(message["tool_call_id"])
            continue
        assert not open_calls, "calls without their results"
        assert role in ("system", "user", "assistant")
        assert isinstance(content, str | list) or (content is None and message.get("tool_calls"))
        open_calls = {call["id"] for call in message.get("tool_calls", ())}
        assert len(open_calls) == len(message.get("tool_calls", ()))
        assert all(len(each) <= 40 for each in open_calls)


def user(*parts: Any) -> Json:
    return {"role": "user", "content": list(parts)}


def text(said: str, **more: Any) -> Json:
    return {"type": "text", "text": said, **more}


MARK = {"cache_control": {"type": "ephemeral"}}


# ── chat → messages: requests ───────────────────────────────────────────────────────────────────────────────────────


def test_plain_conversation_is_translated() -> None:
    body = {
        "messages": [
            {"role": "developer", "content": "Be terse."},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi", "refusal": None, "annotations": []},
            user(text("and this?", **MARK), {"type": "image_url", "image_url": {"url": PNG, "detail": "auto"}}),
        ],
        "temperature": 0.5,
        "stop": ["END", "STOP"],
        "user": "u-1",
        "stream": True,
        "n": 1,
    }
    out, lost = to_messages(body, OLD_CLAUDE)
    assert lost == []
    assert out == {
        "model": OLD_CLAUDE,
        "max_tokens": 8000,
        "system": [text("Be terse.")],
        "messages": [
            user(text("hello")),
            {"role": "assistant", "content": [text("hi")]},
            user(
                text("and this?", **MARK),
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
            ),
        ],
        "temperature": 0.5,
        "stop_sequences": ["END", "STOP"],
        "metadata": {"user_id": "u-1"},
        "stream": True,
    }


def test_tools_calls_and_results_are_translated() -> None:
    call = {"id": "functions.file:0", "type": "function", "function": {"name": "file", "arguments": '{"n": 1}'}}
    empty = {"id": "call_2", "type": "function", "function": {"name": "file", "arguments": ""}}
    body = {
        "messages": [
            {"role": "user", "content": "file it"},
            {"role": "assistant", "content": "", "tool_calls": [call, empty]},
            {"role": "user", "content": "hurry"},
            {"role": "tool", "tool_call_id": "call_2", "content": ""},
            {"role": "tool", "tool_call_id": "functions.file:0", "content": [text("filed"), text("")]},
            {"role": "user", "content": "thanks"},
        ],
        "tools": [{**TOOL, **MARK}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    out, lost = to_messages(body)
    _, called, results = out["messages"]
    ids = [block["id"] for block in called["content"]]
    assert ids == [results["content"][1]["tool_use_id"], "call_2"]
    assert [block["input"] for block in called["content"]] == [{"n": 1}, {}]
    assert [block["type"] for block in results["content"]] == ["tool_result", "tool_result", "text", "text"]
    assert results["content"][1]["content"] == [text("filed")]
    assert out["tools"] == [{"name": "file", "input_schema": {"type": "object", "properties": {}}, **MARK}]
    assert out["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert lost == ["messages[1].tool_calls[0].id"]


def test_calls_without_tools_and_prefills_are_translated() -> None:
    function = {"name": "file", "arguments": "{}"}
    body = {
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "function_call": function},
            {"role": "function", "name": "file", "content": "filed"},
            {"role": "assistant", "content": "It is "},
        ]
    }
    out, lost = to_messages(body)
    assert out["tools"] == [{"name": "file", "input_schema": {"type": "object"}}]
    assert (out["tool_choice"], lost) == ({"type": "none"}, ["messages[-1].role"])
    assert out["messages"][-1] == user(text("Continue."))
    prefilled, lost = to_messages(body, OLD_CLAUDE)
    assert (prefilled["messages"][-1]["content"], lost) == ([text("It is")], [])


@pytest.mark.parametrize("model", [CLAUDE, OLD_CLAUDE])
def test_mid_conversation_instruction_stays_if_supported(model: str) -> None:
    body = {
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "system", "content": "From here on, rhyme."},
            {"role": "user", "content": "y"},
        ]
    }
    out, lost = to_messages(body, model)
    if model == CLAUDE:
        assert [turn["role"] for turn in out["messages"]] == ["user", "system"]
        assert lost == []
    else:
        assert (out["system"], lost) == ([text("From here on, rhyme.")], ["messages[1].role"])


def test_lone_system_prompt_becomes_the_question() -> None:
    assert to_messages({"messages": [{"role": "system", "content": "Say hi."}]})[0]["messages"] == [
        user(text("Say hi."))
    ]
    out, lost = to_messages({"messages": [{"role": "assistant", "content": "hi"}, {"role": "user", "content": " "}]})
    assert [turn["role"] for turn in out["messages"]] == ["user", "assistant", "user"]
    assert lost == ["messages[0].role", "messages[-1].role"]


SAID = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("more", "lost"),
    [
        ({"n": 2, "seed": 7, "logprobs": True, "logit_bias": {"1": 2}}, ["n", "seed", "logprobs", "logit_bias"]),
        ({"frequency_penalty": 0, "presence_penalty": 0.0, "store": False, "seed": None}, []),
        ({"stop": ["\n", "END"]}, ["stop[0]"]),
        ({"user": "a@b.example"}, ["user"]),
        ({"metadata": {"user_id": "u", "order": "7"}}, ["metadata.order"]),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, ["tools[0]"]),
        ({"service_tier": "flex"}, ["service_tier"]),
        ({"messages": [user({"type": "input_audio", "input_audio": {}}, text("x"))]}, ["messages[0].content[0]"]),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, ["messages[0].name"]),
        ({"messages": [*SAID, {"role": "assistant", "content": "y", "reasoning_content": "hm"}, *SAID]},
         ["messages[1].reasoning_content"]),
    ],
)  # fmt: skip
def test_untranslatable_fields_are_named(more: Json, lost: list[str]) -> None:
    assert sorted(to_messages({"messages": SAID, **more})[1]) == sorted(lost)


@pytest.mark.parametrize(
    ("model", "kept", "lost"),
    [
        ("claude-opus-4-8", {}, ["temperature", "top_k"]),
        ("claude-sonnet-4-5", {"temperature": 1.0, "top_k": 5}, ["temperature"]),
        ("kimi-k3", {"temperature": 1.0, "top_k": 5}, ["temperature"]),
    ],
)
def test_sampling_goes_to_supporting_models(model: str, kept: Json, lost: list[str]) -> None:
    out, named = to_messages({"messages": SAID, "temperature": 1.7, "top_p": 1, "top_k": 5}, model)
    assert {name: out[name] for name in ("temperature", "top_p", "top_k") if name in out} == kept
    assert named == lost


@pytest.mark.parametrize(
    ("model", "asked_for", "thinking", "effort"),
    [
        ("claude-opus-4-8", {"reasoning_effort": "xhigh"}, {"type": "adaptive"}, "xhigh"),
        ("claude-opus-4-6", {"reasoning_effort": "xhigh"}, {"type": "adaptive"}, "high"),
        ("claude-opus-5", {"thinking": {"type": "enabled", "budget_tokens": 3000}}, {"type": "adaptive"}, "medium"),
        ("claude-sonnet-4-5", {"reasoning_effort": "low"}, {"type": "enabled", "budget_tokens": 1024}, None),
        ("claude-sonnet-4-5", {"reasoning": {"max_tokens": 7000}}, {"type": "enabled", "budget_tokens": 7000}, None),
        ("claude-sonnet-4-5", {"reasoning_effort": "none"}, {"type": "disabled"}, None),
        ("kimi-k3", {"reasoning_effort": "medium"}, {"type": "enabled", "budget_tokens": 4000}, None),
    ],
)
def test_effort_is_translated_per_model(model: str, asked_for: Json, thinking: Json, effort: str | None) -> None:
    out, lost = to_messages({"messages": SAID, **asked_for, "temperature": 1}, model)
    assert (out["thinking"], out.get("output_config", {}).get("effort"), lost) == (thinking, effort, [])


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("claude-fable-5", {"reasoning_effort": "none"}),
        ("claude-opus-4-8", {"reasoning_effort": "high", "tools": [TOOL], "tool_choice": "required"}),
        ("claude-sonnet-4-5", {"reasoning_effort": "high", "max_tokens": 1000}),
    ],
)
def test_unsupported_thinking_is_dropped_by_name(model: str, more: Json) -> None:
    out, lost = to_messages({"messages": SAID, **more}, model)
    assert ("thinking" in out, lost) == (False, ["reasoning_effort"])


SCHEMA = {"type": "object", "properties": {"n": {"type": ["integer", "null"], "minimum": 1}}, "required": ["n"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}


def test_output_schema_is_translated_with_instructions() -> None:
    out, lost = to_messages({"messages": SAID, "response_format": FORMAT})
    number = {"type": "integer", "description": "(minimum: 1)"}
    assert out["output_config"]["format"]["schema"] == {
        "type": "object",
        "properties": {"n": {"anyOf": [number, {"type": "null"}]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    assert lost == ["response_format.json_schema.schema.properties.n.minimum"]


def test_schema_becomes_a_tool_or_an_instruction() -> None:
    out, lost = to_messages({"messages": SAID, "response_format": FORMAT}, "kimi-k3")
    assert (out["tools"][0]["input_schema"], lost) == (SCHEMA, [])
    message = whole_message([{"type": "tool_use", "id": "t", "name": out["tools"][0]["name"], "input": {"n": 3}}])
    told = chat_over_messages.answer({**message, "stop_reason": "tool_use"}, asked())
    assert told["choices"][0]["message"]["content"] == '{"n":3}'
    assert told["choices"][0]["finish_reason"] == "stop"
    out, lost = to_messages({"messages": SAID, "response_format": FORMAT, "tools": [TOOL]}, "kimi-k3")
    assert "JSON Schema" in out["system"][0]["text"]
    assert lost == ["response_format"]


def test_last_cache_markers_are_kept() -> None:
    body = {"messages": [user(*(text(str(n), **MARK) for n in range(6)))], "tools": [{**TOOL, **MARK}]}
    out, lost = to_messages(body)
    assert [("cache_control" in block) for block in out["messages"][0]["content"]] == [
        False,
        False,
        True,
        True,
        True,
        True,
    ]
    assert lost == ["tools[0].cache_control", "messages.cache_control", "messages.cache_control"]


def test_thinking_returns_only_to_its_model() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": signature(CLAUDE, "hm")}
    call = {"type": "tool_use", "id": "t1", "name": "file", "input": {}}
    told = chat_over_messages.answer({**whole_message([thought, call]), "stop_reason": "tool_use"}, asked(model=CLAUDE))
    said = told["choices"][0]["message"]
    assert said["reasoning_content"] == "hm"
    body = {"messages": [*SAID, said, {"role": "tool", "tool_call_id": "t1", "content": "ok"}], "tools": [TOOL]}
    out, lost = to_messages(body)
    assert out["messages"][1]["content"] == [thought, call]
    assert lost == []
    out, lost = to_messages(body, OLD_CLAUDE)
    assert out["messages"][1]["content"] == [call]
    assert lost == ["messages[1].thinking_blocks[0]"]
    # Amid tools such a model would want the thought that it never had.
    out, lost = to_messages({**body, "reasoning_effort": "high"}, OLD_CLAUDE)
    assert "thinking" not in out
    assert "reasoning_effort" in lost


# ── messages → chat: requests ───────────────────────────────────────────────────────────────────────────────────────


def test_messages_conversation_is_translated_to_chat() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    body = {
        "system": [text("Be terse."), text("Be kind.")],
        "messages": [
            {"role": "user", "content": "file it"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "real"},
                    text("Filing."),
                    {"type": "tool_use", "id": "toolu_" + "x" * 60, "name": "f" * 70, "input": {"n": 1}},
                ],
            },
            user(
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_" + "x" * 60,
                    "content": [text("no"), image],
                    "is_error": True,
                },
                text("why?"),
            ),
        ],
        "tools": [{"name": "f" * 70, "input_schema": SCHEMA, "description": "Files.", **MARK}],
        "tool_choice": {"type": "tool", "name": "f" * 70, "disable_parallel_tool_use": True},
        "stop_sequences": ["END"],
        "temperature": 0.5,
        "top_k": 5,
        "metadata": {"user_id": "u"},
        "stream": True,
    }
    out, lost = to_chat(body)
    system, _, called, result, said = out["messages"]
    assert system == {"role": "system", "content": "Be terse.\nBe kind."}
    assert (called["content"], result["content"]) == ("Filing.", "Error: no")
    assert called["tool_calls"][0]["function"]["arguments"] == '{"n":1}'
    [name] = {
        called["tool_calls"][0]["function"]["name"],
        out["tools"][0]["function"]["name"],
        out["tool_choice"]["function"]["name"],
    }
    assert len(name) == 64
    assert [part["type"] for part in said["content"]] == ["text", "image_url", "text"]
    assert said["content"][1]["image_url"]["url"] == PNG
    assert (out["stop"], out["temperature"], out["parallel_tool_calls"], out["stream"]) == (["END"], 0.5, False, True)
    assert sorted(lost) == sorted([
        "top_k", "metadata.user_id", "messages[1].content[0]", "messages[1].content[2].id", "messages[1].content[2].name",
        "tools[0].name", "tools[0].cache_control",
    ])  # fmt: skip


def test_documents_and_citations_are_translated() -> None:
    body = {
        "messages": [
            user(
                {
                    "type": "document",
                    "title": "a",
                    "source": {"type": "text", "media_type": "text/plain", "data": "words"},
                },
                {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}},
                {"type": "document", "source": {"type": "file", "file_id": "f"}},
                {"type": "search_result", "source": "http://a", "title": "t", "content": [text("found")]},
            )
        ]
    }
    out, lost = to_chat(body)
    assert lost == ["messages[0].content[2]"]
    assert [part.get("text") for part in out["messages"][0]["content"]] == ["a\nwords", None, "t\nhttp://a\nfound"]


@pytest.mark.parametrize(
    ("model", "more", "sent", "lost"),
    [
        ("some", {"thinking": {"type": "enabled", "budget_tokens": 4000}}, "medium", []),
        ("some", {"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "xhigh", []),
        ("gpt-4o", {"output_config": {"effort": "low"}}, None, ["output_config.effort"]),
        ("gpt-5.6", {"output_config": {"effort": "low"}, "tools": [{"name": "a"}]}, "none", ["output_config.effort"]),
        ("gpt-5", {"thinking": {"type": "adaptive"}, "temperature": 0.2}, "high", ["temperature"]),
    ],
)
def test_thinking_becomes_effort(model: str, more: Json, sent: str | None, lost: list[str]) -> None:
    out, named = to_chat({"messages": SAID, **more}, model)
    assert (out.get("reasoning_effort"), named) == (sent, lost)


def test_output_format_is_enforced_if_possible() -> None:
    closed = {**SCHEMA, "additionalProperties": False}
    for schema, strict in ((SCHEMA, False), (closed, True)):
        body = {"messages": SAID, "output_config": {"format": {"type": "json_schema", "schema": schema}}}
        assert to_chat(body)[0]["response_format"] == {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": strict},
        }


def test_chat_reasoning_returns_only_to_its_model() -> None:
    told = messages_over_chat.answer(
        whole_chat({"content": "ok", "reasoning_content": "hm"}), asked(model="own/deep-1")
    )
    assert told["content"][0] == {"type": "thinking", "thinking": "hm", "signature": "overnight/own/deep-1"}
    talk = {"messages": [*SAID, {"role": "assistant", "content": told["content"]}, *SAID]}
    out, lost = to_chat(talk, "deep-1")
    assert (out["messages"][1]["reasoning_content"], lost) == ("hm", [])
    out, lost = to_chat(talk, "other")
    assert ("reasoning_content" in out["messages"][1], lost) == (False, ["messages[1].content[0]"])


# ── what cannot be carried: refused, or named ───────────────────────────────────────────────────────────────────────

PICTURE_ELSEWHERE = {"type": "image", "source": {"type": "file", "file_id": "f"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}


def asks(content: Any) -> Json:
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        *[(asks(content), "messages[0].content") for content in (5, None, {"a": 1}, True)],
        (asks([5]), "messages[0].content[0]"),
        (asks([text(5)]), "messages[0].content[0].text"),  # type: ignore[arg-type]
        (asks([SOUND]), "messages[0].content"),
        ({"messages": [{"role": "system", "content": "Be brief."}, *asks([SOUND])["messages"]]}, "messages[1].content"),
        ({"messages": [*SAID, {"role": "assistant", "content": "y"}, user(SOUND)]}, "messages[2].content"),
        ({"messages": [{"role": "assistant", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "y", "tool_calls": 5}]}, "messages[0].tool_calls"),
        (asks(" "), "messages"),
        ({"messages": [{"role": "banana", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"stop": 5}, "stop"),
        ({"stop": ["x", 5]}, "stop[1]"),
        ({"user": 5}, "user"),
        ({"thinking": 5}, "thinking"),
        ({"response_format": 5}, "response_format"),
        ({"reasoning_effort": 5}, "reasoning_effort"),
        ({"output_config": 5}, "output_config"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"functions": [5]}, "functions[0]"),
    ],
)
def test_invalid_chat_request_is_rejected_by_field(body: Json, param: str) -> None:
    for model in (CLAUDE, OLD_CLAUDE):
        with pytest.raises(InvalidBody) as refused:
            to_messages({"messages": SAID, **body}, model)
        assert refused.value.param == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        *[(asks(content), "messages[0].content") for content in (5, None, {"a": 1}, True)],
        (asks([5]), "messages[0].content[0]"),
        (asks([text(5)]), "messages[0].content[0].text"),  # type: ignore[arg-type]
        (asks([PICTURE_ELSEWHERE]), "messages[0].content"),
        ({"messages": [*SAID, {"role": "assistant", "content": "y"}, user(PICTURE_ELSEWHERE)]}, "messages[2].content"),
        (asks([{"type": "tool_result", "tool_use_id": "t", "content": 5}]), "messages[0].content[0].content"),
        (asks(""), "messages"),
        ({"messages": [*SAID, {"role": "banana", "content": "x"}]}, "messages[1].role"),
        ({"stop_sequences": {"a": 1}}, "stop_sequences"),
        ({"stop_sequences": ["x", 5]}, "stop_sequences[1]"),
        ({"thinking": 5}, "thinking"),
        ({"thinking": {"type": "enabled", "budget_tokens": "many"}}, "thinking.budget_tokens"),
        ({"output_config": 5}, "output_config"),
        ({"output_config": {"effort": 5}}, "output_config.effort"),
        ({"output_config": {"format": 5}}, "output_config.format"),
        ({"output_format": 5}, "output_format"),
        ({"tool_choice": "any"}, "tool_choice"),
    ],
)
def test_invalid_messages_request_is_rejected_by_field(body: Json, param: str) -> None:
    with pytest.raises(InvalidBody) as refused:
        to_chat({"messages": SAID, **body})
    assert refused.value.param == param


SEARCH = {"type": "web_search_20250305", "name": "web_search"}
OTHER = {"type": "function", "function": {"name": "other"}}


def allowed(mode: str, *tools: Json) -> Json:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


@pytest.mark.parametrize(
    ("more", "choice", "lost"),
    [
        ({"tool_choice": "required"}, None, ["tool_choice"]),
        ({"tool_choice": OTHER}, None, ["tool_choice"]),
        ({"tool_choice": "auto"}, None, []),
        ({"tools": [TOOL], "tool_choice": OTHER}, None, ["tool_choice"]),
        ({"tools": [TOOL], "tool_choice": None, "function_call": {"name": "file"}}, "tool", []),
        ({"tools": [TOOL], "tool_choice": allowed("required", OTHER)}, "none", ["tool_choice"]),
        ({"tools": [TOOL, OTHER], "tool_choice": allowed("required", OTHER)}, "any", []),
        ({"reasoning_effort": "banana"}, None, ["reasoning_effort"]),
        ({"reasoning": {"effort": "banana"}}, None, ["reasoning.effort"]),
        ({"response_format": {"type": "grammar"}}, None, ["response_format"]),
    ],
)
def test_unsupported_chat_fields_are_named(more: Json, choice: str | None, lost: list[str]) -> None:
    for model in (CLAUDE, OLD_CLAUDE):
        out, named = to_messages({"messages": SAID, **more}, model)
        assert (out.get("tool_choice", {}).get("type"), named) == (choice, lost)
        assert not {"thinking", "system", "output_config"} & out.keys()


@pytest.mark.parametrize(
    ("more", "choice", "lost"),
    [
        ({"tool_choice": {"type": "any"}}, None, ["tool_choice"]),
        ({"tool_choice": {"type": "auto"}}, None, []),
        ({"tools": [SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}}, None, ["tools[0]", "tool_choice"]),
        (
            {"tools": [SEARCH, {"name": "f"}], "tool_choice": {"type": "tool", "name": "web_search"}},
            None,
            ["tools[0]", "tool_choice"],
        ),
        ({"tools": [SEARCH, {"name": "f"}], "tool_choice": {"type": "any"}}, "required", ["tools[0]"]),
        ({"output_config": {"format": {"type": "zzz"}}}, None, ["output_config.format"]),
        ({"output_format": {"type": "zzz"}}, None, ["output_format"]),
        ({"thinking": {"type": "zzz"}}, None, ["thinking"]),
    ],
)
def test_unsupported_messages_fields_are_named(more: Json, choice: str | None, lost: list[str]) -> None:
    out, named = to_chat({"messages": SAID, **more})
    assert (out.get("tool_choice"), named) == (choice, lost)
    assert not {"response_format", "reasoning_effort"} & out.keys()


def test_document_url_goes_to_messages_only() -> None:
    paper = {"type": "document", "source": {"type": "url", "url": "https://example.test/a.pdf"}}
    out, lost = to_chat({"messages": [user(paper, text("read"))]})
    assert (out["messages"], lost) == ([{"role": "user", "content": "read"}], ["messages[0].content[0]"])
    file = {"type": "file", "file": {"file_data": "https://example.test/a.pdf"}}
    out, lost = to_messages({"messages": [user(file, text("read"))]})
    assert (out["messages"], lost) == ([user(paper, text("read"))], [])


def test_mixed_blocks_are_read_with_losses() -> None:
    out, lost = to_chat({"messages": [user("hello", text("x"))]})
    assert (out["messages"], lost) == ([{"role": "user", "content": "hello\nx"}], [])
    out, lost = to_chat({"messages": [user(PICTURE_ELSEWHERE), *SAID]})
    assert (out["messages"], lost) == (SAID, ["messages[0].content[0]"])
    picture = {"type": "image_url", "image_url": {"url": PNG}}
    talk = [user(SOUND), *SAID, {"role": "assistant", "content": [text("a"), picture]}, *SAID]
    out, lost = to_messages({"messages": talk})
    assert lost == ["messages[0].content[0]", "messages[2].content[1]"]
    assert [turn["content"] for turn in out["messages"]] == [[text("x")], [text("a")], [text("x")]]


# ── answers, whole and in pieces ────────────────────────────────────────────────────────────────────────────────────


def whole_message(content: list[Json], **more: Any) -> Json:
    usage = {"input_tokens": 9, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 2, "output_tokens": 7}
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}
    return {**head, "stop_sequence": None, "content": content, "usage": usage, **more}


def whole_chat(said: Json, **more: Any) -> Json:
    usage = {"prompt_tokens": 15, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}}
    choice = {"index": 0, "message": {"role": "assistant", **said}, "finish_reason": "stop", **more}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def sdk_message(events: Iterable[Json]) -> Json:
    """What Anthropic's SDK makes of the events."""
    snapshot, buffers = None, {}
    for event in events:
        if event["type"] == "ping":
            continue
        snapshot = accumulate_event(event=EVENT.validate_python(event), current_snapshot=snapshot, json_bufs=buffers)
    assert snapshot is not None
    found = snapshot.to_dict()
    for block in found["content"]:
        block.pop("parsed_output", None)
    return found


def sdk_choice(chunks: Iterable[Json]) -> Json:
    """What OpenAI's SDK makes of the chunks."""
    message: dict[Any, Any] = {}
    reason = None
    for chunk in chunks:
        openai.types.chat.ChatCompletionChunk.model_validate(chunk)
        for choice in chunk["choices"]:
            message = accumulate_delta(message, json.loads(json.dumps(choice["delta"])))
            reason = choice["finish_reason"] or reason
    for call in message.get("tool_calls", ()):
        del call["index"]
    return {"message": message, "finish_reason": reason}


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
spoken = words.filter(lambda said: bool(said.strip()))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
inputs = st.dictionaries(words, values, max_size=3)
blocks = st.lists(
    st.one_of(
        st.builds(text, words),
        st.builds(lambda t, s: {"type": "thinking", "thinking": t, "signature": s}, words, spoken),
        st.builds(lambda d: {"type": "redacted_thinking", "data": d}, spoken),
        st.builds(lambda n, i: {"type": "tool_use", "name": f"tool_{n}", "input": i}, st.integers(0, 9), inputs),
    ),
    max_size=5,
)


GROWS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


def streamed(message: Json, data: st.DataObject, spaces: str = "") -> Iterator[Json]:
    """The events of a provider that cuts its pieces as it likes, and writes its JSON as it likes."""
    for event in events_of(message):
        delta = event.get("delta") or {}
        field = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}.get(
            delta.get("type", "")
        )
        if field is None:
            yield event
            continue
        said = delta[field]
        if field == "partial_json":
            said = json.dumps(json.loads(said), separators=("," + spaces, ":" + spaces))
        for piece in cut(said, data):
            yield {**event, "delta": {**delta, field: piece}}
        if data.draw(st.booleans()):
            yield {"type": "ping"}


def cut(said: str, data: st.DataObject) -> list[str]:
    at = sorted(data.draw(st.lists(st.integers(0, len(said)), max_size=3)))
    return [said[start:end] for start, end in zip([0, *at], [*at, len(said)], strict=True)]


@given(blocks, st.data(), st.sampled_from(["", " "]))
def test_streamed_message_is_assembled_like_the_sdk(content: list[Json], data: Any, spaces: str) -> None:
    content = [
        {**block, **({"id": f"t{at}"} if block["type"] == "tool_use" else {})} for at, block in enumerate(content)
    ]
    message = whole_message(content)
    events = list(streamed(message, data, spaces))
    assembly = Assembly()
    tellings = [event["type"] for event in events if assembly.take(event)]
    assert tellings[-1] == "message_delta"
    assert assembly.is_complete
    completion = json.loads(assembly.completion())
    assert completion == message
    assert {name: value for name, value in sdk_message(events).items() if value is not None} == {
        name: value for name, value in completion.items() if value is not None
    }
    again = [json.loads(each) for each in SseParser().feed(b"".join(stream_events(assembly.completion(), 0.5)))]
    assert again[-2]["usage"]["cost_usd"] == 0.5
    assert sdk_message(again)["content"] == sdk_message(events)["content"]


@given(blocks, st.data(), st.sampled_from(["", " "]))
def test_message_stream_to_chat_equals_its_record(content: list[Json], data: Any, spaces: str) -> None:
    content = [
        {**block, **({"id": f"t{at}"} if block["type"] == "tool_use" else {})} for at, block in enumerate(content)
    ]
    calls = any(block["type"] == "tool_use" for block in content)
    message = whole_message(content, stop_reason="tool_use" if calls else "max_tokens")
    who = asked()
    assembly, pieces = Assembly(), chat_over_messages.StreamTranslator(who)
    chunks: list[Json] = []
    for event in streamed(message, data, spaces):
        assembly.take(event)
        chunks += pieces.take(event)
    usage = anthropic_usage(assembly.usage)
    assert usage is not None
    chunks += pieces.end(0.25, usage)
    recorded = chat_over_messages.answer(decode_answer(assembly.completion()), who)
    openai.types.chat.ChatCompletion.model_validate(recorded)
    choice = recorded["choices"][0]
    assert sdk_choice(chunks) == {"message": choice["message"], "finish_reason": choice["finish_reason"]}
    own = ChatAssembly()
    for chunk in chunks:
        own.take(chunk)
    assert own.is_complete
    assert json.loads(own.completion())["choices"][0]["message"] == choice["message"]
    assert chunks[-1]["usage"] == {**recorded["usage"], "cost_usd": 0.25}
    assert recorded["usage"]["prompt_tokens"] == 15


sayings = st.fixed_dictionaries(
    {"content": st.none() | words},
    optional={
        "reasoning_content": spoken,
        "refusal": st.none() | spoken,
        "tool_calls": st.lists(
            st.builds(
                lambda n, i, s: {"type": "function", "function": {"name": f"tool_{n}", "arguments": json.dumps(i, indent=s)}},
                st.integers(0, 9), inputs, st.none() | st.just(1),
            ),
            max_size=3,
        ),
    },
)  # fmt: skip


def chunked(completion: Json, data: st.DataObject) -> Iterator[Json]:
    [choice] = completion["choices"]
    said = choice["message"]

    def chunk(delta: Json, reason: str | None = None) -> Json:
        given = {"index": 0, "delta": delta, "finish_reason": reason}
        return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [given]}

    yield chunk({"role": "assistant", "content": ""})
    for name in ("reasoning_content", "content", "refusal"):
        for piece in cut(said.get(name) or "", data):
            yield chunk({name: piece})
    for index, call in enumerate(said.get("tool_calls", ())):
        head, *rest = cut(call["function"]["arguments"], data)
        function = {"name": call["function"]["name"], "arguments": head}
        yield chunk({"tool_calls": [{"index": index, "id": call["id"], "type": "function", "function": function}]})
        for piece in rest:
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield chunk({}, choice["finish_reason"])
    yield {**chunk({}), "choices": [], "usage": completion["usage"]}


@given(sayings, st.sampled_from(["stop", "length", "tool_calls", "content_filter"]), st.data())
def test_chat_stream_to_messages_equals_its_record(said: Json, reason: str, data: Any) -> None:
    for at, call in enumerate(said.get("tool_calls", ())):
        call["id"] = data.draw(st.sampled_from(["", f"functions.a:{at}", f"call_{at}"]))
    assume(reason != "tool_calls" or said.get("tool_calls"))
    completion = whole_chat(said, finish_reason=reason)
    who = asked("msg_9")
    pieces, chat, events = messages_over_chat.StreamTranslator(who), ChatAssembly(), []
    for chunk in chunked(completion, data):
        chat.take(chunk)
        events += pieces.take(chunk)
    usage = openai_usage(chat.usage)
    assert usage is not None
    events += pieces.end(0.25, usage)
    recorded = pieces.arranged(messages_over_chat.answer(json.loads(chat.completion()), who))
    anthropic.types.Message.model_validate(recorded)
    found = sdk_message(events)
    assert found["content"] == json.loads(json.dumps(recorded["content"]))
    for name in ("id", "model", "stop_reason", "stop_sequence"):
        assert found[name] == recorded[name]
    assert found.get("stop_details") == recorded.get("stop_details")
    assert {**found["usage"], "cost_usd": 0.25} == {**recorded["usage"], "cost_usd": 0.25}
    own = Assembly()
    for event in events:
        own.take(event)
        assert encode(event).startswith(b"event: ")
    assert own.is_complete
    assert json.loads(own.completion())["content"] == json.loads(json.dumps(recorded["content"]))
    assert recorded["usage"]["input_tokens"] + recorded["usage"]["cache_read_input_tokens"] == 15


def test_interleaved_chunks_form_blocks_one_after_another() -> None:
    def chunk(delta: Json, reason: str | None = None) -> Json:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    def call(at: int, arguments: str, **more: Any) -> Json:
        name = {"name": "file"} if more else {}
        return {"tool_calls": [{"index": at, "function": {"arguments": arguments, **name}, **more}]}

    pieces = messages_over_chat.StreamTranslator(asked())
    chunks = [
        chunk({"content": "\n"}),
        chunk({"reasoning": "h"}),
        chunk({"content": "a"}),
        chunk(call(0, '{"n"', id="a")),
        chunk(call(1, "{", id="b")),
        chunk(call(0, ": 1}")),
        chunk({"content": "b", "reasoning": "m"}),
        chunk(call(1, "}")),
        chunk({}, "tool_calls"),
    ]
    usage = openai_usage({"prompt_tokens": 1, "completion_tokens": 1})
    assert usage is not None
    events = [event for each in chunks for event in pieces.take(each)] + pieces.end(None, usage)
    found = sdk_message(events)
    kinds = [
        "thinking",
        "text",
        "tool_use",
        "tool_use",
        "thinking",
        "text",
    ]  # the calls are incomplete when others begin
    assert [block["type"] for block in found["content"]] == kinds
    assert [found["content"][at]["thinking"] for at in (0, 4)] == ["h", "m"]
    assert [found["content"][at]["text"] for at in (1, 5)] == ["a", "b"]
    assert [found["content"][at]["input"] for at in (2, 3)] == [{"n": 1}, {}]


def test_non_json_arguments_are_kept() -> None:
    said = {"tool_calls": [{"id": "a", "function": {"name": "file", "arguments": '{"a": '}}]}
    told = messages_over_chat.answer(whole_chat(said, finish_reason="length"), asked())
    assert told["content"][0]["input"] == {"unparsed_input": '{"a": '}
    assert told["stop_reason"] == "max_tokens"


def test_citations_become_annotations() -> None:
    cited = {
        "type": "web_search_result_location",
        "url": "http://a",
        "title": "A",
        "cited_text": "x",
        "encrypted_index": "e",
    }
    content = [text("one "), {**text("two"), "citations": [cited]}]
    told = chat_over_messages.answer(whole_message(content), asked())
    [note] = told["choices"][0]["message"]["annotations"]
    assert note["url_citation"] == {"url": "http://a", "title": "A", "start_index": 4, "end_index": 7}


# ── random talks ────────────────────────────────────────────────────────────────────────────────────────────────────

ids = st.text("abcXYZ019_-.:|", min_size=1, max_size=60)


@st.composite
def talks(draw: Any) -> list[Json]:
    """A chat conversation that OpenAI would take."""
    messages: list[Json] = []
    used: set[str] = set()
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["user", "user", "assistant", "tools", "system"]))
        if kind == "tools":
            names = draw(st.lists(ids.filter(lambda each: each not in used), min_size=1, max_size=3, unique=True))
            used.update(names)
            calls = [
                {"id": each, "type": "function", "function": {"name": "file", "arguments": json.dumps(draw(inputs))}}
                for each in names
            ]
            messages.append({"role": "assistant", "content": draw(st.none() | words), "tool_calls": calls})
            for each in draw(st.permutations(names)):
                messages.append({"role": "tool", "tool_call_id": each, "content": draw(words)})
        else:
            messages.append({"role": kind, "content": draw(words)})
    return messages


@given(talks(), st.sampled_from([CLAUDE, OLD_CLAUDE, "kimi-k3", "claude-fable-5-2"]), st.booleans())
def test_any_valid_chat_becomes_valid_messages(talk: list[Json], model: str, thinks: bool) -> None:
    more = {"reasoning_effort": "medium"} if thinks else {}
    if says_nothing(talk):
        with pytest.raises(InvalidBody, match="messages"):
            to_messages({"messages": talk, "tools": [TOOL], **more}, model)
    else:
        to_messages({"messages": talk, "tools": [TOOL], **more}, model)


def says_nothing(talk: list[Json]) -> bool:
    return not any((message.get("content") or "").strip() or message.get("tool_calls") for message in talk)


def gist(messages: list[Json]) -> list[Any]:
    """What a talk says, whoever's turn is cut where; instructions apart, results in the order of their calls."""
    said: list[Any] = []
    for message in messages:
        role = message["role"]
        content = message.get("content") or ""
        texts = [content] if isinstance(content, str) else [part["text"] for part in content]
        words = "".join("".join(texts).split())
        if words and role != "tool":
            said.append((role, words))
        for call in message.get("tool_calls", ()):
            said.append(("call", call["id"], json.loads(call["function"]["arguments"])))
        if role == "tool":
            said.append(("result", message["tool_call_id"], words))
    return said


def joined(said: list[Any]) -> list[Any]:
    kept: list[Any] = []
    for each in said:
        if kept and len(each) == 2 and kept[-1][0] == each[0]:
            kept[-1] = (each[0], kept[-1][1] + each[1])
        else:
            kept.append(each)
    return kept


@given(talks())
def test_translation_round_trips(talk: list[Json]) -> None:
    talk = [message for message in talk if message["role"] != "system"]
    for message in talk:
        for call in message.get("tool_calls", ()):
            call["id"] = call["id"].replace(".", "_").replace(":", "_").replace("|", "_")[:30]
        if message["role"] == "tool":
            message["tool_call_id"] = message["tool_call_id"].replace(".", "_").replace(":", "_").replace("|", "_")[:30]
    ids_of = [call["id"] for message in talk for call in message.get("tool_calls", ())]
    if len(set(ids_of)) < len(ids_of) or says_nothing(talk):
        return
    over, lost = to_messages({"messages": talk, "tools": [TOOL]}, OLD_CLAUDE)
    back = messages_over_chat.request(over, Losses())
    before, after = joined(gist(talk)), joined(gist(back["messages"]))
    added = [each for each in lost if each.endswith(".role")]
    if not added:
        assert after == before
    else:
        assert [each for each in after if each != ("user", "Continue.")] == before


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.sampled_from([
        "", " ", "text", "user", "assistant", "system", "tool", "function", "image", "image_url", "document", "tool_use",
        "tool_result", "thinking", "enabled", "auto", "data:image/png;base64,xx", "base64", "json_schema", "object", "{}", "[1]",
    ]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from([
            "type", "text", "role", "content", "source", "tool_calls", "function", "name", "arguments", "id", "input", "thinking",
            "signature", "cache_control", "image_url", "url", "file", "thinking_blocks", "schema", "properties", "items",
            "json_schema", "tool_use_id", "data", "budget_tokens", "enabled", "format", "anyOf", "model", "title", "effort",
        ]),
        inner, max_size=5,
    ),
    max_leaves=25,
)  # fmt: skip
bodies = st.dictionaries(
    st.sampled_from([
        "system", "stop", "stop_sequences", "temperature", "top_p", "top_k", "user", "metadata", "tools", "functions",
        "tool_choice", "function_call", "parallel_tool_calls", "response_format", "reasoning_effort", "reasoning", "thinking",
        "output_config", "output_format", "service_tier", "cache_control", "n", "stream",
    ]),
    anything,
    max_size=8,
)  # fmt: skip


nonsense = st.builds(
    lambda role, rest: {"role": role, "content": "x", **rest},
    st.sampled_from(["user", "assistant", "system"]),
    st.dictionaries(
        st.sampled_from(["content", "tool_calls", "thinking_blocks", "name", "tool_call_id", "function_call", "refusal",
                         "cache_control", "role"]),
        anything, max_size=3,
    ),
)  # fmt: skip


@settings(max_examples=300)
@given(bodies, st.lists(nonsense, min_size=1, max_size=4),
       st.sampled_from(["claude-opus-5", "claude-sonnet-4-5", "gpt-5.6", "x"]))  # fmt: skip
def test_random_input_causes_no_internal_error(body: Json, messages: list[Json], model: str) -> None:
    for module in (chat_over_messages, messages_over_chat):
        asking = {**body, "messages": messages, "model": model, "max_tokens": 2000}
        refused = refusal(module, json.loads(json.dumps(asking)))
        assert refused is None or (refused.param and str(refused).startswith(refused.param))
        module.StreamTranslator(asked(**body))


def refusal(module: Any, body: Json) -> InvalidBody | None:
    try:
        msgspec.json.encode(module.request(body, Losses()))
    except InvalidBody as refused:
        return refused
    return None
