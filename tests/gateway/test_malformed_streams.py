"""A stream with an unexpected value is a provider failure: retried or reported, and settled once."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from overnight.api import Server
from overnight.store import Store
from serving import routed, serving

PROVIDERS = """
providers:
  openai: {base_url: "%s", models: ["gpt-*"], api_key_env: OPENAI_API_KEY}
  anthropic: {base_url: "%s", kind: anthropic, models: ["claude-*"], api_key_env: ANTHROPIC_API_KEY}
retries: {max_attempts: 2, backoff_ms: 1}
breakers: {failures: 0}
budgets: {max_cost_per_job_usd: 1}
"""


def delta(delta: Any, finish: str | None = None, index: Any = 0) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def call(index: Any, arguments: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"tool_calls": [{"index": index, "id": f"c{index}", "type": "function", "function": function}]}


HELLO, END = delta({"role": "assistant", "content": "hello"}), delta({}, "stop")
MESSAGE = {"id": "m", "type": "message", "role": "assistant", "model": "claude", "content": [], "stop_reason": None}
START = {"type": "message_start", "message": MESSAGE | {"usage": {"input_tokens": 3, "output_tokens": 1}}}
STOPPED = [
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
]
STRANGE: dict[str, list[Any]] = {
    "an index that is a list": [HELLO, delta({"content": "x"}, index=[0]), END],
    "tool calls under 0 and '1'": [delta(call(0, "{}")), delta(call("1", "{}")), delta({}, "tool_calls")],
    "arguments that are a number": [delta(call(0, 7)), delta({}, "tool_calls")],
    "a finish reason that is a list": [HELLO, delta({}, ["stop"])],  # type: ignore[arg-type]
    "content that changes its kind": [HELLO, delta({"content": {"a": 1}}), delta({"content": ["x"]}), END],
    "no choice but a word": [HELLO, {"choices": "x"}, END],
}
STRANGE_MESSAGES: dict[str, list[Any]] = {
    "a type that is a list": [START, {"type": ["x"], "index": 0}, *STOPPED],
    "a type that is a list, first": [{"type": ["x"], "index": 0}, START, *STOPPED],
    "a block that is none": [START, {"type": "content_block_start", "index": 0, "content_block": 5}, *STOPPED],
    "an index that is a word": [
        START,
        {"type": "content_block_start", "index": "a", "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        *STOPPED,
    ],
}


@asynccontextmanager
async def streaming(store: Store, pieces: list[Any]) -> AsyncIterator[Any]:
    async def provider(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for piece in pieces:
            body = b"data: %b\n\n" % json.dumps(piece).encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    server = Server(provider)
    _, port = await server.start("127.0.0.1", 0)
    url = f"http://127.0.0.1:{port}/v1"
    keys = {"OPENAI_API_KEY": "sk-1", "ANTHROPIC_API_KEY": "sk-2"}
    rules = routed().replace("retries: {max_attempts: 2, backoff_ms: 1}\n", "") + PROVIDERS % (url, url)
    try:
        async with serving(store, None, rules, environment=keys) as served:  # type: ignore[arg-type]
            yield served
    finally:
        await server.stop(0)


async def check(store: Store, model: str, path: str, pieces: list[Any]) -> None:
    said = {"input": "hello"} if path == "responses" else {"messages": [{"role": "user", "content": "hello"}]}
    async with streaming(store, pieces) as served:
        body = {"model": model, "stream": True, "max_tokens": 50, **said}
        if path == "responses":
            body.pop("max_tokens")
        answer = await served.http.post(f"/v1/{path}", json=body, headers={"x-job-id": "strange"})
        assert answer.status_code in (200, 502), answer.text
        assert "internal" not in answer.text
        seen = await served.events("strange")
        calls = [event.facts.call_id for event in seen if event.facts.event == "model_called"]
        ends = [event.facts.call_id for event in seen if event.facts.event in ("model_succeeded", "model_failed")]
        assert calls == ends, "a try was left without an end"


every_path = pytest.mark.parametrize("path", ["chat/completions", "messages", "responses"])


@every_path
@pytest.mark.parametrize("strange", STRANGE)
async def test_unexpected_chat_stream_values_are_failures(store: Store, path: str, strange: str) -> None:
    await check(store, "gpt-5.4-mini", path, STRANGE[strange])


@every_path
@pytest.mark.parametrize("strange", STRANGE_MESSAGES)
async def test_unexpected_messages_stream_values_are_failures(store: Store, path: str, strange: str) -> None:
    await check(store, "claude-sonnet-4.6", path, STRANGE_MESSAGES[strange])
