"""Anthropic messages of the scripted provider, with the official client."""

import textwrap
from typing import Any

import anthropic
import httpx2
import pytest

from overnight.testing import SpawnedProvider

TOOL = {"name": "file", "description": "Files a paper.", "input_schema": {"type": "object"}}


def rules(provider: SpawnedProvider, text: str) -> None:
    provider.set_rules("rules:\n" + textwrap.indent(textwrap.dedent(text), "  "))


def client(provider: SpawnedProvider) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=provider.url, api_key="none", max_retries=0, timeout=20)


def asked(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 4000, "messages": [{"role": "user", "content": text}], **more}


def ask(provider: SpawnedProvider, text: str = "hello", **more: Any) -> anthropic.types.Message:
    return client(provider).messages.create(**asked(text, **more))


def streamed(provider: SpawnedProvider, text: str = "hello", **more: Any) -> anthropic.types.Message:
    with client(provider).messages.stream(**asked(text, **more)) as stream:
        return stream.get_final_message()


def test_stream_equals_the_plain_answer(provider: SpawnedProvider) -> None:
    rules(
        provider,
        """
        - answer:
            thinking: 'What about {last_user}?'
            text: Two papers, then.
            tool_calls: [{name: file, arguments: {at: 'a}b', n: [1, 2.5]}}, {name: file, arguments: {}}]
            usage: {prompt_tokens: 20, completion_tokens: 9, cached_tokens: 5, cache_write_tokens: 3, reasoning_tokens: 4}
        """,
    )
    plain, whole = ask(provider, tools=[TOOL]), streamed(provider, tools=[TOOL])
    different = {"id", "content"}
    assert plain.model_dump(exclude=different) == whole.model_dump(exclude=different)
    assert [block.type for block in plain.content] == ["thinking", "text", "tool_use", "tool_use"]
    for before, after in zip(plain.content, whole.content, strict=True):
        assert before.model_dump(exclude={"id"}) == after.model_dump(exclude={"id"})
    assert plain.stop_reason == "tool_use"
    assert (plain.usage.input_tokens, plain.usage.cache_read_input_tokens) == (12, 5)
    assert provider.stats()["paid_calls"] == 2


def test_thinking_must_be_returned_unchanged(provider: SpawnedProvider) -> None:
    rules(
        provider, "- {match: {tool_result: true}, answer: done}\n- answer: {thinking: hm, tool_calls: [{name: file}]}"
    )
    first = ask(provider, tools=[TOOL])
    result = {"type": "tool_result", "tool_use_id": first.content[1].id, "content": "filed"}
    history = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": [block.to_dict() for block in first.content]},
        {"role": "user", "content": [result]},
    ]
    assert ask(provider, messages=history, tools=[TOOL]).content[0].text == "done"
    with pytest.raises(anthropic.BadRequestError, match="Invalid `signature`"):
        ask(provider, messages=history, tools=[TOOL], model="another")


REFUSED = {
    "text content blocks": {"messages": [{"role": "user", "content": " "}]},
    "first message": {"messages": [{"role": "assistant", "content": "hi"}]},
    "Unexpected role": {"messages": [{"role": "tool", "content": "hi"}]},
    "unknown field": {"extra_body": {"n": 2}},
    "metadata": {"metadata": {"job_id": "j"}},
    "max_tokens": {"max_tokens": 0},
    "greater than `thinking": {"thinking": {"type": "enabled", "budget_tokens": 4000}},
    "temperature: Extra inputs": {"extra_body": {"temperature": 0.5}},
    "may only be set to 1": {
        "thinking": {"type": "adaptive"},
        "extra_body": {"temperature": 0.5},
        "extra_headers": {"anthropic-version": "2023-06-01"},
    },
    "forces tool use": {"thinking": {"type": "adaptive"}, "tools": [TOOL], "tool_choice": {"type": "any"}},
    "while providing tools": {"tool_choice": {"type": "auto"}},
    "pattern": {"tools": [{**TOOL, "name": "a.b"}]},
    "maximum of 4": {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}] * 5},
    "non-whitespace": {"stop_sequences": ["\n"]},
    "unexpected `tool_use_id`": {
        "messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}]}]
    },
    "without `tool_result`": {
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "file", "input": {}}]},
            {"role": "user", "content": "never mind"},
        ]
    },
}


@pytest.mark.parametrize("told", REFUSED)
def test_invalid_requests_are_rejected_free(provider: SpawnedProvider, told: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        ask(provider, **REFUSED[told])
    assert told in str(refused.value) or (told == "unknown field" and "`n`" in str(refused.value))
    assert refused.value.body["error"]["type"] == "invalid_request_error"
    assert provider.stats()["paid_calls"] == 0


def test_version_header_is_required(provider: SpawnedProvider) -> None:
    answer = httpx2.post(f"{provider.base_url}/messages", json=asked())
    assert (answer.status_code, answer.json()["type"]) == (400, "error")


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (402, anthropic.APIStatusError, "billing_error"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.InternalServerError, "overloaded_error"),
    ],
)
def test_injected_errors_have_the_wire_shape(
    provider: SpawnedProvider, status: int, error: type[anthropic.APIStatusError], kind: str
) -> None:
    rules(provider, f"- fault: {{status: {status}}}")
    with pytest.raises(error) as raised:
        ask(provider)
    assert raised.value.status_code == status
    assert raised.value.body["error"]["type"] == kind


def test_cut_stream_breaks_and_is_paid(provider: SpawnedProvider) -> None:
    rules(provider, "- {answer: one two three, fault: {cut_after_chunks: 4, reset: true}}")
    with pytest.raises(httpx2.TransportError):
        streamed(provider)
    assert provider.stats()["paid_calls"] == 1


def test_a_text_ends_at_a_stop_sequence_or_at_the_cap(provider: SpawnedProvider) -> None:
    rules(provider, "- answer: one two three four five")
    stopped = ask(provider, stop_sequences=["three"])
    assert (stopped.stop_reason, stopped.stop_sequence, stopped.content[0].text) == (
        "stop_sequence", "three", "one two ",
    )  # fmt: skip
    assert ask(provider, max_tokens=2).stop_reason == "max_tokens"


def test_the_rules_see_system_tools_and_tool_results(provider: SpawnedProvider) -> None:
    rules(
        provider,
        """
        - {match: {tool_result: true}, answer: 'it said {tool_result}'}
        - {match: {system_contains: terse, tools_offered: [file]}, answer: {tool_calls: [{name: file}]}}
        """,
    )
    called = ask(provider, system="Be terse.", tools=[TOOL]).content[0]
    result = {"type": "tool_result", "tool_use_id": called.id, "content": [{"type": "text", "text": "filed"}]}
    history = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": [called.to_dict()]},
        {"role": "user", "content": [result]},
    ]
    assert ask(provider, messages=history, tools=[TOOL]).content[0].text == "it said filed"


def test_token_counting_is_free(provider: SpawnedProvider) -> None:
    counted = client(provider).messages.count_tokens(model="m", messages=[{"role": "user", "content": "a" * 400}])
    assert counted.input_tokens == 101
    assert provider.stats()["paid_calls"] == 0
