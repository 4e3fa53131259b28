"""A whole answer with an unexpected value is a provider failure or an answer, and never an internal error."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from overnight.api import Server
from overnight.store import Store
from serving import Served, routed, serving

PROVIDERS = """
providers:
  openai: {base_url: "%s", models: ["gpt-*"], api_key_env: OPENAI_API_KEY, apis: %s}
  anthropic: {base_url: "%s", kind: anthropic, models: ["claude-*"], api_key_env: ANTHROPIC_API_KEY}
  google: {base_url: "%s", kind: gemini, models: ["gemini-*"], api_key_env: GEMINI_API_KEY}
retries: {max_attempts: 1}
breakers: {failures: 0}
"""
HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 50, "stream": True}
CHAT = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
MESSAGE = {"id": "m", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn"}
CONTENT = {"role": "model", "parts": [{"text": "so"}]}
STRANGE: dict[str, tuple[str, Any, Any]] = {
    "a choice that is a word": ("chat/completions", {"model": "gpt-5.4-mini", **HELLO}, CHAT | {"choices": ["x"]}),
    "a message that is a word": (
        "chat/completions",
        {"model": "gpt-5.4-mini", **HELLO},
        CHAT | {"choices": [{"index": 0, "message": "word", "finish_reason": "stop"}]},
    ),
    "a block without its type": (
        "messages",
        {"model": "claude-sonnet-4.6", **HELLO},
        MESSAGE | {"content": [{"text": "x"}], "usage": {"input_tokens": 1, "output_tokens": 1}},
    ),
    "usage that is a list": (
        "messages",
        {"model": "claude-sonnet-4.6", **HELLO},
        MESSAGE | {"content": [{"type": "text", "text": "x"}], "usage": [1]},
    ),
    "a vector of words": (
        "embeddings",
        {"model": "gemini-embedding-001", "input": "hello", "encoding_format": "base64"},
        {"embeddings": [{"values": ["x"]}]},
    ),
    "a vector of numbers too large": (
        "embeddings",
        {"model": "gemini-embedding-001", "input": "hello", "encoding_format": "base64"},
        {"embeddings": [{"values": [1e300]}]},
    ),
    "queries that are a number": (
        "../v1beta/models/gemini-2.5-flash:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": "hello"}]}], "tools": [{"googleSearch": {}}]},
        {"candidates": [{"content": CONTENT, "finishReason": "STOP", "groundingMetadata": {"webSearchQueries": 1}}]},
    ),
}


@asynccontextmanager
async def answering(store: Store, answer: Any, apis: str = "[chat]") -> AsyncIterator[Served]:
    async def provider(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    server = Server(provider)
    _, port = await server.start("127.0.0.1", 0)
    url = f"http://127.0.0.1:{port}/v1"
    keys = {"OPENAI_API_KEY": "sk-1", "ANTHROPIC_API_KEY": "sk-2", "GEMINI_API_KEY": "sk-3"}
    rules = routed().replace("retries: {max_attempts: 2, backoff_ms: 1}\n", "") + PROVIDERS % (url, apis, url, url)
    try:
        async with serving(store, None, rules, environment=keys) as served:  # type: ignore[arg-type]
            yield served
    finally:
        await server.stop(0)


@pytest.mark.parametrize("strange", STRANGE)
async def test_an_unexpected_value_is_no_internal_error(store: Store, strange: str) -> None:
    path, body, given = STRANGE[strange]
    async with answering(store, given) as served:
        answer = await served.http.post(f"/v1/{path}", json=body, headers={"x-job-id": "strange"})
        assert answer.status_code in (200, 502), answer.text
        assert "internal error" not in answer.text
        seen = [event.facts for event in await served.events("strange")]
        calls = [facts.call_id for facts in seen if facts.event == "model_called"]
        ends = [facts.call_id for facts in seen if facts.event in ("model_succeeded", "model_failed")]
        assert calls
        assert calls == ends, "a call was left without an end"


async def test_a_recorded_response_with_new_content_is_replayed_as_a_stream(store: Store) -> None:
    part = {"type": "output_audio", "data": "AAAA", "transcript": "so"}
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    given = {"id": "r", "object": "response", "created_at": 1, "model": "m", "status": "completed", "usage": usage}
    body = {"model": "gpt-5.4-mini", "input": "hello"}
    async with answering(store, given | {"output": [message]}, apis="[responses]") as served:
        whole = await served.http.post("/v1/responses", json=body, headers={"x-job-id": "new"})
        assert whole.status_code == 200, whole.text
        second = {"x-job-id": "new", "x-job-attempt": "2"}
        stream = await served.http.post("/v1/responses", json=body | {"stream": True}, headers=second)
        events = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
        assert events[-1]["type"] == "response.completed"
        assert events[-1]["response"]["output"] == whole.json()["output"]
        assert [each["part"] for each in events if each["type"] == "response.content_part.done"] == [part]
