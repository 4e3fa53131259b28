"""Tools as clients send them: namespaces of Codex, schemas of MCP servers, repeated names; towards every target format."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import pytest

from faulty_upstream import Asked, FaultyUpstream, chunk, faulty_upstream, head
from overnight.store import Store, open_store
from serving import Served, serving

ROUTING = """
default_model: m
providers: {{house: {{base_url: '{url}', models: [m], apis: [{form}]}}}}
prices: {{m: {{input_usd_per_mtok: 1, output_usd_per_mtok: 2}}}}
"""
NAMESPACE = {
    "type": "namespace",
    "name": "mcp__codegraph",
    "description": "Tools of the server codegraph.",
    "tools": [
        {"type": "function", "name": "search", "strict": False, "parameters": {"type": "object", "properties": {}}},
        {"type": "function", "name": "read", "parameters": {"type": "object"}},
    ],
}
SHELL = {
    "type": "function",
    "name": "search",
    "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
}
FLAT = "mcp__codegraph__search"


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_store(str(tmp_path / "ledger.db")) as opened:
        yield opened


class Upstream:
    """A provider of one format that calls `tool`, and records what it was sent."""

    def __init__(self, form: str, tool: str = "") -> None:
        self.form, self.tool, self.seen = form, tool, list[Any]()

    async def __call__(self, asked: Asked, _reader: Any, writer: Any) -> None:
        self.seen.append(asked.body)
        call = {"id": "call_1", "type": "function", "function": {"name": self.tool, "arguments": '{"q":1}'}}
        message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]} if self.tool else {}
        message = message or {"role": "assistant", "content": "ok"}
        reason = "tool_calls" if self.tool else "stop"
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        base = {"id": "x", "created": 1, "model": "m"}
        if self.form == "messages":
            block = {"type": "tool_use", "id": "toolu_1", "name": self.tool, "input": {"q": 1}}
            body: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m"}
            body |= {"content": [block if self.tool else {"type": "text", "text": "ok"}], "stop_sequence": None}
            body |= {"stop_reason": "tool_use" if self.tool else "end_turn"}
            body |= {"usage": {"input_tokens": 5, "output_tokens": 3}}
        elif asked.streamed:
            delta = message | ({"tool_calls": [{"index": 0, **call}]} if self.tool else {})
            pieces = [
                {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
                {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
                {"choices": [], "usage": usage},
            ]
            sent = [json.dumps({**base, "object": "chat.completion.chunk", **piece}).encode() for piece in pieces]
            parts = b"".join(chunk(b"data: %b\n\n" % each) for each in [*sent, b"[DONE]"])
            writer.write(head(200, "text/event-stream", "transfer-encoding: chunked") + parts + b"0\r\n\r\n")
            await writer.drain()
            return
        else:
            choice = {"index": 0, "message": message, "finish_reason": reason}
            body = {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
        content = json.dumps(body).encode()
        writer.write(head(200, "application/json", f"content-length: {len(content)}") + content)
        await writer.drain()


@asynccontextmanager
async def before(store: Store, act: Upstream) -> AsyncIterator[tuple[Served, FaultyUpstream]]:
    async with (
        faulty_upstream({"m": act}) as upstream,
        serving(store, upstream, ROUTING.format(url=upstream.base_url, form=act.form)) as served,  # type: ignore[arg-type]
    ):
        yield served, upstream


# ── namespaces ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["chat", "messages"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_tools_of_a_namespace_come_back_with_it(store: Store, form: str, stream: bool) -> None:
    if form == "messages" and stream:
        pytest.skip("the upstream of this test streams chat alone")
    act = Upstream(form, FLAT)
    async with before(store, act) as (served, _):
        tools: Any = [NAMESPACE, SHELL]
        if stream:
            asked = await served.openai.responses.create(model="m", input="go", tools=tools, stream=True)
            events = [event async for event in asked]
            done = [event.item for event in events if event.type == "response.output_item.done"]
            last: Any = events[-1]
            [item] = last.response.output
            assert [each.model_dump() for each in done] == [item.model_dump()]
        else:
            [item] = (await served.openai.responses.create(model="m", input="go", tools=tools)).output
        call = item.model_dump()
        assert (call["type"], call["name"], call["namespace"]) == ("function_call", "search", "mcp__codegraph")
        assert json.loads(call["arguments"]) == {"q": 1}
        sent = act.seen[0]["tools"]
        names = [tool["function"]["name"] if form == "chat" else tool["name"] for tool in sent]
        assert names == [FLAT, "mcp__codegraph__read", "search"]
        if stream:
            return
        # the next turn
        history: Any = [{"role": "user", "content": "go"}, call]
        history.append({"type": "function_call_output", "call_id": call["call_id"], "output": "found"})
        await served.openai.responses.create(model="m", input=history, tools=tools)
        assert FLAT in json.dumps(act.seen[1]["messages"])


async def test_tool_of_a_namespace_can_be_chosen(store: Store) -> None:
    act = Upstream("chat", FLAT)
    async with before(store, act) as (served, _):
        chosen = {"type": "function", "name": "search", "namespace": "mcp__codegraph"}
        body = {"model": "m", "input": "go", "tools": [NAMESPACE, SHELL], "tool_choice": chosen}
        assert (await served.http.post("/v1/responses", json=body)).status_code == 200
        assert act.seen[0]["tool_choice"] == {"type": "function", "function": {"name": FLAT}}
        allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "namespace", "name": "mcp__codegraph"}]}
        assert (await served.http.post("/v1/responses", json={**body, "tool_choice": allowed})).status_code == 200
        assert [each["function"]["name"] for each in act.seen[1]["tools"]] == [FLAT, "mcp__codegraph__read"]


async def test_namespace_is_no_tool_of_the_provider(store: Store) -> None:
    """No fee and no room for results is reserved for it."""
    act = Upstream("chat")
    async with before(store, act) as (served, _):
        reserved: list[int] = []
        for tools in ([NAMESPACE], NAMESPACE["tools"]):
            body = {"model": "m", "input": "go", "tools": tools, "max_output_tokens": 9}
            assert (await served.http.post("/v1/responses", json=body, headers={"x-job-id": "j"})).status_code == 200
            called = [each.facts for each in await served.events("j") if each.facts.event == "model_called"]
            reserved.append(called[-1].detail["reserved_microusd"])
        assert 0 < reserved[0] - reserved[1] < 200


# ── schemas ─────────────────────────────────────────────────────────────────────────────────────────────────────────

ANY_OF = {
    "type": "object",
    "anyOf": [
        {"properties": {"a": {"type": "string"}, "c": {}}, "required": ["a", "c"]},
        {"properties": {"b": {"type": "string"}, "c": {}}, "required": ["b", "c"]},
    ],
}
PLAIN: dict[str, Any] = {"type": "object", "properties": {}}
SCHEMAS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "without properties": ({"type": "object"}, PLAIN, ""),
    "empty": ({}, PLAIN, ""),
    "null": (None, PLAIN, ""),
    "null properties": ({"type": "object", "properties": None, "required": None}, PLAIN, ""),
    "without a type": (
        {"properties": {"a": {"type": "string"}}},
        {"type": "object", "properties": {"a": {"type": "string"}}},
        "",
    ),
    "nullable": ({"type": ["object", "null"], "properties": {}}, PLAIN, ""),
    "top-level anyOf": (
        ANY_OF,
        {
            "type": "object",
            "properties": {"a": {"type": "string"}, "b": {"type": "string"}, "c": {}},
            "required": ["c"],
        },
        "anyOf",
    ),
    "top-level reference": (
        {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object", "properties": {"a": {}}, "required": ["a"]}}},
        {
            "type": "object",
            "properties": {"a": {}},
            "required": ["a"],
            "$defs": {"A": {"type": "object", "properties": {"a": {}}, "required": ["a"]}},
        },
        "$ref",
    ),
    "no object": ({"type": "string"}, PLAIN, "type"),
}
CLIENTS: dict[str, tuple[str, Any]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9}),
    "responses": ("/v1/responses", {"input": "x"}),
}


def tool(form: str, name: str, schema: Any) -> dict[str, Any]:
    if form == "messages":
        return {"name": name, "input_schema": schema}
    function = {"name": name, "parameters": schema}
    return {"type": "function", **function} if form == "responses" else {"type": "function", "function": function}


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize(
    ("client", "target"),
    [("chat", "messages"), ("messages", "chat"), ("responses", "chat"), ("responses", "messages"), ("chat", "chat"),
     ("messages", "messages")],
)  # fmt: skip
async def test_schema_is_made_acceptable_or_named(store: Store, client: str, target: str, name: str) -> None:
    schema, expected, lost = SCHEMAS[name]
    act = Upstream(target)
    async with before(store, act) as (served, _):
        path, body = CLIENTS[client]
        body = {"model": "m", **body, "tools": [tool(client, "look", schema)]}
        for _ in range(2):
            answer = await served.http.post(path, json=body)
            assert answer.status_code == 200, answer.text
            dropped = answer.headers.get("x-overnight-dropped", "")
            assert (lost in dropped) if lost else not dropped
        for seen in act.seen:
            [sent] = seen["tools"]
            assert (sent["input_schema"] if target == "messages" else sent["function"]["parameters"]) == expected


@pytest.mark.parametrize("target", ["chat", "messages"])
@pytest.mark.parametrize("client", CLIENTS)
async def test_second_tool_of_a_name_is_named_and_left_out(store: Store, client: str, target: str) -> None:
    act = Upstream(target)
    async with before(store, act) as (served, _):
        path, body = CLIENTS[client]
        tools = [tool(client, each, PLAIN) for each in ("look", "read", "look")]
        answer = await served.http.post(path, json={"model": "m", **body, "tools": tools})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-overnight-dropped"] == "tools[2] (repeated name)"
        assert len(act.seen[0]["tools"]) == 2


async def test_usual_tools_are_sent_as_they_are(store: Store) -> None:
    act = Upstream("messages")
    async with before(store, act) as (served, _):
        tools = [
            {"name": "look", "input_schema": {**PLAIN, "required": []}},
            {"type": "web_search_20250305", "name": "w"},
        ]
        client = anthropic.AsyncAnthropic(base_url=served.url, api_key="unused", max_retries=0)
        said: Any = [{"role": "user", "content": "x"}]
        await client.messages.create(model="m", max_tokens=9, messages=said, tools=tools)  # type: ignore[arg-type]
        await client.close()
        assert act.seen[0]["tools"] == tools
