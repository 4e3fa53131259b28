"""Reports on the caches: the timeline of a job, and `overnight cache`."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from caching import EXACT, SEMANTIC, Caching, caching
from cli_runs import run
from job_model_calls import leased, request
from overnight.gateway import JobCalls
from overnight.store import Store
from overnight.story import build_timeline, load_job_tree, public_timeline
from overnight.testing import SpawnedProvider

SHADOW = SEMANTIC.replace("mode: on", "mode: shadow")

RULES = """
rules:
  - {match: {model: text-embedding-3-small, user_contains: unembeddable}, fault: {status: 400}}
  - {match: {user_contains: please}, answer: a b c d x}
  - {answer: a b c d}
"""


@pytest.fixture
def provider(provider: SpawnedProvider) -> SpawnedProvider:
    provider.set_rules(RULES)
    return provider


async def story(cached: Caching, job: str) -> tuple[Any, list[str]]:
    """The header and the lines."""
    chapter = await load_job_tree(cached.served.ledger, await cached.served.ledger.job(job), with_content=True)
    now = cached.store.clock()
    told = build_timeline(chapter, now, with_content=True)
    assert public_timeline(chapter, told, now, with_content=True)
    return told.header, [f"{line.text} | {' '.join(line.facts)} | {line.why}" for line in told.lines]


async def test_hit_is_one_line_and_no_paid_call(store: Store, provider: SpawnedProvider) -> None:
    async with caching(store, provider, EXACT) as cached:
        await cached.ask("hello", "a")
        await cached.ask("hello", "b")
        header, lines = await story(cached, "b")
        assert (header.cached_calls, header.model_calls, header.paid_calls, header.cost_microusd) == (1, 0, 0, 0)
        [line] = [each for each in lines if "cached response" in each]
        assert (await cached.served.ledger.job("a")).job_id in line
        assert "saved" in line
        assert line.endswith("the same question was answered before")
        assert not any("cache skipped" in each for each in (await story(cached, "a"))[1])
        job = await leased(cached.store)
        await JobCalls(cached.served.gateway).call(request(job))
        assert len([each for each in (await story(cached, job.job_id))[1] if each.startswith("model")]) == 1


async def test_cache_failure_is_one_line(store: Store, provider: SpawnedProvider) -> None:
    async with caching(store, provider, SEMANTIC) as cached:
        await cached.ask("hello unembeddable", "a")
        _, lines = await story(cached, "a")
        assert any("cache skipped" in each and "could not be embedded" in each for each in lines)


async def test_shadow_comparison_is_reported(store: Store, store_url: str, provider: SpawnedProvider) -> None:
    async with caching(store, provider, SHADOW) as cached:
        for text, job in (("how do I reset it", "a"), ("how do I reset it", "b"), ("how do I reset it please", "c")):
            await cached.ask(text, job, headers={"x-agent-name": "support"})
        assert any("would have served the same response" in each for each in (await story(cached, "b"))[1])
        assert any("a response that agrees (80% of the words" in each for each in (await story(cached, "c"))[1])
    [row] = json.loads(await command(store_url, "cache", "--json"))
    assert (row["agent_id"], row["kind"], row["asked"], row["hits"]) == ("support", "shadow", 3, 2)
    assert (row["hit_rate"], row["agreement_rate"], row["mean_overlap"], row["same"]) == (0.6667, 1.0, 0.9, 1)
    assert row["saved_usd"] > row["embeddings_usd"] > 0
    shown = await command(store_url, "cache", "--tenant", "default")
    assert "Shadow mode serves no responses" in shown
    assert [word for word in ("support", "shadow", "67%", "100%", "90%") if word not in shown] == []
    assert "No cache lookups in" in await command(store_url, "cache", "--tenant", "nobody")


async def command(store_url: str, *words: str) -> str:
    ran = await asyncio.to_thread(run, Path.cwd(), os.environ | {"DATABASE_URL": store_url}, *words)
    assert ran.code == 0, ran.err
    return ran.out
