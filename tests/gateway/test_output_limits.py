"""Output caps: the least of client, route, model and budget applies, and lower caps are reported."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from faulty_upstream import FaultyUpstream, faulty_upstream
from overnight.pricing.output_limits import MIN_OUTPUT, max_output
from overnight.pricing.price_book import PriceBook
from overnight.store import Store
from overnight.story import build_timeline, load_job_tree
from overnight.testing import SpawnedProvider
from serving import Served, routed, serving


async def cap(served: Any, job: str) -> dict[str, Any]:
    [called] = [event.facts for event in await served.events(job) if event.facts.event == "model_called"]
    return called.detail or {}


@pytest.mark.parametrize(
    ("model", "most"),
    [
        ("claude-3-haiku-20240307", 4096),
        ("openrouter/anthropic/claude-3-opus", 4096),
        ("claude-3.5-sonnet", 8192),
        ("claude-3-7-sonnet-20250219", 128_000),
        ("claude-opus-4-20250514", 32_000),
        ("claude-opus-4.1", 32_000),
        ("claude-opus-4-5-20251101", 64_000),
        ("claude-opus-4.6", 128_000),
        ("global.anthropic.claude-sonnet-4-5-20250929-v1:0", 64_000),
        ("claude-sonnet-4-20250514", 64_000),
        ("claude-haiku-4-5", 64_000),
        ("claude-sonnet-5", 128_000),
        ("claude-haiku-5-5", 128_000),
        ("claude-opus-7", None),
        ("gpt-3.5-turbo", 4096),
        ("gpt-4", 8192),
        ("gpt-4-0613", 8192),
        ("gpt-4-turbo", 4096),
        ("gpt-4.1-mini", 32_768),
        ("gpt-4o", 16_384),
        ("gpt-4o-2024-05-13", 4096),
        ("gpt-5-chat-latest", 16_384),
        ("gpt-5.4-mini", 128_000),
        ("openrouter/openai/gpt-5", 128_000),
        ("gpt-5-pro", 272_000),
        ("gpt-6.1-sol", 128_000),
        ("o1-mini", 65_536),
        ("o3", 100_000),
        ("o4-mini-2025-04-16", 100_000),
        ("gemini-2.0-flash", 8192),
        ("gemini-2.5-pro", 65_536),
        ("gemini-3-flash-preview", 65_536),
        ("gemini-4-argon", None),
        ("deepseek-chat", 384_000),
        ("together/deepseek-ai/deepseek-v4-pro", None),
        ("glm-4.6", 131_072),
        ("openrouter/z-ai/glm-4.6", None),
        ("qwen3-max", 65_536),
        ("grok-4.20", None),
        ("mistral-large-latest", None),
        ("kimi-k2.5", None),
        ("house-model", None),
    ],
)
def test_output_limits_of_models(model: str, most: int | None) -> None:
    assert max_output(model) == most


async def test_cap_is_limited_by_the_model(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed()) as served:
        said = await served.ask(model="gpt-3.5-turbo", headers={"x-job-id": "small"})
        assert (said.status_code, "x-overnight-output-cap" in said.headers) == (200, False)
        assert (await cap(served, "small"))["max_output_tokens"] == 4096
        asked = await served.ask(model="gpt-3.5-turbo", headers={"x-job-id": "asked"}, max_tokens=32_000)
        assert asked.headers["x-overnight-output-cap"] == "4096"
        told = await cap(served, "asked")
        assert (told["max_output_tokens"], told["asked_max_output_tokens"], told["capped_by"]) == (
            4096,
            32_000,
            "model",
        )
        window = PriceBook({}).price("gpt-4", "openai", ()).context_window
        assert window is not None
        for size, least, most in ((20_000, 1, window - 5000), (200_000, MIN_OUTPUT, MIN_OUTPUT)):
            await served.ask("x" * size, model="gpt-4", headers={"x-job-id": f"window-{size}"})
            assert least <= (await cap(served, f"window-{size}"))["max_output_tokens"] <= most


# path, the client's name of the cap, the format that the target speaks, the target's name of the cap
CAPS = [
    ("chat/completions", "max_tokens", "chat", "max_tokens"),
    ("chat/completions", "max_completion_tokens", "chat", "max_completion_tokens"),
    ("chat/completions", "max_completion_tokens", "messages", "max_tokens"),
    ("responses", "max_output_tokens", "responses", "max_output_tokens"),
    ("responses", "max_output_tokens", "chat", "max_tokens"),
    ("messages", "max_tokens", "messages", "max_tokens"),
    ("messages", "max_tokens", "chat", "max_tokens"),
]
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}


def said(path: str) -> dict[str, Any]:
    return {"input": "hello"} if path in ("responses", "embeddings") else HELLO


@asynccontextmanager
async def house(
    store: Store, spoken: str, more: str = "", price: str = "{input_usd_per_mtok: 1, output_usd_per_mtok: 2}"
) -> AsyncIterator[tuple[Served, FaultyUpstream]]:
    """A gateway before a provider whose models nobody knows; the route `short` has a cap of its own."""
    async with faulty_upstream() as upstream:
        routing = f"""
default_model: m
routes: {{short: {{model: m, max_output_tokens: 4000}}, tiny: {{model: m, max_output_tokens: 900}}}}
providers: {{house: {{base_url: '{upstream.base_url}', models: [m], apis: [{spoken}]}}}}
prices: {{m: {price}}}
{more}"""
        async with serving(store, upstream, routing) as served:  # type: ignore[arg-type]
            yield served, upstream


@pytest.mark.parametrize(("path", "field", "spoken", "sent"), CAPS)
async def test_client_cap_is_used(store: Store, path: str, field: str, spoken: str, sent: str) -> None:
    async with house(store, spoken) as (served, upstream):
        for asked in (50, 32_000, 1_000_000):
            headers = {"x-job-id": f"j{asked}"}
            answer = await served.http.post(
                f"/v1/{path}", json={"model": "m", field: asked, **said(path)}, headers=headers
            )
            assert (answer.status_code, "x-overnight-output-cap" in answer.headers) == (200, False)
            detail = await cap(served, f"j{asked}")
            assert (detail["max_output_tokens"], "asked_max_output_tokens" in detail) == (asked, False)
            assert upstream.bodies[-1][sent] == asked
            # What is sent is what is reserved.
            assert asked * 2 < detail["reserved_microusd"] < asked * 2 + 2000
        await served.http.post(f"/v1/{path}", json={"model": "m", **said(path)}, headers={"x-job-id": "none"})
        assert (await cap(served, "none"))["max_output_tokens"] == 8192
        assert upstream.bodies[-1].get(sent, upstream.bodies[-1].get("max_tokens")) == 8192


@pytest.mark.parametrize(("path", "field", "spoken", "sent"), CAPS)
async def test_cap_lowered_by_a_route_is_reported(store: Store, path: str, field: str, spoken: str, sent: str) -> None:
    async with house(store, spoken) as (served, upstream):
        body = {"model": "short", field: 32_000, **said(path)}
        answer = await served.http.post(f"/v1/{path}", json=body, headers={"x-job-id": "high"})
        assert (answer.status_code, answer.headers["x-overnight-output-cap"]) == (200, "4000")
        detail = await cap(served, "high")
        told = (detail["max_output_tokens"], detail["asked_max_output_tokens"], detail["capped_by"])
        assert told == (upstream.bodies[-1][sent], 32_000, "route") == (4000, 32_000, "route")
        job = await served.ledger.job("high", "default")
        chapter = await load_job_tree(served.ledger, job)
        notes = [line.text for line in build_timeline(chapter, store.clock()).lines]
        assert "output limit lowered from 32,000 to 4,000 tokens by route short" in notes
        low = await served.http.post(f"/v1/{path}", json=body | {field: 50}, headers={"x-job-id": "low"})
        assert "x-overnight-output-cap" not in low.headers
        assert "asked_max_output_tokens" not in await cap(served, "low")


async def test_cap_lowered_by_a_budget_is_reported(store: Store) -> None:
    async with house(store, "chat", "budgets: {max_cost_per_job_usd: 0.01}") as (served, upstream):
        answer = await served.ask(model="m", headers={"x-job-id": "j"}, max_tokens=32_000)
        detail = await cap(served, "j")
        assert detail["lowered"]
        assert 4000 < detail["max_output_tokens"] < 5000
        assert int(answer.headers["x-overnight-output-cap"]) == detail["max_output_tokens"]
        assert upstream.bodies[-1]["max_tokens"] == detail["max_output_tokens"]
        assert detail["reserved_microusd"] <= 10_000


async def test_every_choice_may_use_the_cap(store: Store) -> None:
    async with house(store, "chat") as (served, upstream):
        await served.ask(model="m", headers={"x-job-id": "three"}, max_tokens=20_000, n=3)
        assert (upstream.bodies[-1]["max_tokens"], upstream.bodies[-1]["n"]) == (20_000, 3)
        assert 120_000 < (await cap(served, "three"))["reserved_microusd"] < 121_000
    async with house(store, "chat", "budgets: {max_cost_per_job_usd: 0.03}") as (served, upstream):
        await served.ask(model="m", headers={"x-job-id": "poor"}, max_tokens=20_000, n=3)
        assert 4500 < upstream.bodies[-1]["max_tokens"] < 5000


async def test_embeddings_have_no_cap(store: Store) -> None:
    async with house(store, "embeddings") as (served, upstream):
        body = {"model": "short", **said("embeddings")}
        answer = await served.http.post("/v1/embeddings", json=body, headers={"x-job-id": "e"})
        assert (answer.status_code, "x-overnight-output-cap" in answer.headers) == (200, False)
        assert not {"max_tokens", "max_output_tokens", "max_completion_tokens"}.intersection(upstream.bodies[-1])
        assert (await cap(served, "e"))["reserved_microusd"] < 100


ENABLED = {"type": "enabled", "budget_tokens": 10_000}


@pytest.mark.parametrize(
    ("path", "spoken", "asked"),
    [
        ("messages", "messages", {"max_tokens": 16_000, "thinking": ENABLED}),
        ("chat/completions", "messages", {"max_tokens": 16_000, "reasoning": {"max_tokens": 10_000}}),
        ("chat/completions", "chat", {"max_tokens": 16_000, "reasoning": {"max_tokens": 10_000}}),
        ("chat/completions", "chat", {"max_tokens": 16_000, "thinking": ENABLED}),
    ],
)
async def test_thinking_budget_stays_below_the_cap(store: Store, path: str, spoken: str, asked: dict[str, Any]) -> None:
    def budget() -> int | None:
        body = upstream.bodies[-1]
        found = body.get("thinking") or body.get("reasoning") or {}
        return found.get("budget_tokens", found.get("max_tokens"))

    async with house(store, spoken) as (served, upstream):
        answer = await served.http.post(f"/v1/{path}", json={"model": "m", **asked, **HELLO})
        assert (upstream.bodies[-1]["max_tokens"], budget()) == (16_000, 10_000)
        assert "x-overnight-dropped" not in answer.headers
        answer = await served.http.post(f"/v1/{path}", json={"model": "short", **asked, **HELLO})
        assert (upstream.bodies[-1]["max_tokens"], budget()) == (4000, 2000)
        assert "x-overnight-dropped" in answer.headers
        await served.http.post(f"/v1/{path}", json={"model": "tiny", **asked, **HELLO})
        assert (upstream.bodies[-1]["max_tokens"], budget()) == (900, None)


FAILING = """
rules:
  - match: {times: 1}
    fault: {FAULT}
  - match: {user_contains: never}
    fault: {FAULT}
"""


async def spent(served: Any, job: str) -> tuple[int, int, int]:
    """Of the job: micro-dollars of known cost and of bounds, and tries."""
    ends = [e.facts for e in await served.events(job) if e.facts.event in ("model_succeeded", "model_failed")]
    known, bounds = (each.cost_microusd or 0 for each in ends), (each.bound_microusd or 0 for each in ends)
    return sum(known), sum(bounds), len(ends)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ["hello", "never"])
@pytest.mark.parametrize("fault", ["broken_json: true", "status: 500"])
async def test_cost_of_an_answer_includes_all_attempts(
    store: Store, provider: SpawnedProvider, fault: str, text: str, stream: bool
) -> None:
    provider.set_rules(FAILING.replace("FAULT", fault), prepend=True)
    async with serving(store, provider, routed("breakers: {failures: 0}\n")) as served:
        more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        answer = await served.ask(text, headers={"x-job-id": "tried"}, max_tokens=50, **more)
        cost, bound, tries = await spent(served, "tried")
        assert (cost + bound > 0) == (text == "hello" or fault != "status: 500")
        # A stream that breaks after its first piece is not tried again.
        assert tries == 2 or (stream and fault != "status: 500")
        if stream and answer.status_code == 200:
            assert "x-overnight-cost-usd" not in answer.headers
            pieces = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
            if "error" not in pieces[-1]:  # else it broke after its first piece
                usage = pieces[-1]["usage"]
                assert (round(usage["cost_usd"] * 1e6), round(usage.get("bound_usd", 0) * 1e6)) == (cost, bound)
        else:
            assert round(float(answer.headers["x-overnight-cost-usd"]) * 1e6) == cost
            assert round(float(answer.headers.get("x-overnight-cost-bound-usd", 0)) * 1e6) == bound
