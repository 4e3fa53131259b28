"""Anthropic messages by the official clients, to messages and chat targets, and chat to messages."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from anthropic.types import RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter

from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, gateway_process, routed, serving

NATIVE, CHAT = "claude-haiku-4-5", "deepseek-chat"
BOTH = pytest.mark.parametrize("model", [NATIVE, CHAT])
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
TOOL: Any = {
    "name": "look",
    "description": "Looks.",
    "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
}
CHAT_TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": TOOL["input_schema"]}}
RULES = """
rules:
  - match: {user_contains: look, tool_result: false, tools_offered: [look]}
    answer:
      thinking: hm hm
      text: looking
      tool_calls: [{name: look, arguments: '{"at":  "sky"}'}, {name: look, arguments: {at: sea}}]
  - match: {tool_result: true}
    answer: 'saw {tool_result}'
  - match: {user_contains: weather}
    answer: '{"city": "Bergen", "rain": true}'
  - match: {user_contains: long}
    answer: {repeat_words: 300}
    fault: {chunk_delay_ms: 2}
  - match: {user_contains: hello}
    answer:
      text: hello yourself
      usage: {prompt_tokens: 100, completion_tokens: 20, cached_tokens: 40, cache_write_tokens: 10, reasoning_tokens: 3}
"""


class Weather(BaseModel):
    city: str
    rain: bool


@pytest.fixture
def provider(provider: SpawnedProvider) -> SpawnedProvider:
    provider.set_rules(RULES)
    return provider


@pytest.fixture
async def client(served: Served) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key="unused", max_retries=0) as running:
        yield running


def asking(text: str = "hello", model: str = NATIVE, job: str = "j", attempt: int = 0, **more: Any) -> dict[str, Any]:
    headers = {"x-job-id": job} | ({"x-job-attempt": str(attempt)} if attempt else {})
    messages = [{"role": "user", "content": text}]
    return {"model": model, "max_tokens": 4000, "messages": messages, "extra_headers": headers, **more}


async def recorded(served: Served, job: str = "j") -> tuple[Any, dict[str, Any]]:
    """The facts of the job's last event, and the answer it keeps."""
    last = (await served.events(job))[-1]
    return last.facts, json.loads(last.content)


async def streamed(client: anthropic.AsyncAnthropic, **asked: Any) -> tuple[anthropic.types.Message, list[Any]]:
    events: list[Any] = []
    async with client.messages.stream(**asked) as stream:
        async for event in stream:
            with suppress(ValueError):
                events.append(EVENT.validate_python(event.to_dict()))
        return await stream.get_final_message(), events


def said(message: Any) -> list[dict[str, Any]]:
    """The content, without what only the SDK adds or leaves out."""
    blocks = message.to_dict()["content"] if isinstance(message, BaseModel) else message["content"]
    return [
        {name: value for name, value in block.items() if value is not None and name != "parsed_output"}
        for block in blocks
    ]


def without_nothing(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if value is not None}


def of_chat(completion: Any) -> dict[str, Any]:
    """The message, without what only the SDK adds."""
    message = without_nothing(completion.choices[0].message.to_dict())
    message.pop("parsed", None)
    for call in message.get("tool_calls") or ():
        call["function"].pop("parsed_arguments", None)
        call.pop("index", None)
    return message


# ── one answer ──────────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
async def test_plain_answer_is_recorded_unchanged(served: Served, client: anthropic.AsyncAnthropic, model: str) -> None:
    raw = await client.messages.with_raw_response.create(**asking(model=model))
    message = await raw.parse()
    assert said(message) == [{"type": "text", "text": "hello yourself"}]
    assert (message.stop_reason, message.role) == ("end_turn", "assistant")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (50, 40, 10)
    assert usage.output_tokens_details is not None
    assert (usage.output_tokens, usage.output_tokens_details.thinking_tokens) == (20, 3)
    facts, kept = await recorded(served)
    assert kept == json.loads(await raw.text())
    assert (facts.input_tokens, facts.cached_tokens, facts.output_tokens) == (100, 40, 20)
    assert (facts.model, facts.provider) == (model, "scripted")
    assert facts.cost_microusd > 0
    assert message._request_id.startswith("req_")
    assert float(raw.headers["x-overnight-cost-usd"]) == facts.cost_microusd / 1_000_000
    [(_, called), *_] = [(e.facts.event, e) for e in await served.events("j") if e.facts.event == "model_called"]
    [asked] = await served.ledger.content("default", called.facts.input_ref)
    assert json.loads(asked) == {"role": "user", "content": "hello"}


@BOTH
async def test_stream_matches_its_record_and_reports_cost(
    served: Served, client: anthropic.AsyncAnthropic, model: str
) -> None:
    message, events = await streamed(client, **asking(model=model))
    facts, kept = await recorded(served)
    assert said(message) == said(kept) == [{"type": "text", "text": "hello yourself"}]
    assert (message.id, message.model, message.stop_reason) == (kept["id"], kept["model"], kept["stop_reason"])
    [ended] = [event for event in events if event.type == "message_delta"]
    assert ended.usage.to_dict()["cost_usd"] == facts.cost_microusd / 1_000_000
    assert (ended.usage.input_tokens, ended.usage.output_tokens) == (50, 20)
    assert [events[0].type, events[-1].type] == ["message_start", "message_stop"]
    assert events[0].message.usage.input_tokens > 0
    assert facts.cost_microusd > 0
    assert "estimated" not in (facts.detail or {})


def test_the_synchronous_client_is_served_too(store: Store, provider: SpawnedProvider) -> None:
    async def run() -> list[Any]:
        async with serving(store, provider) as served:
            return await asyncio.to_thread(work, served.url)

    def work(url: str) -> list[Any]:
        client = anthropic.Anthropic(base_url=url, api_key="unused", max_retries=0)
        plain = client.messages.create(**asking(job="a"))
        with client.messages.stream(**asking(job="b")) as stream:
            return [said(plain), said(stream.get_final_message())]

    first, second = asyncio.run(run())
    assert first == second


# ── tools and thoughts ──────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
@pytest.mark.parametrize("stream", [False, True])
async def test_agent_with_thinking_and_tools_continues(
    served: Served, client: anthropic.AsyncAnthropic, model: str, stream: bool
) -> None:
    asked = asking("look around", model, tools=[TOOL])
    first = (await streamed(client, **asked))[0] if stream else await client.messages.create(**asked)
    assert [block.type for block in first.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block.input for block in first.content[2:]] == [{"at": "sky"}, {"at": "sea"}]
    assert first.stop_reason == "tool_use"
    assert said(first) == said((await recorded(served))[1])
    results = [
        {
            "type": "tool_result",
            "tool_use_id": block.id,
            "content": [{"type": "text", "text": f"blue {block.input['at']}"}],
        }
        for block in first.content[2:]
    ]
    history = [*asked["messages"], {"role": "assistant", "content": said(first)}, {"role": "user", "content": results}]
    raw = await client.messages.with_raw_response.create(**{**asked, "messages": history})
    assert said(await raw.parse()) == [{"type": "text", "text": "saw blue sea"}]
    assert "x-overnight-dropped" not in raw.headers
    names = await served.story("j")
    assert names.count("model_succeeded") == 2


async def test_conversation_continues_at_a_model_with_other_limits(
    served: Served, client: anthropic.AsyncAnthropic
) -> None:
    for first, then in ((CHAT, NATIVE), (NATIVE, CHAT)):
        asked = asking("look around", first, tools=[TOOL])
        message = await client.messages.create(**asked)
        results = [{"type": "tool_result", "tool_use_id": block.id, "content": "blue"} for block in message.content[2:]]
        history = [
            *asked["messages"],
            {"role": "assistant", "content": said(message)},
            {"role": "user", "content": results},
        ]
        raw = await client.messages.with_raw_response.create(**{**asked, "model": then, "messages": history})
        assert said(await raw.parse()) == [{"type": "text", "text": "saw blue"}]
        assert raw.headers["x-overnight-dropped"] == "messages[1].content[0]"
        assert (await recorded(served))[0].detail["dropped"] == ["messages[1].content[0]"]


@pytest.mark.parametrize("stream", [False, True])
async def test_rejected_thinking_blocks_are_removed_and_retried(
    served: Served, client: anthropic.AsyncAnthropic, stream: bool
) -> None:
    asked = asking("look around", tools=[TOOL], thinking={"type": "enabled", "budget_tokens": 2000})
    first = await client.messages.create(**asked)
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": "blue"} for block in first.content[2:]]
    history = [*asked["messages"], {"role": "assistant", "content": said(first)}, {"role": "user", "content": results}]
    asked |= {"model": "claude-opus-4-5", "messages": history}
    if stream:
        last, _ = await streamed(client, **asked)
    else:
        last = await client.messages.create(**asked)
    assert said(last) == [{"type": "text", "text": "saw blue"}]
    assert (await served.story("j"))[-4:] == ["model_called", "model_failed", "model_called", "model_succeeded"]
    facts, _ = await recorded(served)
    assert facts.detail["dropped"] == ["messages[1].content[0]", "thinking"]
    assert served.provider.stats()["paid_calls"] == 2


async def test_thinking_budget_stays_below_a_lowered_cap(store: Store, provider: SpawnedProvider) -> None:
    short = routed().replace("heartbeat_check: gpt-5.4-mini", f"short: {{model: {NATIVE}, max_output_tokens: 3000}}")
    async with serving(store, provider, short) as served:
        client = anthropic.AsyncAnthropic(base_url=served.url, api_key="unused", max_retries=0)
        asked = asking(model="short", max_tokens=16_000, thinking={"type": "enabled", "budget_tokens": 10_000})
        raw = await client.messages.with_raw_response.create(**asked)
        assert raw.headers["x-overnight-dropped"] == "thinking (budget)"
        assert said(await raw.parse())[0]["text"] == "hello yourself"


# ── chat to a target that speaks messages ───────────────────────────────────────────────────────────────────────────


async def test_chat_client_is_served_by_a_messages_target(served: Served) -> None:
    asked: Any = {"model": NATIVE, "messages": [{"role": "user", "content": "hello"}]}
    plain = await served.openai.chat.completions.create(**asked, extra_headers={"x-job-id": "p"})
    assert plain.choices[0].message.content == "hello yourself"
    assert plain.usage is not None
    assert (plain.usage.prompt_tokens, plain.usage.completion_tokens) == (100, 20)
    facts, kept = await recorded(served, "p")
    assert kept == plain.to_dict()
    assert facts.cached_tokens == 40
    asked |= {"stream": True, "stream_options": {"include_usage": True}}
    pieces = [
        piece async for piece in await served.openai.chat.completions.create(**asked, extra_headers={"x-job-id": "s"})
    ]
    facts, kept = await recorded(served, "s")
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == "hello yourself"
    assert {piece.id for piece in pieces} == {kept["id"]}
    assert pieces[-1].usage.to_dict()["cost_usd"] == facts.cost_microusd / 1_000_000 > 0
    assert kept["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_chat_agent_keeps_signed_thinking(served: Served, stream: bool) -> None:
    asked: Any = {"model": NATIVE, "messages": [{"role": "user", "content": "look"}], "tools": [CHAT_TOOL]}
    headers = {"x-job-id": "c"}
    if stream:
        async with served.openai.chat.completions.stream(**asked, extra_headers=headers) as pieces:
            first = await pieces.get_final_completion()
    else:
        first = await served.openai.chat.completions.create(**asked, extra_headers=headers)
    message = of_chat(first)
    _, kept = await recorded(served, "c")
    assert message == without_nothing(kept["choices"][0]["message"])
    assert message["reasoning_content"] == "hm hm"
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "blue"} for call in message["tool_calls"]]
    history = [*asked["messages"], message, *results]
    raw = await served.openai.chat.completions.with_raw_response.create(
        **{**asked, "messages": history}, extra_headers=headers
    )
    assert raw.parse().choices[0].message.content == "saw blue"
    assert "x-overnight-dropped" not in raw.headers


async def test_output_schemas_are_translated_in_both_directions(
    served: Served, client: anthropic.AsyncAnthropic
) -> None:
    parsed = await served.openai.chat.completions.parse(
        model=NATIVE, messages=[{"role": "user", "content": "weather"}], response_format=Weather
    )
    assert parsed.choices[0].message.parsed == Weather(city="Bergen", rain=True)
    for model in (NATIVE, CHAT):
        message = await client.messages.parse(**asking("weather", model), output_format=Weather)
        assert message.parsed_output == Weather(city="Bergen", rain=True)


async def test_untranslatable_fields_are_reported(served: Served) -> None:
    raw = await served.openai.chat.completions.with_raw_response.create(
        model=NATIVE,
        messages=[{"role": "user", "content": "hello"}],
        seed=7,
        logprobs=True,
        extra_headers={"x-job-id": "d"},
    )
    assert sorted(raw.headers["x-overnight-dropped"].split(", ")) == ["logprobs", "seed"]
    assert sorted((await recorded(served, "d"))[0].detail["dropped"]) == ["logprobs", "seed"]


async def test_invalid_requests_are_rejected_free_in_both_directions(
    served: Served, client: anthropic.AsyncAnthropic
) -> None:
    picture = {"type": "image", "source": {"type": "file", "file_id": "f"}}
    body: dict[str, Any] = asking(model=CHAT) | {"messages": [{"role": "user", "content": [picture]}]}
    with pytest.raises(anthropic.BadRequestError, match=re.escape("messages[0].content: contains no content")):
        await client.messages.create(**body)
    with pytest.raises(openai.BadRequestError, match="stop: must be a string or a list"):
        await served.openai.chat.completions.create(
            model=NATIVE, messages=[{"role": "user", "content": "x"}], extra_body={"stop": 5}
        )
    assert served.provider.stats()["paid_calls"] == 0


# ── what goes wrong ─────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (529, anthropic.APIStatusError, "overloaded_error"),
        (500, anthropic.InternalServerError, "api_error"),
    ],
)
async def test_failures_have_the_shape_of_the_format(
    served: Served,
    client: anthropic.AsyncAnthropic,
    model: str,
    status: int,
    error: type[anthropic.APIStatusError],
    kind: str,
) -> None:
    served.provider.set_rules(f"rules: [{{fault: {{status: {status}, message: 'as it happens'}}}}]")
    for ask in (client.messages.create(**asking(model=model)), streamed(client, **asking(model=model))):
        with pytest.raises(error) as raised:
            await ask
        body = raised.value.body
        assert (body["type"], body["error"]["type"]) == ("error", kind)
        assert "as it happens" in body["error"]["message"]
    assert (await served.story("j"))[-1] == "model_failed"


async def test_rejections_have_the_shape_of_the_format(served: Served, client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        await client.messages.create(**asking(model="nobody's"))
    assert unknown.value.body["error"]["type"] == "not_found_error"
    assert unknown.value.error_code == "model_not_found"
    with pytest.raises(anthropic.BadRequestError, match="messages") as empty:
        await client.messages.create(**asking(messages=[]))
    assert empty.value.body["error"]["details"]["param"] == "messages"
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        await client.messages.create(**asking(max_tokens=0))
    answer = await served.http.post("/v1/messages", content=b'{"messages": [')
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert served.provider.stats()["paid_calls"] == 0


async def test_spent_budget_stops_the_official_client(store: Store, provider: SpawnedProvider) -> None:
    budgets = "budgets: {max_llm_calls_per_job: 1}\n"
    async with serving(store, provider, routed(budgets)) as served:
        client = anthropic.AsyncAnthropic(base_url=served.url, api_key="unused", max_retries=3)
        await client.messages.create(**asking())
        with pytest.raises(anthropic.APIStatusError) as stopped:
            await client.messages.create(**asking())
        assert (stopped.value.status_code, stopped.value.body["error"]["type"]) == (402, "billing_error")
        assert stopped.value.error_code == "budget_exceeded"
        assert (await served.story("j")).count("budget_stopped") == 1


@BOTH
@pytest.mark.parametrize("how", ["{cut_after_chunks: 5}", "{cut_after_chunks: 5, reset: true}", "{broken_json: true}"])
async def test_broken_stream_ends_in_an_error_and_is_billed(
    served: Served, client: anthropic.AsyncAnthropic, model: str, how: str
) -> None:
    served.provider.set_rules(f"rules: [{{answer: one two three four five six, fault: {how}}}]")
    seen: list[str] = []

    async def read() -> None:
        async with client.messages.stream(**asking(model=model)) as stream:
            async for text in stream.text_stream:
                seen.append(text)

    with pytest.raises(anthropic.APIStatusError) as raised:
        await read()
    assert raised.value.body["error"]["type"] == "api_error"
    assert "one two three four five six".startswith("".join(seen))
    facts = (await served.events("j"))[-1].facts
    assert (facts.event, facts.detail["estimated"]) == ("model_failed", True)
    assert facts.cost_microusd > 0


async def test_tool_call_is_withheld_until_it_is_recorded(served: Served) -> None:
    """Of a stream that breaks after the tool's block, the client has not seen the end of the block."""
    served.provider.set_rules(
        "rules: [{answer: {tool_calls: [{name: look, arguments: {at: sky}}]}, fault: {cut_after_chunks: 7}}]"
    )
    body = asking(tools=[TOOL], stream=True)
    headers = body.pop("extra_headers")
    async with served.http.stream("POST", "/v1/messages", json=body, headers=headers) as answer:
        events = [line[7:] async for line in answer.aiter_lines() if line.startswith("event: ")]
    assert events == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "error",
    ]


@BOTH
async def test_disconnected_client_pays_and_replays_its_answer(
    served: Served, client: anthropic.AsyncAnthropic, model: str
) -> None:
    async with client.messages.stream(**asking("a long one", model)) as stream:
        async for _ in stream.text_stream:
            break
    await served.until("j", "model_succeeded")
    _, kept = await recorded(served)
    assert len(kept["content"][0]["text"].split()) == 300
    again, _ = await streamed(client, **asking("a long one", model, attempt=2))
    assert said(again) == said(kept)
    assert served.provider.stats()["paid_calls"] == 1


@BOTH
@pytest.mark.parametrize("stream", [False, True])
async def test_second_attempt_receives_the_recorded_answers(
    served: Served, client: anthropic.AsyncAnthropic, model: str, stream: bool
) -> None:
    asked = asking("look around", model, tools=[TOOL])
    first = await client.messages.create(**asked)
    await client.messages.create(**asking("hello", model))
    again = asking("look around", model, attempt=2, tools=[TOOL])
    if stream:
        second, events = await streamed(client, **again)
        assert events[-2].usage.to_dict()["cost_usd"] == 0.0
    else:
        raw = await client.messages.with_raw_response.create(**again)
        assert raw.headers["x-overnight-replayed"] == "true"
        second = await raw.parse()
    assert (said(second), second.id, second.stop_reason) == (said(first), first.id, first.stop_reason)
    third = await client.messages.create(**asking("hello", model, attempt=2))
    assert said(third)[0]["text"] == "hello yourself"
    assert served.provider.stats()["paid_calls"] == 2


async def test_streamed_turns_are_replayed_to_a_plain_client(served: Served, provider: SpawnedProvider) -> None:
    """What was streamed and what is replayed are the same to the byte, or the next request would not be the same."""
    asked: Any = {"model": NATIVE, "messages": [{"role": "user", "content": "look"}], "tools": [CHAT_TOOL]}

    async def turn(messages: list[Any], attempt: str, stream: bool) -> Any:
        headers = {"x-job-id": "agent", "x-job-attempt": attempt}
        asking = {**asked, "messages": messages}
        if not stream:
            return of_chat(await served.openai.chat.completions.create(**asking, extra_headers=headers))
        async with served.openai.chat.completions.stream(**asking, extra_headers=headers) as pieces:
            return of_chat(await pieces.get_final_completion())

    for attempt, stream in (("1", True), ("2", False), ("3", True)):
        message = await turn(asked["messages"], attempt, stream)
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "blue"} for call in message["tool_calls"]]
        last = await turn([*asked["messages"], message, *results], attempt, stream)
        assert last["content"] == "saw blue"
    assert provider.stats()["paid_calls"] == 2


def test_killed_gateway_pays_no_recorded_message_twice(
    store_url: str, provider: SpawnedProvider, tmp_path: Any
) -> None:
    for crash_at in ("", "model_answered"):
        with gateway_process(store_url, provider, tmp_path, crash_at=crash_at) as process:
            client = anthropic.Anthropic(base_url=process.url, api_key="unused", max_retries=0)
            if not crash_at:
                client.messages.create(**asking("one", job="k"))
                continue
            with pytest.raises((anthropic.APIConnectionError, httpx2.TransportError)):
                client.messages.create(**asking("two", job="k"))
    with gateway_process(store_url, provider, tmp_path) as process:
        client = anthropic.Anthropic(base_url=process.url, api_key="unused", max_retries=0)
        raw = client.messages.with_raw_response.create(**asking("one", job="k", attempt=2))
        assert raw.headers["x-overnight-replayed"] == "true"
        client.messages.create(**asking("two", job="k", attempt=2))
    assert provider.stats()["paid_calls"] == 3


# ── beside the answers ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_beta_headers_reach_a_target_of_the_format(served: Served, client: anthropic.AsyncAnthropic) -> None:
    served.provider.set_rules(
        "rules: [{match: {headers: {anthropic-beta: some-beta}}, answer: seen}, {answer: not seen}]"
    )
    asked = asking()
    asked["extra_headers"] |= {"anthropic-beta": "some-beta"}
    assert said(await client.messages.create(**asked))[0]["text"] == "seen"


async def test_provider_receives_its_own_auth_headers(store: Store, provider: SpawnedProvider) -> None:
    greeting = "{x-api-key: secret, anthropic-version: '2023-06-01'}"
    provider.set_rules(f"rules: [{{match: {{headers: {greeting}}}, answer: welcome}}, {{answer: who are you}}]")
    claude = f"providers: {{anthropic: {{base_url: '{provider.base_url}'}}}}\n"
    async with serving(store, provider, routed(claude), environment={"ANTHROPIC_API_KEY": "secret"}) as served:
        client = anthropic.AsyncAnthropic(base_url=served.url, api_key="not the provider's", max_retries=0)
        asked = asking()
        asked["extra_headers"] |= {"anthropic-version": "2023-06-01"}
        assert said(await client.messages.create(**asked))[0]["text"] == "welcome"
        answer = await served.ask(model=NATIVE)
        assert answer.json()["choices"][0]["message"]["content"] == "welcome"


async def test_cache_markers_do_not_change_the_fingerprint(served: Served, client: anthropic.AsyncAnthropic) -> None:
    marked = [{"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}]
    plain = [{"type": "text", "text": "hello"}]
    for content, attempt in ((marked, 1), (plain, 2)):
        asked = asking(attempt=attempt, messages=[{"role": "user", "content": content}], system=content)
        await client.messages.create(**asked)
    assert served.provider.stats()["paid_calls"] == 1


async def test_tokens_are_counted_without_a_provider(served: Served, client: anthropic.AsyncAnthropic) -> None:
    messages: Any = [{"role": "user", "content": "a" * 400}]
    picture: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 100_000}}
    few = await client.messages.count_tokens(model=NATIVE, messages=messages)
    more = await client.messages.count_tokens(
        model=NATIVE, messages=[*messages, {"role": "user", "content": [picture]}]
    )
    assert 100 <= few.input_tokens < 120
    assert 1_600 <= more.input_tokens - few.input_tokens < 1_650
    with pytest.raises(anthropic.BadRequestError, match="messages"):
        await client.messages.count_tokens(model=NATIVE, messages=[])
    assert (await served.http.get("/v1/messages/count_tokens")).headers["allow"] == "POST"
    assert served.provider.stats() | {"rules": []} == served.provider.stats() | {
        "rules": [],
        "paid_calls": 0,
        "requests": 0,
    }
