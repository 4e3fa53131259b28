"""Usage reports beyond the bound: the hard stop holds, and the report is recorded and logged."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from faulty_upstream import STREAM, WHOLE, Asked, chunk, faulty_upstream, head, pieces_of
from overnight.budgets import correct_cost
from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, serving

HUGE = {"prompt_tokens": 10**9, "completion_tokens": 10**9, "total_tokens": 2 * 10**9}
A_DOLLAR = 1_000_000


@asynccontextmanager
async def lied_to(
    store: Store, provider: SpawnedProvider, usage: dict[str, Any], more: dict[str, Any] | None = None
) -> AsyncIterator[Served]:
    async def lies(asked: Asked, _reader: Any, writer: Any) -> None:
        if not asked.streamed:
            body = json.dumps({**WHOLE[asked.form], "usage": usage} | (more or {})).encode()
            writer.write(head(200, "application/json", f"content-length: {len(body)}") + body)
            return
        writer.write(STREAM)
        last = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [], "usage": usage}
        for piece in pieces_of(asked):
            if b"[DONE]" in piece:
                writer.write(chunk(b"data: " + json.dumps(last).encode() + b"\n\n"))
            writer.write(chunk(piece))
        writer.write(b"0\r\n\r\n")

    async with faulty_upstream({"m": lies}) as upstream:
        routing = f"""
default_model: m
providers:
  odd: {{base_url: "{upstream.base_url}", models: [m], apis: [chat]}}
prices: {{m: {{input_usd_per_mtok: 1, output_usd_per_mtok: 1}}}}
budgets: {{limits: [{{scope: tenant, per: total, max_cost_usd: 1}}]}}
retries: {{max_attempts: 1}}
"""
        async with serving(store, provider, routing, environment={"ODD_KEY": "sk-1"}) as served:
            yield served


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_beyond_the_bound_is_recorded_and_not_booked(
    store: Store, provider: SpawnedProvider, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    caplog.set_level(logging.WARNING, "overnight.gateway")
    async with lied_to(store, provider, HUGE) as served:
        for _ in range(2):
            answer = await served.ask(headers={"x-job-id": "j"}, stream=stream, max_tokens=8000)
            assert answer.status_code == 200, answer.text  # the second one: the limit of a dollar was not reached
        events = [each.facts for each in await served.events("j")]
        called = next(each for each in events if each.event == "model_called")
        ended = next(each for each in events if each.event == "model_succeeded")
        assert (called.detail or {})["reserved_microusd"] < 10_000
        assert (ended.cost_microusd or 0) <= (called.detail or {})["reserved_microusd"]
        assert (ended.output_tokens or 0) <= 8000
        told = (ended.detail or {})["told"]
        assert told == {"input_tokens": 10**9, "output_tokens": 10**9, "cost_microusd": 2_000 * A_DOLLAR}
        assert sum("reported more usage" in each.message for each in caplog.records) == 1  # once a minute for a target

        # Should the bill say so after all, a person can book it.
        done = await correct_cost(store, "default", ended.call_id or "", 2 * A_DOLLAR, actor="ann", why="the invoice")
        assert (done.cost_microusd, done.changed) == (2 * A_DOLLAR, True)
        assert (await served.ask(headers={"x-job-id": "j"}, max_tokens=8000)).status_code == 402


async def test_usage_within_the_bound_is_booked(store: Store, provider: SpawnedProvider) -> None:
    async with lied_to(store, provider, {"prompt_tokens": 500, "completion_tokens": 7, "total_tokens": 507}) as served:
        await served.ask(headers={"x-job-id": "j"}, max_tokens=8000)
        ended = next(each.facts for each in await served.events("j") if each.facts.event == "model_succeeded")
        assert (ended.cost_microusd, ended.input_tokens, ended.output_tokens) == (507, 500, 7)
        assert "told" not in (ended.detail or {})


async def test_referenced_content_may_exceed_its_bytes(store: Store, provider: SpawnedProvider) -> None:
    async with lied_to(store, provider, {"prompt_tokens": 90_000, "completion_tokens": 7}) as served:
        parts = [{"type": "image_url", "image_url": {"url": "https://example.org/long.png"}}]
        body = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": parts}]}
        headers = {"x-job-id": "j"}
        assert (await served.http.post("/v1/chat/completions", json=body, headers=headers)).status_code == 200
        ended = next(each.facts for each in await served.events("j") if each.facts.event == "model_succeeded")
        assert (ended.cost_microusd, "told" in (ended.detail or {})) == (90_007, False)


async def test_content_of_few_bytes_may_have_many_tokens(store: Store, provider: SpawnedProvider) -> None:
    usage = {"prompt_tokens": 3_000, "completion_tokens": 5, "total_tokens": 3_005}
    document = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}}
    async with lied_to(store, provider, usage) as served:
        await served.ask(headers={"x-job-id": "j"}, messages=[{"role": "user", "content": [document]}], max_tokens=100)
        ended = (await served.events("j"))[-1].facts
        assert (ended.input_tokens, ended.output_tokens) == (3_000, 5)
        assert "told" not in (ended.detail or {})
        blank = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
        body = {"contents": [{"role": "user", "parts": [blank]}]}
        await served.http.post("/v1beta/models/m:generateContent", json=body, headers={"x-job-id": "g"})
        ended = (await served.events("g"))[-1].facts
        assert (ended.input_tokens, ended.output_tokens) == (3_000, 5)


async def test_failed_attempt_is_booked_within_its_bound(store: Store, provider: SpawnedProvider) -> None:
    async with lied_to(store, provider, HUGE, {"choices": []}) as served:
        for _ in range(2):  # no budget is used up by it
            assert (await served.ask(headers={"x-job-id": "j"}, max_tokens=8000)).status_code == 502
        events = [each.facts for each in await served.events("j")]
        called = next(each for each in events if each.event == "model_called")
        failed = next(each for each in events if each.event == "model_failed")
        assert (failed.cost_microusd or 0) + (failed.bound_microusd or 0) <= (called.detail or {})["reserved_microusd"]
        assert (failed.output_tokens or 0) <= 8000
        assert (failed.detail or {})["told"]["cost_microusd"] == 2_000 * A_DOLLAR
