"""Streamed calls: early text, withheld chunks, and the records of broken streams."""

import asyncio
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import openai
import psycopg
import pytest

from overnight.ledger import Ledger
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from serving import Served, gateway_process, routed, serving

TOOLS = [{"type": "function", "function": {"name": "file", "parameters": {"type": "object"}}}]
TOOL_RULE = "rules: [{answer: {tool_calls: [{name: file, arguments: {folder: 'a}b', number: 7}}]}}]"


async def streamed(served: Served, text: str = "hello", **options: Any) -> list[Any]:
    pieces = await served.openai.chat.completions.create(
        model=options.pop("model", "auto"), messages=[{"role": "user", "content": text}], stream=True, **options
    )
    return [piece async for piece in pieces]


def text_of(pieces: list[Any]) -> str:
    return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)


async def test_stream_equals_plain_answer_and_record(served: Served) -> None:
    pieces = await streamed(served, "tell me", extra_headers={"x-job-id": "s"})
    assert len(pieces) > 4
    assert text_of(pieces) == "(scripted) offline answer to: tell me"
    assert pieces[-1].choices[0].finish_reason == "stop"
    assert all(piece.usage is None for piece in pieces)
    succeeded = (await served.events("s"))[-1]
    recorded = json.loads(succeeded.content)
    plain = (await served.ask("tell me", headers={"x-job-id": "p"})).json()
    assert recorded["choices"][0]["message"]["content"] == plain["choices"][0]["message"]["content"]
    assert recorded["choices"][0]["finish_reason"] == "stop"
    assert recorded["usage"] == plain["usage"]
    assert succeeded.facts.output_tokens == plain["usage"]["completion_tokens"]
    assert "estimated" not in (succeeded.facts.detail or {})


async def test_requested_usage_chunk_carries_the_cost(served: Served) -> None:
    options = {"stream_options": {"include_usage": True}, "extra_headers": {"x-job-id": "u"}}
    last = (await streamed(served, **options))[-1]
    assert last.choices == []
    assert last.usage.total_tokens > 0
    [(_, _, _, _, _, microusd, _)] = await served.ledger.usage((await served.ledger.job("u")).job_id)
    assert last.usage.cost_usd == microusd / 1_000_000 > 0


async def test_stream_headers_contain_the_call_id(served: Served) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}], "stream": True}
    async with served.http.stream("POST", "/v1/chat/completions", json=body, headers={"x-job-id": "h"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        call_id = answer.headers["x-overnight-call-id"]
        lines = [line async for line in answer.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert (await served.events("h"))[-1].facts.call_id == call_id


async def test_tool_calls_are_delivered_complete(served: Served) -> None:
    served.provider.set_rules(TOOL_RULE)
    pieces = await streamed(served, tools=TOOLS, extra_headers={"x-job-id": "t"})
    calls = [call for piece in pieces for call in piece.choices[0].delta.tool_calls or []]
    assert json.loads("".join(call.function.arguments or "" for call in calls)) == {"folder": "a}b", "number": 7}
    assert pieces[-1].choices[0].finish_reason == "tool_calls"
    events = await served.events("t")
    [call] = json.loads(events[-1].content)["choices"][0]["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "file")
    assert json.loads(call["function"]["arguments"]) == {"folder": "a}b", "number": 7}
    tools = await served.ledger.content("default", events[1].facts.detail["tools_ref"])
    assert json.loads(tools) == TOOLS


@contextmanager
def unwritable(store_url: str) -> Iterator[None]:
    """Nobody can commit meanwhile."""
    if store_url.startswith("postgres"):
        with psycopg.connect(store_url) as connection:
            connection.execute("LOCK TABLE job IN ACCESS EXCLUSIVE MODE")
            yield
            connection.rollback()
    else:
        lock = os.open(f"{store_url}.lock", os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(lock)


@pytest.mark.parametrize(
    ("rules", "telling"),
    [
        ("rules: [{answer: four little words here, fault: {chunk_delay_ms: 60}}]", '"finish_reason":"stop"'),
        (TOOL_RULE.replace("}}]}}]", "}}]}, fault: {chunk_delay_ms: 60}}]"), '7}"'),
    ],
    ids=["text", "tool call"],
)
async def test_tool_calls_wait_until_the_call_is_durable(
    store_url: str, provider: SpawnedProvider, tmp_path: Path, rules: str, telling: str
) -> None:
    provider.set_rules(rules)
    body = {"model": "auto", "messages": [{"role": "user", "content": "go"}], "stream": True}
    seen = ""
    with gateway_process(store_url, provider, tmp_path) as gateway:
        async with (
            httpx2.AsyncClient(base_url=gateway.url, timeout=30) as http,
            http.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            pieces = answer.aiter_text()
            seen += await anext(pieces)
            with unwritable(store_url):
                waiting = asyncio.ensure_future(anext(pieces))
                while (await asyncio.wait([waiting], timeout=1.0))[0]:
                    seen += waiting.result()
                    waiting = asyncio.ensure_future(anext(pieces))
                assert seen
                assert telling not in seen
                assert "data: [DONE]" not in seen
            seen += await waiting
            with suppress(StopAsyncIteration):
                while True:
                    seen += await anext(pieces)
    assert telling in seen
    assert seen.endswith("data: [DONE]\n\n")


# ── failures ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_stream_failing_before_first_chunk_is_retried(served: Served) -> None:
    served.provider.set_rules("rules: [{match: {model: 'claude*'}, fault: {reset: true}}]")
    pieces = await streamed(served, model="claude-opus-4.6", extra_headers={"x-job-id": "f"})
    assert text_of(pieces).startswith("(scripted)")
    story = await served.story("f")
    assert (story.count("model_called"), story.count("fallback_taken"), story[-1]) == (3, 1, "model_succeeded")


async def test_stream_without_first_chunk_falls_back(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{match: {model: 'claude*'}, fault: {stall: true}}]")
    async with serving(store, provider, routed("deadlines: {default_ms: 600}")) as served:
        assert text_of(await streamed(served, model="claude-opus-4.6")).startswith("(scripted)")


async def test_rejected_stream_is_an_error_with_a_status(served: Served) -> None:
    served.provider.set_rules("rules: [{fault: {status: 400, message: too hot}}]")
    with pytest.raises(openai.BadRequestError, match="too hot"):
        await streamed(served)


@pytest.mark.parametrize("fault", ["cut_after_chunks: 3", "cut_after_chunks: 3, reset: true"])
async def test_cut_stream_is_reported_billed_and_not_replayed(served: Served, fault: str) -> None:
    served.provider.set_rules(f"rules: [{{answer: one two three four five six, fault: {{{fault}}}}}]")
    with pytest.raises(openai.APIError):
        await streamed(served, extra_headers={"x-job-id": "c"})
    events = await served.events("c")
    assert [event.facts.event for event in events] == ["created", "model_called", "model_failed"]
    assert events[-1].facts.error.error_class == "cut"
    assert events[-1].facts.bound_microusd > 0
    assert events[-1].facts.detail["estimated"]
    served.provider.set_rules("rules: []")
    await streamed(served, extra_headers={"x-job-id": "c", "x-job-attempt": "2"})
    assert "model_replayed" not in await served.story("c")


async def test_broken_json_in_a_stream_ends_it_with_an_error(served: Served) -> None:
    served.provider.set_rules("rules: [{fault: {broken_json: true, chunk_delay_ms: 5}}]")
    with pytest.raises(openai.APIError):
        await streamed(served, extra_headers={"x-job-id": "j"})
    failed = (await served.events("j"))[-1].facts
    assert (failed.event, failed.error.error_class) == ("model_failed", "malformed")
    assert failed.bound_microusd > 0


async def test_disconnect_does_not_stop_the_recording(served: Served) -> None:
    served.provider.set_rules("rules: [{answer: {text: word, repeat_words: 40}, fault: {chunk_delay_ms: 10}}]")
    pieces = await served.openai.chat.completions.create(
        model="auto",
        messages=[{"role": "user", "content": "long"}],
        stream=True,
        extra_headers={"x-job-id": "gone"},
    )
    async for _ in pieces:
        break
    await pieces.close()
    events = await served.until("gone", "model_succeeded")
    said = json.loads(events[-1].content)["choices"][0]["message"]["content"]
    assert len(said.split()) == 40
    assert events[-1].facts.cost_microusd > 0


async def test_plain_call_is_recorded_after_disconnect(served: Served) -> None:
    served.provider.set_rules("rules: [{fault: {delay_ms: 300}}]")
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(httpx2.ReadTimeout):
        await served.http.post("/v1/chat/completions", json=body, headers={"x-job-id": "left"}, timeout=0.1)
    await served.until("left", "model_succeeded")


async def test_silence_in_a_stream_is_limited(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{answer: one two three, fault: {chunk_delay_ms: 2000}}]")
    async with serving(store, provider, routed("deadlines: {default_ms: 300}")) as served:
        with pytest.raises(openai.APIError):
            await streamed(served, extra_headers={"x-job-id": "gap"})
        assert (await served.events("gap"))[-1].facts.error.error_class == "timeout"


async def test_hanging_stream_is_ended(store: Store, provider: SpawnedProvider) -> None:
    piece = {"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]}
    hanging = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        for _ in range(4):
            writer.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
            await writer.drain()
            await asyncio.sleep(0.02)
        hanging.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    house = f"{{base_url: 'http://127.0.0.1:{port}/v1', models: [house-1]}}"
    free = "prices: {house-1: {input_usd_per_mtok: 0, output_usd_per_mtok: 0}}"
    routing = routed(f"providers: {{house: {house}}}\n{free}\ndeadlines: {{default_ms: 1000}}")
    async with serving(store, provider, routing) as served:
        body = {"model": "house-1", "messages": [{"role": "user", "content": "x"}], "stream": True}
        async with asyncio.timeout(7):  # ten deadlines are the bound of the whole stream
            answer = await served.http.post("/v1/chat/completions", json=body, headers={"x-job-id": "hang"})
        assert hanging.is_set()
        assert answer.text.count("word ") == 4
        assert "before the deadline" in answer.text
        failed = (await served.events("hang"))[-1].facts
        assert (failed.error.error_class, failed.cost_microusd) == ("timeout", 0)  # it is nobody's bill
        assert failed.output_tokens == 5
    server.close()


async def test_long_stream_may_exceed_the_silence_limit(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{answer: {text: word, repeat_words: 12}, fault: {chunk_delay_ms: 60}}]")
    async with serving(store, provider, routed("deadlines: {default_ms: 400}")) as served:
        assert len(text_of(await streamed(served)).split()) == 12


async def test_crash_before_settlement_withholds_tool_calls(
    store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    provider.set_rules(TOOL_RULE)
    body = {"model": "auto", "messages": [{"role": "user", "content": "go"}], "stream": True}
    with gateway_process(store_url, provider, tmp_path, crash_at="model_answered") as gateway:
        seen = ""
        broken = False
        try:
            async with (
                httpx2.AsyncClient(base_url=gateway.url, timeout=30) as http,
                http.stream("POST", "/v1/chat/completions", json=body, headers={"x-job-id": "k"}) as answer,
            ):
                async for piece in answer.aiter_text():
                    seen += piece
        except httpx2.HTTPError:
            broken = True
    assert broken
    assert '7}"' not in seen
    with open_store(store_url) as store:
        async with serving(store, provider) as served:
            assert await served.gateway.settle_owner(gateway.owner) == 1
        lost = (await Ledger(store).events((await Ledger(store).job("k")).job_id))[-1].facts
        assert lost.event == "model_lost"
        assert (lost.cost_microusd, lost.bound_microusd > 0) == (0, True)
