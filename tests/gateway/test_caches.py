"""The exact cache: a question answered in another job is answered from the record at no cost."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api_keys import key_for
from caching import EXACT, Caching, Change, caching
from job_model_calls import leased, request
from overnight.gateway import JobCalls
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from serving import serving

TOOL = "rules: [{answer: {tool_calls: [{name: file, arguments: {n: 7}}]}}]"
HOUR_US = 3_600_000_000


@pytest.fixture
def provider(provider: SpawnedProvider) -> SpawnedProvider:
    provider.set_rules("rules: [{answer: 'answer {count}'}]")
    return provider


@pytest.fixture
async def cached(store: Store, provider: SpawnedProvider) -> AsyncIterator[Caching]:
    async with caching(store, provider) as running:
        yield running


async def test_cache_is_off_by_default(store: Store, provider: SpawnedProvider) -> None:
    async with caching(store, provider, "") as plain:
        assert [await plain.ask("q", job) for job in "ab"] == [("answer 1", None), ("answer 2", None)]
        assert "cache" not in str(await plain.served.story("b"))


async def test_hit_answers_another_job_at_no_cost(cached: Caching) -> None:
    first = await cached.ask("q", "a")
    assert first == ("answer 1", "miss")
    answer = await cached.served.ask("q", headers={"x-job-id": "b"})
    assert answer.json()["choices"][0]["message"]["content"] == "answer 1"
    assert float(answer.headers["x-overnight-cost-usd"]) == 0
    assert "x-overnight-replayed" not in answer.headers
    assert cached.paid == 1
    assert await cached.served.story("b") == ["created", "cache_hit", "model_succeeded"]
    [hit] = await cached.facts("b", "cache_hit")
    [origin] = [each for each in await cached.served.events("a") if each.facts.event == "model_succeeded"]
    assert hit.detail["of"] == {"job_id": origin.job_id, "seq": origin.seq}
    assert hit.detail["saved_microusd"] == origin.facts.cost_microusd > 0
    [given] = [each for each in await cached.served.events("b") if each.facts.event == "model_succeeded"]
    assert (given.facts.cost_microusd, given.facts.model) == (0, origin.facts.model)
    assert await cached.served.ledger.answer(given) == await cached.served.ledger.answer(origin)
    assert await cached.sums() == {"exact": (2, 1)}


async def test_second_occurrence_in_a_job_is_a_miss(cached: Caching) -> None:
    assert [await cached.ask("q", job) for job in "aabbb"] == [
        ("answer 1", "miss"),
        ("answer 2", "miss"),
        ("answer 1", "exact"),
        ("answer 3", "miss"),
        ("answer 4", "miss"),
    ]
    assert [each.decision["why"] for each in await cached.facts("b", "cache_missed")] == [
        "this job has asked the same question before"
    ] * 2
    assert await cached.sums() == {"exact": (2, 1)}


async def test_concurrent_second_occurrence_is_a_miss(cached: Caching) -> None:
    await cached.ask("q", "a")
    told = await asyncio.gather(*(cached.ask("q", "b") for _ in range(8)))
    assert sorted(each.cache for each in told) == ["exact"] + ["miss"] * 7
    assert cached.paid == 8


async def test_replay_returns_a_hit_without_a_lookup(cached: Caching) -> None:
    await cached.ask("q", "a")
    assert await cached.ask("q", "b") == ("answer 1", "exact")
    await cached.ask("other", "b")
    again = await cached.served.ask("q", headers={"x-job-id": "b", "x-job-attempt": "2"})
    assert again.json()["choices"][0]["message"]["content"] == "answer 1"
    assert again.headers["x-overnight-replayed"] == "true"
    assert "x-overnight-cache" not in again.headers
    assert (await cached.served.story("b"))[-2:] == ["attempt_started", "model_replayed"]
    live = await cached.ask("new", "b", headers={"x-job-attempt": "2"})
    assert live == ("answer 3", "miss")


async def test_hits_and_entries_work_for_plain_and_streamed_calls(cached: Caching) -> None:
    for first, second in ((True, False), (False, True)):
        text = f"streamed first: {first}"
        plain = [await said(cached, text, job, stream) for job, stream in (("a", first), ("b", second))]
        assert plain[0] == plain[1] != ""
    assert cached.paid == 2
    assert [each.facts.event for each in await cached.served.events("b")].count("cache_hit") == 2


async def said(cached: Caching, text: str, job: str, stream: bool) -> str:
    messages: Any = [{"role": "user", "content": text}]
    create: Any = cached.served.openai.chat.completions.create
    headers = {"x-job-id": job}
    if not stream:
        answer = await create(model="auto", messages=messages, extra_headers=headers)
        return answer.choices[0].message.content
    options = {"include_usage": True}
    pieces = await create(model="auto", messages=messages, stream=True, stream_options=options, extra_headers=headers)
    read = [piece async for piece in pieces]
    assert read[-1].usage is not None
    assert (read[-1].usage.cost_usd == 0) == (job == "b")
    return "".join(piece.choices[0].delta.content or "" for piece in read if piece.choices)


async def test_tenants_share_no_entries(cached: Caching) -> None:
    told = [await cached.ask("q", tenant=tenant) for tenant in ("a", "b", "a", "b", "a|", "A")]
    assert [each.cache for each in told] == ["miss", "miss", "exact", "exact", "miss", "miss"]
    assert told[0].text == told[2].text != told[1].text == told[3].text


async def test_keys_of_one_tenant_share_no_entries(store: Store, provider: SpawnedProvider) -> None:
    async with caching(store, provider) as cached:
        keys = [await key_for(cached.served) for _ in range(2)]
        told = [await cached.ask("q", tenant="acme", headers=keys[number]) for number in (0, 1, 0, 1)]
    assert [each.cache for each in told] == ["miss", "miss", "exact", "exact"]
    assert told[0].text == told[2].text != told[1].text == told[3].text


@pytest.mark.parametrize(
    "other",
    [
        {"model": "heartbeat_check"},
        {"model": "claude-opus-4.6"},
        {"temperature": 0.5},
        {"tools": [{"type": "function", "function": {"name": "file"}}]},
        {"messages": [{"role": "system", "content": "brief"}, {"role": "user", "content": "q"}]},
        {"n": 1},
    ],
    ids=str,
)
async def test_different_questions_have_different_entries(cached: Caching, other: dict[str, Any]) -> None:
    await cached.ask("q")
    assert (await cached.ask("q", **other)).cache == "miss"
    assert cached.paid == 2


async def test_irrelevant_fields_do_not_change_the_key(cached: Caching) -> None:
    await cached.ask("q")
    marked = [{"role": "user", "content": "q", "cache_control": {"type": "ephemeral"}}]
    assert (await cached.ask("q", messages=marked, user="u", metadata={"a": "b"})).cache == "exact"
    assert (await cached.ask("q", headers={"x-agent-name": "another", "x-step": "s"})).cache == "exact"


@pytest.mark.parametrize(
    "rules",
    [
        TOOL,
        "rules: [{answer: {text: cut, finish_reason: length}}]",
        "rules: [{answer: {text: filtered, finish_reason: content_filter}}]",
    ],
    ids=["tools", "length", "filtered"],
)
async def test_truncated_and_tool_answers_are_not_cached(cached: Caching, rules: str) -> None:
    cached.provider.set_rules(rules)
    assert [(await cached.ask("q")).cache for _ in range(3)] == ["miss"] * 3
    assert cached.paid == 3


async def test_tool_answers_are_cached_if_enabled(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules(TOOL)
    async with caching(store, provider, "cache: {exact: {ttl_s: 60, tool_turns: true}}") as cached:
        assert [await cached.ask("q") for _ in range(2)] == [("file", "miss"), ("file", "exact")]


async def test_failures_are_not_cached(cached: Caching) -> None:
    cached.provider.set_rules("rules: [{match: {times: 2}, fault: {status: 400}}, {answer: better}]")
    for job in "ab":
        failed = await cached.served.ask("q", headers={"x-job-id": job})
        assert (failed.status_code, failed.headers["x-overnight-cache"]) == (400, "miss")
    assert [await cached.ask("q") for _ in range(2)] == [("better", "miss"), ("better", "exact")]


async def test_fallback_answers_are_not_cached(store: Store, provider: SpawnedProvider) -> None:
    routing = "fallbacks: [{from: gpt-5.4, to: gpt-5.4-mini}]\nretries: {max_attempts: 1}\n"
    provider.set_rules("rules: [{match: {model: gpt-5.4, times: 1}, fault: {status: 503}}, {answer: '{model}'}]")
    async with serving(store, provider, EXACT + routing) as served:
        cached = Caching(served)
        told = [await cached.ask("q", model="gpt-5.4") for _ in range(3)]
    assert told == [("gpt-5.4-mini", "miss"), ("gpt-5.4", "miss"), ("gpt-5.4", "exact")]


async def test_cut_stream_is_not_cached(cached: Caching) -> None:
    cached.provider.set_rules("rules: [{match: {times: 1}, fault: {cut_after_chunks: 2}}, {answer: whole}]")
    cut = await cached.served.ask("q", headers={"x-job-id": "a"}, stream=True)
    assert "body_cut" in cut.text
    assert await cached.ask("q") == ("whole", "miss")
    assert await cached.ask("q") == ("whole", "exact")


async def test_entry_expires_after_its_ttl(store_url: str, provider: SpawnedProvider) -> None:
    now = [1_800_000_000_000_000]
    with open_store(store_url, lambda: now[0]) as store:
        async with caching(store, provider) as cached:
            await cached.ask("q")
            now[0] += HOUR_US - 1
            assert await cached.ask("q") == ("answer 1", "exact")
            now[0] += 2
            assert await cached.ask("q") == ("answer 2", "miss")
            assert await cached.ask("q") == ("answer 2", "exact")


async def test_erased_answer_is_a_miss(cached: Caching) -> None:
    await cached.ask("q", "a")
    job = (await cached.served.ledger.job("a")).job_id
    erase = "UPDATE event SET content = NULL WHERE job_id = :job_id AND content IS NOT NULL RETURNING 1"
    await cached.store.commit(Change(erase, job_id=job))
    assert await cached.ask("q", "b") == ("answer 2", "miss")
    assert await cached.ask("q", "c") == ("answer 2", "exact")


async def test_hit_references_its_answer_by_hash(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{answer: {text: word, repeat_words: 20000}}]")
    routing = EXACT + "limits: {default_max_output_tokens: 50000}"
    async with caching(store, provider, routing) as cached:
        told = [await cached.ask("q", job) for job in "abc"]
        assert told[0].text == told[1].text == told[2].text
        references = [each.output_ref for job in "abc" for each in await cached.facts(job, "model_succeeded")]
        assert len(set(references)) == 1
        assert cached.paid == 1


async def test_hit_counts_in_no_budget(store: Store, provider: SpawnedProvider) -> None:
    async with caching(store, provider, EXACT + "budgets: {max_llm_calls_per_job: 1}") as cached:
        for text in "xyz":
            await cached.ask(text)
        assert [(await cached.ask(text, "b")).cache for text in "xyz"] == ["exact"] * 3
        assert (await cached.ask("w", "b")).cache == "miss"
        stopped = await cached.served.ask("v", headers={"x-job-id": "b"})
        assert stopped.status_code == 402


async def test_unattributed_job_ends_with_its_hit(cached: Caching) -> None:
    await cached.ask("q")
    answer = await cached.served.ask("q")
    job = await cached.served.ledger.job(answer.headers["x-job-id"])
    assert (job.state, answer.headers["x-overnight-cache"]) == ("succeeded", "exact")


async def test_job_code_records_and_recovers_a_hit(cached: Caching) -> None:
    await cached.ask("hello")
    calls = JobCalls(cached.served.gateway)
    job = await leased(cached.store)
    answer = await calls.call(request(job))
    assert (answer.path, answer.ordinal, answer.fingerprint) == ("/1", 0, "print-0")
    assert b"answer 1" in (await cached.served.ledger.answer(answer) or b"")
    again = await calls.call(request(job, ordinal=1))
    assert b"answer 2" in (again.content or b"")
    stored = await cached.served.ledger.events(job.job_id)
    assert [each.facts.event for each in stored if each.path] == ["model_succeeded", "model_called", "model_succeeded"]
    assert stored[-1] == again


async def test_route_overrides_cache_settings(store: Store, provider: SpawnedProvider) -> None:
    routing = """
cache: {exact: {ttl_s: 60}}
fallbacks: []
routes:
  never: {model: gpt-5.4, cache: {exact: 0}}
  usual: {model: gpt-5.4}
"""
    async with serving(store, provider, "default_model: gpt-5.4-mini\n" + routing) as served:
        cached = Caching(served)
        assert [(await cached.ask("q", model="never")).cache for _ in range(2)] == [None, None]
        assert [(await cached.ask("q", model="usual")).cache for _ in range(2)] == ["miss", "exact"]


async def test_two_gateways_share_entries(store_url: str, provider: SpawnedProvider) -> None:
    with open_store(store_url) as one, open_store(store_url) as other:
        async with caching(one, provider) as first, caching(other, provider) as second:
            assert await first.ask("q", "a") == ("answer 1", "miss")
            assert await second.ask("q", "b") == ("answer 1", "exact")
            assert await second.ask("q", "a") == ("answer 2", "miss")


FORMATS = {
    "/v1/messages": {"messages": [{"role": "user", "content": "q"}], "max_tokens": 100},
    "/v1/responses": {"input": "q"},
    "/v1/embeddings": {"input": "q"},
}


@pytest.mark.parametrize("path", FORMATS)
async def test_each_client_format_has_its_own_entries(cached: Caching, path: str) -> None:
    model = "text-embedding-3-small" if "embed" in path else "gpt-5.4-mini"

    async def ask(job: str, **more: Any) -> Any:
        body = {"model": model, **FORMATS[path], **more}
        return await cached.served.http.post(path, json=body, headers={"x-job-id": job})

    await cached.ask("q", model=model) if "embed" not in path else None
    before = cached.paid
    first, second = await ask("a"), await ask("b")
    assert (first.status_code, first.headers["x-overnight-cache"]) == (200, "miss"), first.text
    assert (second.status_code, second.headers["x-overnight-cache"]) == (200, "exact")
    assert first.json() == second.json()
    assert cached.paid == before + 1
    if "embed" not in path:
        streamed = await ask("c", stream=True)
        assert streamed.headers["x-overnight-cache"] == "exact"
        assert first.json()["id"] in streamed.text
        assert cached.paid == before + 1
