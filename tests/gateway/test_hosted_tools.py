"""Provider-run tools: fees are reserved, booked and reported; tools without a fee are rejected."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from overnight.api import Server
from overnight.brain import Brain
from overnight.pricing.provider_tools import (
    FEES,
    MAX_USES,
    bound_microusd,
    fees_of,
    hosted_tools,
    uses_in_message,
    uses_in_response,
)
from overnight.store import Store
from serving import routed, serving

SEARCHES = [
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "a"}},
    {
        "type": "web_search_call",
        "id": "ws_2",
        "status": "completed",
        "action": {"type": "open_page", "url": "http://x"},
    },
    {"type": "web_search_call", "id": "ws_3", "status": "completed", "action": {"type": "search", "query": "b"}},
    {
        "type": "code_interpreter_call",
        "id": "ci_1",
        "status": "completed",
        "container_id": "c1",
        "code": "1",
        "outputs": [],
    },
    {
        "type": "code_interpreter_call",
        "id": "ci_2",
        "status": "completed",
        "container_id": "c1",
        "code": "2",
        "outputs": [],
    },
]
TEXT = {"type": "output_text", "text": "found", "annotations": []}
SAYS = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [TEXT]}
RESPONSE: dict[str, Any] = {
    "id": "resp_1", "object": "response", "created_at": 0, "status": "completed", "model": "gpt-5.4-mini", "error": None,
    "incomplete_details": None, "instructions": None, "metadata": {}, "output": [*SEARCHES, SAYS], "parallel_tool_calls": True,
    "tool_choice": "auto", "tools": [],
    "usage": {
        "input_tokens": 100, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 10,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 110,
    },
}  # fmt: skip
MESSAGE: dict[str, Any] = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4.6", "stop_reason": "end_turn",
    "stop_sequence": None, "content": [{"type": "text", "text": "found"}],
    "usage": {
        "input_tokens": 100, "output_tokens": 10, "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 1},
    },
}  # fmt: skip


async def provider(scope: Any, receive: Any, send: Any) -> None:
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    asked: dict[str, Any] = json.loads(body)
    if scope["path"].endswith("/messages"):
        body, kind = json.dumps(MESSAGE).encode(), b"application/json"
    elif asked.get("stream"):
        created = {
            "type": "response.created",
            "sequence_number": 0,
            "response": {**RESPONSE, "status": "in_progress", "output": []},
        }
        done = {"type": "response.completed", "sequence_number": 1, "response": RESPONSE}
        body = b"".join(
            b"event: %b\ndata: %b\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in (created, done)
        )
        kind = b"text/event-stream"
    else:
        body, kind = json.dumps(RESPONSE).encode(), b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": body})


PROVIDERS = """
providers:
  openai: {base_url: "%s", apis: [chat, responses], models: ["gpt-*"], api_key_env: OPENAI_API_KEY}
  anthropic: {base_url: "%s", kind: anthropic, models: ["claude-*"], api_key_env: ANTHROPIC_API_KEY}
"""


@asynccontextmanager
async def searching(store: Store, more: str = "") -> AsyncIterator[Any]:
    server = Server(provider)
    _, port = await server.start("127.0.0.1", 0)
    url = f"http://127.0.0.1:{port}/v1"
    keys = {"OPENAI_API_KEY": "sk-1", "ANTHROPIC_API_KEY": "sk-2"}
    try:
        async with serving(store, None, routed(PROVIDERS % (url, url) + more), environment=keys) as served:  # type: ignore[arg-type]
            yield served
    finally:
        await server.stop(0)


async def ended(served: Any, job: str) -> tuple[int, dict[str, Any], int]:
    """Cost at most, detail, and what was reserved."""
    events = await served.events(job)
    [called] = [event.facts for event in events if event.facts.event == "model_called"]
    [answered] = [event.facts for event in events if event.facts.event == "model_succeeded"]
    return (
        answered.cost_microusd + (answered.bound_microusd or 0),
        answered.detail or {},
        called.detail["reserved_microusd"],
    )


async def asked(served: Any, job: str, *, stream: bool = False, **more: Any) -> Any:
    tools = [{"type": "web_search"}, {"type": "code_interpreter", "container": {"type": "auto"}}]
    body = {"model": "gpt-5.4-mini", "input": "look", "tools": tools, "stream": stream, **more}
    return await served.http.post("/v1/responses", json=body, headers={"x-job-id": job})


@pytest.mark.parametrize("stream", [False, True])
async def test_searches_of_a_response_are_booked(store: Store, stream: bool) -> None:
    async with searching(store) as served:
        plain = await served.http.post(
            "/v1/responses", json={"model": "gpt-5.4-mini", "input": "look"}, headers={"x-job-id": "plain"}
        )
        assert plain.status_code == 200, plain.text
        tokens, detail, _ = await ended(served, "plain")
        assert "hosted_tools" not in detail
        assert (await asked(served, "hosted", stream=stream)).status_code == 200
        await served.until("hosted", "model_succeeded")
        cost, detail, reserved = await ended(served, "hosted")
        assert detail["hosted_tools"] == {"web_search": 2, "code_interpreter": 1}
        assert cost == tokens + 2 * FEES["web_search"] + FEES["code_interpreter"]
        assert reserved >= MAX_USES * (FEES["web_search"] + FEES["code_interpreter"])


async def test_searches_of_a_message_are_booked(store: Store) -> None:
    async with searching(store) as served:
        body = {"model": "claude-sonnet-4.6", "max_tokens": 50, "messages": [{"role": "user", "content": "look"}]}
        await served.http.post("/v1/messages", json=body, headers={"x-job-id": "plain"})
        tools = [{"type": "web_search_20250305", "name": "web_search", "max_uses": 4}]
        said = await served.http.post("/v1/messages", json=body | {"tools": tools}, headers={"x-job-id": "hosted"})
        assert said.status_code == 200, said.text
        tools[0].pop("max_uses")
        await served.http.post("/v1/messages", json=body | {"tools": tools}, headers={"x-job-id": "unbound"})
        (tokens, _, _), (cost, detail, reserved) = await ended(served, "plain"), await ended(served, "hosted")
        _, _, most = await ended(served, "unbound")
        assert (cost, detail["hosted_tools"]) == (tokens + 3 * FEES["web_search"], {"web_search": 3})
        assert -100 < most - reserved - (MAX_USES - 4) * FEES["web_search"] <= 0  # but for the bytes of `max_uses`


async def test_a_hard_stop_holds_for_searches_too(store: Store) -> None:
    budget = "budgets: {max_cost_per_job_usd: 0.1}\n"
    async with searching(store, budget) as served:
        refused = await asked(served, "dear")
        assert (refused.status_code, refused.json()["error"]["code"]) == (402, "budget_exceeded")
        bounded = await asked(served, "bounded", tools=[{"type": "web_search"}], max_tool_calls=2, max_output_tokens=50)
        assert bounded.status_code == 200, bounded.text


async def test_unknown_fee_is_rejected_until_configured(store: Store) -> None:
    async with searching(store) as served:
        refused = await asked(served, "new", tools=[{"type": "crystal_ball"}])
        assert refused.status_code == 400
        assert "hosted_tools: {crystal_ball: 0.01}" in refused.json()["error"]["message"]
    async with searching(store, "hosted_tools: {crystal_ball: 0, web_search: 0.5}\n") as served:
        assert (
            await asked(served, "stated", tools=[{"type": "crystal_ball"}, {"type": "web_search"}])
        ).status_code == 200
        cost, _, _ = await ended(served, "stated")
        assert cost > 1_000_000


def test_client_side_tools_have_no_fee() -> None:
    run_there = hosted_tools([{"type": "mcp"}, {"type": "local_shell"}, {"type": "computer_use_preview"}])
    assert bound_microusd(run_there, FEES) == 0


@pytest.mark.parametrize("bound", [None, 0, -1, True, "3", 10**9])
def test_missing_maximum_uses_the_default(bound: Any) -> None:
    assert hosted_tools([{"type": "web_search_20250305", "max_uses": bound}]) == (("web_search", MAX_USES),)


@pytest.mark.parametrize(
    "answer",
    [
        {"object": "response", "output": None},
        {
            "object": "response",
            "output": [None, 1, {"type": 3}, {"type": "web_search_call", "action": 7, "container_id": []}],
        },
        {"usage": {"server_tool_use": {"web_search_requests": "many"}}},
        {"usage": {"server_tool_use": {"web_search_requests": -1}}, "content": [3]},
        {"usage": 3, "content": "x"},
    ],
)
def test_odd_usage_reports_are_not_overbooked(answer: Any) -> None:
    counted = uses_in_response(answer) if answer.get("object") == "response" else uses_in_message(answer)
    used, fees = fees_of((("web_search", 1),), FEES, counted)
    assert fees == FEES["web_search"] * used.get("web_search", 0) <= FEES["web_search"]


def test_hosted_tools_section_is_validated() -> None:
    text = 'hosted_tools: {web_search: -1, "Web Search": 0.1, file_search: free}\n'
    with pytest.raises(Exception, match="hosted_tools") as wrong:
        Brain.from_files({"routing.yaml": text.encode()})
    assert all(part in str(wrong.value) for part in ("web_search must be from 0", "Web Search", "file_search"))
