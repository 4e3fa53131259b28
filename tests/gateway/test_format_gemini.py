"""Gemini by Google's own client, to Gemini, chat and messages targets; and the other clients to Gemini."""

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from google import genai
from google.genai import errors, types

from api_keys import key_for
from overnight.api.access_log import AccessLog
from overnight.pricing.provider_tools import FEES
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from serving import Served, routed, serving

NATIVE, CHAT, CLAUDE = "gemini-3-pro-preview", "deepseek-chat", "claude-haiku-4-5"
EACH = pytest.mark.parametrize("model", [NATIVE, CHAT, CLAUDE])
GOOGLE = """
providers:
  google:
    base_url: https://generativelanguage.googleapis.com/v1beta
    api_key_env: GEMINI_API_KEY
    models: ["gemini-*"]
    kind: gemini
"""
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
    answer: '{"city": "Bergen"}'
  - match: {user_contains: blocked}
    answer: (block PROHIBITED_CONTENT)
  - match: {user_contains: unsafe}
    answer: {text: so, finish_reason: content_filter}
  - match: {user_contains: malformed}
    answer: (finish MALFORMED_FUNCTION_CALL)
  - match: {user_contains: busy}
    fault: {status: 429, retry_after_ms: 100, message: Slow down., code: GenerateRequestsPerMinutePerProjectPerModel}
  - match: {user_contains: daily}
    fault: {status: 429, retry_after_ms: 100, message: Quota exceeded., code: GenerateRequestsPerDayPerProjectPerModel-FreeTier}
  - match: {user_contains: hello}
    answer:
      text: hello yourself
      usage: {prompt_tokens: 100, completion_tokens: 20, cached_tokens: 40, reasoning_tokens: 3}
"""
SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
LOOK = types.Tool(
    function_declarations=[types.FunctionDeclaration(name="look", description="Looks.", parameters_json_schema=SCHEMA)]
)
CHAT_LOOK: Any = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}


@pytest.fixture
def store(empty_ledger: Path, tmp_path: Path) -> Iterator[Store]:
    """One store: what is under test are formats."""
    with open_store(str(shutil.copy(empty_ledger, tmp_path / "ledger.db"))) as opened:
        yield opened


@pytest.fixture
def provider(provider: SpawnedProvider) -> SpawnedProvider:
    provider.set_rules(RULES)
    return provider


@pytest.fixture
async def served(store: Store, provider: SpawnedProvider) -> AsyncIterator[Served]:
    async with serving(store, provider, routed(GOOGLE)) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Any:
    return genai.Client(api_key="unused", http_options=types.HttpOptions(base_url=served.url)).aio


def config(job: str = "j", **more: Any) -> types.GenerateContentConfig:
    return types.GenerateContentConfig(http_options=types.HttpOptions(headers={"x-job-id": job}), **more)


async def recorded(served: Served, job: str = "j") -> tuple[Any, dict[str, Any]]:
    """The facts of the job's last event, and the answer it keeps."""
    last = (await served.events(job))[-1]
    return last.facts, json.loads(last.content)


# ── Google's client ─────────────────────────────────────────────────────────────────────────────────────────────────


@EACH
async def test_an_answer_is_recorded_with_its_usage(served: Served, client: Any, model: str) -> None:
    answer = await client.models.generate_content(model=model, contents="hello", config=config())
    assert answer.text == "hello yourself"
    assert answer.candidates[0].finish_reason == types.FinishReason.STOP
    usage = answer.usage_metadata
    assert (usage.prompt_token_count, usage.cached_content_token_count, usage.total_token_count) == (100, 40, 120)
    assert (usage.candidates_token_count, usage.thoughts_token_count) == (17, 3)
    facts, kept = await recorded(served)
    assert kept["candidates"][0]["content"]["parts"] == [{"text": "hello yourself"}]
    assert (facts.input_tokens, facts.cached_tokens, facts.output_tokens) == (100, 40, 20)
    assert (facts.model, facts.provider) == (model, "scripted")
    assert facts.cost_microusd > 0
    headers = answer.sdk_http_response.headers
    assert float(headers["x-overnight-cost-usd"]) == facts.cost_microusd / 1_000_000


@EACH
async def test_a_stream_equals_its_record(served: Served, client: Any, model: str) -> None:
    parts: list[str] = []
    last: Any = None
    async for piece in await client.models.generate_content_stream(model=model, contents="hello", config=config()):
        parts.append(piece.text or "")
        last = piece
    assert "".join(parts) == "hello yourself"
    assert len([each for each in parts if each]) > 1
    assert last.candidates[0].finish_reason == types.FinishReason.STOP
    assert last.usage_metadata.total_token_count == 120
    facts, kept = await recorded(served)
    assert "".join(part["text"] for part in kept["candidates"][0]["content"]["parts"]) == "hello yourself"
    assert facts.cost_microusd > 0


@EACH
@pytest.mark.parametrize("stream", [False, True])
async def test_calls_return_with_their_signatures(served: Served, client: Any, model: str, *, stream: bool) -> None:
    chosen = config(tools=[LOOK], automatic_function_calling={"disable": True})
    contents: list[Any] = [types.UserContent("look")]
    parts: list[types.Part] = []
    if stream:
        async for piece in await client.models.generate_content_stream(model=model, contents=contents, config=chosen):
            parts += piece.candidates[0].content.parts or []
    else:
        answer = await client.models.generate_content(model=model, contents=contents, config=chosen)
        parts = answer.candidates[0].content.parts
    calls = [part.function_call for part in parts if part.function_call]
    assert [(call.name, call.args) for call in calls] == [("look", {"at": "sky"}), ("look", {"at": "sea"})]
    assert all(call.id for call in calls)
    assert "".join(part.text for part in parts if part.thought and part.text) == "hm hm"
    results = [
        types.Part(
            function_response=types.FunctionResponse(id=call.id, name="look", response={"output": call.args["at"]})
        )
        for call in calls
    ]
    contents += [types.Content(role="model", parts=parts), types.Content(role="user", parts=results)]
    answer = await client.models.generate_content(model=model, contents=contents, config=chosen)
    assert answer.text == "saw sea"
    assert "x-overnight-dropped" not in answer.sdk_http_response.headers


async def test_a_conversation_moves_between_providers(served: Served, client: Any) -> None:
    chosen = config(tools=[LOOK], automatic_function_calling={"disable": True})
    contents: list[Any] = [types.UserContent("look")]
    answer = await client.models.generate_content(model=NATIVE, contents=contents, config=chosen)
    content = answer.candidates[0].content
    results = [
        types.Part.from_function_response(name="look", response={"output": "x"})
        for part in content.parts
        if part.function_call
    ]
    contents += [content, types.Content(role="user", parts=results)]
    for model in (CLAUDE, CHAT, NATIVE):
        answer = await client.models.generate_content(model=model, contents=contents, config=chosen)
        assert answer.text == "saw x"
        dropped = answer.sdk_http_response.headers.get("x-overnight-dropped", "")
        assert ("thoughtSignature" in dropped) == (model in (CLAUDE, CHAT))


async def test_a_function_of_python_is_called(served: Served, client: Any) -> None:
    """The SDK calls the function itself, and sends the results back."""

    def look(at: str) -> str:
        """Looks."""
        return f"{at} is blue"

    answer = await client.models.generate_content(model=NATIVE, contents="look", config=config(tools=[look]))
    assert answer.text is not None
    assert answer.text.startswith("saw")


@EACH
async def test_a_schema_of_the_answer(served: Served, client: Any, model: str) -> None:
    chosen = config(
        response_mime_type="application/json",
        response_schema={"type": "OBJECT", "properties": {"city": {"type": "STRING"}}},
    )
    answer = await client.models.generate_content(model=model, contents="weather", config=chosen)
    assert json.loads(answer.text) == {"city": "Bergen"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_blocked_prompt_and_a_filtered_answer(served: Served, client: Any, *, stream: bool) -> None:
    async def ask(text: str) -> Any:
        if not stream:
            return await client.models.generate_content(model=NATIVE, contents=text, config=config())
        pieces = [
            each
            async for each in await client.models.generate_content_stream(model=NATIVE, contents=text, config=config())
        ]
        return pieces[-1]

    answer = await ask("blocked")
    assert answer.prompt_feedback.block_reason == types.BlockedReason.PROHIBITED_CONTENT
    answer = await ask("unsafe")
    assert answer.candidates[0].finish_reason == types.FinishReason.SAFETY


@pytest.mark.parametrize("stream", [False, True])
async def test_a_malformed_call_is_tried_again_and_fails(served: Served, client: Any, *, stream: bool) -> None:
    async def ask() -> None:
        if not stream:
            await client.models.generate_content(model=NATIVE, contents="malformed", config=config())
            return
        async for _ in await client.models.generate_content_stream(model=NATIVE, contents="malformed", config=config()):
            pass

    with pytest.raises(errors.APIError) as failed:
        await ask()
    assert failed.value.code == 502
    assert served.provider.stats()["paid_calls"] >= 1


async def test_errors_have_googles_shape(served: Served, client: Any) -> None:
    with pytest.raises(errors.ClientError) as failed:
        await client.models.generate_content(model=NATIVE, contents="busy", config=config("busy"))
    assert (failed.value.code, failed.value.status) == (429, "RESOURCE_EXHAUSTED")
    [retry] = [each for each in failed.value.details["error"]["details"] if each["@type"].endswith("RetryInfo")]
    assert retry["retryDelay"] == "1s"
    with pytest.raises(errors.ClientError) as failed:
        await client.models.generate_content(model="nothing-of-that-name", contents="hello")
    assert failed.value.code == 404
    response = await served.http.post("/v1beta/models/gemini-2.5-pro:dance", json={})
    assert response.status_code == 404
    assert response.json()["error"]["status"] == "NOT_FOUND"
    response = await served.http.post("/v1beta/models/gemini-2.5-pro:generateContent", json={"contents": []})
    assert response.json()["error"]["details"][-1]["fieldViolations"][0]["field"] == "contents"
    response = await served.http.get("/v1beta/files")
    assert response.json()["error"]["code"] == response.status_code == 404


async def test_a_daily_quota_is_not_tried_again(served: Served, client: Any) -> None:
    before = served.provider.stats()["errors_by_status"].get("429", 0)
    with pytest.raises(errors.ClientError):
        await client.models.generate_content(model=NATIVE, contents="daily", config=config("daily"))
    assert served.provider.stats()["errors_by_status"]["429"] == before + 1
    last = (await served.events("daily"))[-1].facts
    assert last.error.error_class == "quota"


async def test_a_stream_without_sse_is_one_array(served: Served) -> None:
    body = {"contents": [{"parts": [{"text": "hello"}]}]}
    for path in ("/v1beta/models", "/v1/models"):
        for model in (NATIVE, CHAT):
            response = await served.http.post(f"{path}/{model}:streamGenerateContent", json=body)
            assert response.headers["content-type"] == "application/json"
            texts = [part["text"] for each in response.json() for part in each["candidates"][0]["content"]["parts"]]
            assert "".join(texts) == "hello yourself"
    response = await served.http.post(f"/v1beta/models/{NATIVE}:streamGenerateContent", json={"contents": []})
    assert response.json()[0]["error"]["code"] == response.status_code == 400


async def test_models_are_listed_and_tokens_counted(served: Served, client: Any) -> None:
    listed = (await served.http.get("/v1beta/models")).json()["models"]
    names = [model.name async for model in await client.models.list()]
    assert names == [each["name"] for each in listed]
    assert "models/gpt-5.4" in names
    assert (await client.models.get(model="gpt-5.4")).name == "models/gpt-5.4"
    few = await client.models.count_tokens(model=NATIVE, contents="hello")
    more = await client.models.count_tokens(model=NATIVE, contents="hello " * 100)
    assert 0 < few.total_tokens < more.total_tokens
    whole = {
        "generateContentRequest": {
            "model": f"models/{NATIVE}",
            "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
        }
    }
    response = await served.http.post(f"/v1beta/models/{NATIVE}:countTokens", json=whole)
    assert response.json()["totalTokens"] == few.total_tokens
    assert served.provider.stats()["paid_calls"] == 0


async def test_a_repeated_call_is_replayed(served: Served, client: Any) -> None:
    headers = {"x-job-id": "again", "x-job-attempt": "1"}
    chosen = types.GenerateContentConfig(http_options=types.HttpOptions(headers=headers))
    first = await client.models.generate_content(model=NATIVE, contents="hello", config=chosen)
    headers["x-job-attempt"] = "2"
    chosen = types.GenerateContentConfig(http_options=types.HttpOptions(headers=headers))
    pieces = [
        each
        async for each in await client.models.generate_content_stream(model=NATIVE, contents="hello", config=chosen)
    ]
    assert "".join(each.text or "" for each in pieces) == first.text
    assert pieces[0].sdk_http_response.headers["x-overnight-replayed"] == "true"
    assert served.provider.stats()["paid_calls"] == 1


async def test_answers_are_cached_unless_they_were_filtered(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed(GOOGLE + "cache: {exact: {ttl_s: 60}}\n")) as served:
        path = f"/v1beta/models/{NATIVE}:generateContent"
        for text, hit in (("hello", "exact"), ("unsafe", None), ("blocked", None)):
            body = {"contents": [{"role": "user", "parts": [{"text": text}]}]}
            for job, cached in (("c1", None), ("c2", hit)):
                response = await served.http.post(path, json=body, headers={"x-job-id": f"{job}-{text}"})
                assert response.status_code == 200
                found = response.headers.get("x-overnight-cache")
                assert found == cached if cached else found != "exact"


async def test_tools_that_google_runs_are_reserved_with_their_fees(served: Served) -> None:
    body: dict[str, Any] = {
        "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
        "tools": [{"googleSearch": {}}],
    }
    path = f"/v1beta/models/{NATIVE}:generateContent"
    response = await served.http.post(path, json=body, headers={"x-job-id": "search"})
    assert response.status_code == 200, response.text
    [called] = [each.facts for each in await served.events("search") if each.facts.event == "model_called"]
    assert called.detail["reserved_microusd"] > 10 * FEES["google_search"]
    body["tools"] = [{"quantumSearch": {}}]
    response = await served.http.post(path, json=body)
    assert response.status_code == 400
    assert "hosted_tools: {quantumSearch" in response.json()["error"]["message"]


@pytest.mark.parametrize("model", ["gemini-embedding-001", "text-embedding-3-small"])
async def test_embeddings(served: Served, client: Any, model: str) -> None:
    two = await client.models.embed_content(
        model=model, contents=["hello", "world"], config={"output_dimensionality": 8}
    )
    assert [len(each.values) for each in two.embeddings] == [8, 8]
    body = {"content": {"parts": [{"text": "hello"}]}, "outputDimensionality": 8}
    response = await served.http.post(f"/v1beta/models/{model}:embedContent", json=body, headers={"x-job-id": "e"})
    assert response.json()["embedding"]["values"] == pytest.approx(two.embeddings[0].values)
    facts, _ = await recorded(served, "e")
    assert facts.input_tokens > 0
    answer = await served.openai.embeddings.create(model=model, input=["hello", "world"], dimensions=8)
    assert answer.data[0].embedding == pytest.approx(two.embeddings[0].values)


# ── the key ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_key_in_the_query_is_accepted_and_kept_nowhere(
    store: Store, provider: SpawnedProvider, tmp_path: Any, caplog: Any
) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(path)
    async with serving(store, provider, routed(GOOGLE), hosts=None, access_log=log) as served:
        token = (await key_for(served, name="caller"))["authorization"].removeprefix("Bearer ")
        body = {"contents": [{"parts": [{"text": "hello"}]}]}
        call = f"/v1beta/models/{NATIVE}:generateContent"
        for url, headers, status in (
            (f"{call}?key={token}", {}, 200),
            (call, {"x-goog-api-key": token}, 200),
            (call, {}, 401),
            (f"{call}?key=on_wrong", {}, 401),
            (f"/v1beta/models?key={token}", {}, 405),
            (f"/v1beta/models/{NATIVE}:dance?key={token}", {}, 404),
            (f"/v1/chat/completions?key={token}", {}, 401),
        ):
            response = await served.http.post(url, json=body, headers={"x-job-id": "k", **headers})
            assert response.status_code == status, (url.partition("?")[0], response.text)
            assert token not in response.text
        assert (await served.http.get(f"/v1beta/models?key={token}")).status_code == 200
        for event in await served.events("k", "acme"):
            assert token not in str(event)
    assert token not in path.read_text()
    assert token not in caplog.text


async def test_the_providers_key_is_sent_in_its_header_alone(store: Store, provider: SpawnedProvider) -> None:
    routing = f"""
default_model: gemini-3-pro-preview
providers:
  google:
    base_url: {provider.base_url}
    api_key_env: GEMINI_API_KEY
    models: ["gemini-*"]
    kind: gemini
"""
    provider.set_rules(
        'rules: [{match: {headers: {x-goog-api-key: "secret-0123456789abcdef"}}, answer: the key arrived}]'
    )
    async with serving(store, provider, routing, environment={"GEMINI_API_KEY": "secret-0123456789abcdef"}) as served:
        answer = await served.ask("hello", model="gemini-3-pro-preview")
        assert answer.json()["choices"][0]["message"]["content"] == "the key arrived"


# ── the other clients ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
async def test_chat_to_gemini(served: Served, *, stream: bool) -> None:
    async def ask(messages: list[Any]) -> Any:
        asked: Any = {"model": NATIVE, "messages": messages, "tools": [CHAT_LOOK], "extra_headers": {"x-job-id": "c"}}
        if not stream:
            return await served.openai.chat.completions.create(**asked)
        async with served.openai.chat.completions.stream(**asked, stream_options={"include_usage": True}) as running:
            async for _ in running:
                pass
            return await running.get_final_completion()

    completion = await ask([{"role": "user", "content": "look"}])
    [choice] = completion.choices
    assert choice.finish_reason == "tool_calls"
    message = choice.message.model_dump(exclude_none=True)
    assert [each["function"]["arguments"] for each in message["tool_calls"]] == ['{"at":"sky"}', '{"at":"sea"}']
    assert message["thinking_blocks"][0]["model"] == NATIVE
    results = [{"role": "tool", "tool_call_id": each["id"], "content": "x"} for each in message["tool_calls"]]
    message["tool_calls"] = [
        {"id": each["id"], "type": "function", "function": {"name": "look", "arguments": each["function"]["arguments"]}}
        for each in message["tool_calls"]
    ]
    message.pop("parsed", None)
    completion = await ask([{"role": "user", "content": "look"}, message, *results])
    assert completion.choices[0].message.content == "saw x"
    completion = await ask([{"role": "user", "content": "hello"}])
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (100, 20)
    if not stream:  # the helper of streams raises
        completion = await ask([{"role": "user", "content": "blocked"}])
        assert completion.choices[0].finish_reason == "content_filter"


@pytest.mark.parametrize("stream", [False, True])
async def test_messages_to_gemini(served: Served, *, stream: bool) -> None:
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key="unused", max_retries=0) as client:

        async def ask(messages: list[Any]) -> anthropic.types.Message:
            tool: Any = {"name": "look", "input_schema": SCHEMA}
            asked: Any = {"model": NATIVE, "max_tokens": 1000, "messages": messages, "tools": [tool]}
            if not stream:
                return await client.messages.create(**asked)
            async with client.messages.stream(**asked) as running:
                return await running.get_final_message()

        asked: list[Any] = [{"role": "user", "content": "look"}]
        message = await ask(asked)
        assert message.stop_reason == "tool_use"
        assert [block.type for block in message.content] == ["thinking", "text", "thinking", "tool_use", "tool_use"]
        content = [block.model_dump(exclude_none=True) for block in message.content]
        calls = [block for block in content if block["type"] == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": each["id"], "content": "x"} for each in calls]
        asked += [{"role": "assistant", "content": content}, {"role": "user", "content": results}]
        raw = await client.messages.with_raw_response.create(
            model=NATIVE, max_tokens=1000, messages=asked, tools=[{"name": "look", "input_schema": SCHEMA}]
        )
        assert "x-overnight-dropped" not in raw.headers
        message = await raw.parse()
        assert message.content[0].type == "text"
        assert message.content[0].text == "saw x"
        # Another model gets none of it.
        raw = await client.messages.with_raw_response.create(
            model=CLAUDE, max_tokens=1000, messages=asked, tools=[{"name": "look", "input_schema": SCHEMA}]
        )
        assert "messages[1].content" in raw.headers["x-overnight-dropped"]
        blocked = await ask([{"role": "user", "content": "blocked"}])
        assert blocked.stop_reason == "refusal"


@pytest.mark.parametrize("stream", [False, True])
async def test_responses_to_gemini(served: Served, *, stream: bool) -> None:
    tool: Any = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": False}

    async def ask(given: Any) -> Any:
        asked: Any = {"model": NATIVE, "input": given, "tools": [tool], "store": False}
        if not stream:
            return await served.openai.responses.create(**asked)
        async with served.openai.responses.stream(**asked) as running:
            return await running.get_final_response()

    response = await ask("look")
    items = [item.model_dump(exclude_none=True) for item in response.output]
    # In a stream, the signature comes after the text.
    signed = ["reasoning"] if stream else []
    assert [item["type"] for item in items] == ["reasoning", "message", *signed, "function_call", "function_call"]
    calls = [item for item in items if item["type"] == "function_call"]
    for item in items:
        item.pop("parsed_arguments", None)
        for part in item.get("content") or ():
            part.pop("parsed", None)
    results = [{"type": "function_call_output", "call_id": each["call_id"], "output": "x"} for each in calls]
    given: Any = [{"role": "user", "content": "look"}, *items, *results]
    raw = await served.openai.responses.with_raw_response.create(model=NATIVE, input=given, tools=[tool], store=False)
    assert raw.parse().output_text == "saw x"
    assert "x-overnight-dropped" not in raw.headers
    if not stream:  # the helper of streams raises
        response = await ask("blocked")
        assert response.status == "incomplete"


async def test_errors_reach_other_clients(served: Served) -> None:
    with pytest.raises(openai.RateLimitError) as failed:
        await served.openai.chat.completions.create(model=NATIVE, messages=[{"role": "user", "content": "busy"}])
    assert failed.value.response.headers["retry-after"] == "1"
