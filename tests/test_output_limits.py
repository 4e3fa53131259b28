"""The output cap of a call is the least of what client, route and model allow; a lower one is told, and all tries are counted."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from overnight.gateway.output_limits import LEAST_OUTPUT, UNLIMITED, most_output
from overnight.gateway.prices import PriceBook
from overnight.store import Store
from overnight.testing import SpawnedProvider, spawn_scripted_provider
from serving import routed, serving


@pytest.fixture(scope="module")
def provider() -> Iterator[SpawnedProvider]:
    with spawn_scripted_provider() as running:
        yield running


@pytest.fixture
def scripted(provider: SpawnedProvider) -> SpawnedProvider:
    provider.set_rules("rules: []")
    provider.reset()
    return provider


async def cap(served: Any, job: str) -> dict[str, Any]:
    [called] = [event.facts for event in await served.events(job) if event.facts.event == "model_called"]
    return called.detail or {}


@pytest.mark.parametrize(
    ("model", "most"),
    [
        ("claude-3-haiku-20240307", 4096),
        ("openrouter/anthropic/claude-3-opus", 4096),
        ("claude-3.5-sonnet", 8192),
        ("gpt-3.5-turbo", 4096),
        ("gpt-4", 4096),
        ("gpt-4-turbo", 4096),
        ("gpt-4.1", UNLIMITED),
        ("gpt-4o", 16_384),
        ("claude-opus-4.6", UNLIMITED),
        ("gpt-5.4-mini", UNLIMITED),
    ],
)
def test_what_models_can_put_out(model: str, most: int) -> None:
    assert most_output(model) == most


async def test_a_model_is_not_asked_for_more_than_it_can(store: Store, scripted: SpawnedProvider) -> None:
    async with serving(store, scripted, routed()) as served:
        said = await served.ask(model="gpt-3.5-turbo", headers={"x-job-id": "small"})
        assert (said.status_code, "x-overnight-output-cap" in said.headers) == (200, False)
        assert (await cap(served, "small"))["max_output_tokens"] == 4096
        window = PriceBook({}).price("gpt-4", "openai", ()).context_window
        assert window is not None
        for size, least, most in ((20_000, 1, window - 5000), (200_000, LEAST_OUTPUT, LEAST_OUTPUT)):
            await served.ask("x" * size, model="gpt-4", headers={"x-job-id": f"window-{size}"})
            assert least <= (await cap(served, f"window-{size}"))["max_output_tokens"] <= most


@pytest.mark.parametrize("path", ["chat/completions", "responses", "messages"])
async def test_a_lowered_cap_is_told(store: Store, scripted: SpawnedProvider, path: str) -> None:
    field = {"chat/completions": "max_completion_tokens", "responses": "max_output_tokens", "messages": "max_tokens"}[
        path
    ]
    said = {"input": "hello"} if path == "responses" else {"messages": [{"role": "user", "content": "hello"}]}
    async with serving(store, scripted, routed()) as served:
        body = {"model": "gpt-5.4-mini", field: 32_000, **said}
        answer = await served.http.post(f"/v1/{path}", json=body, headers={"x-job-id": "high"})
        assert (answer.status_code, answer.headers["x-overnight-output-cap"]) == (200, "8192")
        detail = await cap(served, "high")
        assert (detail["max_output_tokens"], detail["asked_max_output_tokens"]) == (8192, 32_000)
        low = await served.http.post(f"/v1/{path}", json=body | {field: 50}, headers={"x-job-id": "low"})
        assert "x-overnight-output-cap" not in low.headers
        assert "asked_max_output_tokens" not in await cap(served, "low")


FAILING = """
rules:
  - match: {times: 1}
    fault: {FAULT}
  - match: {user_contains: never}
    fault: {FAULT}
"""


async def spent(served: Any, job: str) -> tuple[int, int]:
    """Of the job: micro-dollars, and tries."""
    ends = [e.facts for e in await served.events(job) if e.facts.event in ("model_succeeded", "model_failed")]
    return sum(each.cost_microusd or 0 for each in ends), len(ends)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ["hello", "never"])
@pytest.mark.parametrize("fault", ["broken_json: true", "status: 500"])
async def test_the_cost_of_an_answer_is_that_of_all_its_tries(
    store: Store, scripted: SpawnedProvider, fault: str, text: str, stream: bool
) -> None:
    scripted.set_rules(FAILING.replace("FAULT", fault), prepend=True)
    async with serving(store, scripted, routed("breakers: {failures: 0}\n")) as served:
        more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        answer = await served.ask(text, headers={"x-job-id": "tried"}, max_tokens=50, **more)
        cost, tries = await spent(served, "tried")
        assert (cost > 0) == (text == "hello" or fault != "status: 500")
        # A stream that breaks after its first piece is not tried again.
        assert tries == 2 or (stream and fault != "status: 500")
        if stream and answer.status_code == 200:
            assert "x-overnight-cost-usd" not in answer.headers
            pieces = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
            if "error" not in pieces[-1]:  # else it broke after its first piece
                assert round(pieces[-1]["usage"]["cost_usd"] * 1e6) == cost
        else:
            assert round(float(answer.headers["x-overnight-cost-usd"]) * 1e6) == cost
