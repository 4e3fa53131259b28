"""The request of a call is recorded in one form for provider, cache and degraded answers."""

import json
from typing import Any

import pytest

from caching import EXACT
from overnight.domain import month_of
from overnight.ledger import parse_reference
from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, serving

ROUTING = f"""
default_model: gpt-5.4-mini
routes: {{r: {{model: gpt-5.4-mini, when_all_open: fail, degraded: {{answer: We are at capacity.}}}}}}
retries: {{max_attempts: 1}}
breakers: {{failures: 2, window_ms: 60000, cool_down_ms: 60000, max_cool_down_ms: 60000}}
{EXACT}"""
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
LARGE = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"description": "x" * 70_000}}}


async def asked(served: Served, job: str, event: str) -> dict[str, Any]:
    """What an event says was asked, read back."""
    [found] = [each for each in await served.events(job) if each.facts.event == event]
    facts, content = found.facts, served.ledger.content
    params = found.content
    if "params_ref" in facts.detail:
        assert params is None
        params = await content("default", facts.detail["params_ref"])
    return {
        "input": await content("default", facts.input_ref),
        "tools": json.loads(await content("default", facts.detail["tools_ref"])),  # type: ignore[arg-type]
        "params": json.loads(params),
    }


@pytest.mark.parametrize("more", [{"seed": 7}, {"response_format": LARGE}], ids=["small", "large"])
async def test_calls_hits_and_degraded_answers_record_the_request(
    store: Store, provider: SpawnedProvider, more: dict[str, Any]
) -> None:
    async with serving(store, provider, ROUTING) as served:

        async def ask(job: str, **other: Any) -> Any:
            return await served.ask("q", "r", headers={"x-job-id": job}, tools=TOOLS, **more, **other)

        assert (await ask("called")).status_code == 200
        assert (await ask("hit")).headers["x-overnight-cache"] == "exact"
        provider.set_rules("rules: [{fault: {status: 500}}]")
        for _ in range(2):
            await served.ask("other", "r", headers={"x-job-id": "breaks"})
        degraded = await ask("degraded", temperature=0.5)
        assert degraded.headers["x-overnight-degraded"] == "answer"
        of_call = await asked(served, "called", "model_called")
        assert of_call["tools"] == TOOLS
        assert len(of_call["input"]) == 1
        assert of_call["params"] == {"model": "r", **more}
        assert await asked(served, "hit", "cache_hit") == of_call
        of_degraded = await asked(served, "degraded", "degraded")
        assert of_degraded.pop("params") == {"model": "r", "temperature": 0.5, **more}
        assert of_degraded.items() <= of_call.items()


async def test_content_written_by_a_hit_is_known(store: Store, provider: SpawnedProvider) -> None:
    """In the month in which it was written, so that the next one need not write it again."""
    async with serving(store, provider, ROUTING) as before:
        await before.ask("q", tools=TOOLS, headers={"x-job-id": "a"})
    async with serving(store, provider, ROUTING) as served:
        answer = await served.ask("q", tools=TOOLS, headers={"x-job-id": "b"})
        assert answer.headers["x-overnight-cache"] == "exact"
        [hit] = [each for each in await served.events("b") if each.facts.event == "cache_hit"]
        for reference in (hit.facts.input_ref, hit.facts.detail["tools_ref"]):
            _, month, digest = parse_reference(reference)
            assert month == month_of(store.clock())
            assert served.gateway.known_content.has("default", month, digest)
