"""The semantic cache: answers to similar questions, and the shadow mode."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from caching import CACHE, EXACT, SEMANTIC, Caching, caching
from job_model_calls import leased, request
from overnight.gateway import JobCalls
from overnight.gateway.cache import cache_usage
from overnight.keys import Keys, NewKey
from overnight.store import Store
from overnight.testing import SpawnedProvider

ASKED = "How do I reset the password of my account?"
LIKE = "How do I reset the password of my account please?"
OTHER = "Which invoices are overdue since January?"
SHADOW = SEMANTIC.replace("mode: on", "mode: shadow")


@pytest.fixture
def provider(provider: SpawnedProvider) -> SpawnedProvider:
    provider.set_rules("rules: [{answer: 'press the reset button {count}'}]")
    return provider


@pytest.fixture
async def cached(store: Store, provider: SpawnedProvider) -> AsyncIterator[Caching]:
    async with caching(store, provider, SEMANTIC) as running:
        yield running


async def chats(cached: Caching, job: str) -> list[Any]:
    return [each for each in await cached.facts(job, "model_called") if each.model != "text-embedding-3-small"]


async def test_similar_question_of_another_job_is_a_hit(cached: Caching) -> None:
    first = await cached.ask(ASKED, "a")
    like = await cached.ask(LIKE, "b")
    assert (first.cache, like.cache) == ("miss", "semantic")
    assert like.text == first.text
    assert not await chats(cached, "b")
    [hit] = await cached.facts("b", "cache_hit")
    assert 0.8 < hit.detail["similarity"] < 1
    assert (await cached.ask(OTHER, "c")).cache == "miss"
    assert await cached.sums() == {"semantic": (3, 1)}


async def test_embedding_is_a_metered_call_of_the_job(cached: Caching) -> None:
    await cached.ask(ASKED, "a")
    story = await cached.served.story("a")
    assert story == ["created", "model_called", "model_succeeded", "cache_missed", "model_called", "model_succeeded"]
    embedding, chat = await cached.facts("a", "model_succeeded")
    assert (embedding.name, embedding.model) == ("semantic cache", "text-embedding-3-small")
    assert embedding.input_tokens > 0
    job = (await cached.served.ledger.job("a")).job_id
    assert {row[0] for row in await cached.served.ledger.usage(job)} == {embedding.model, chat.model}
    budget = await cached.served.ledger.costs([job])
    assert budget[job] == (2, embedding.cost_microusd + chat.cost_microusd, 0)


ALL_BUDGETS = """
budgets:
  limits: [{scope: job, max_llm_calls: 3}, {scope: key, max_llm_calls: 3}, {scope: agent, max_llm_calls: 3},
           {scope: tenant, max_llm_calls: 3}]
"""


async def test_key_lists_allow_the_embedding_and_its_budgets_pay(store: Store, provider: SpawnedProvider) -> None:
    """That questions are embedded, and by what, was said by whoever runs the gateway, not by the client."""
    async with caching(store, provider, SEMANTIC + ALL_BUDGETS, hosts=None) as cached:
        limits: Any = {"models": ("gpt-5.4*",), "routes": ("heartbeat_check",), "agent_id": "bot"}
        _, secret = await Keys(store).create("default", NewKey(name="k", scopes=("call", "read"), **limits), "ann")
        mine = {"authorization": f"Bearer {secret}"}
        direct = {"model": "text-embedding-3-small", "input": ASKED}
        assert (await cached.served.http.post("/v1/embeddings", json=direct, headers=mine)).status_code == 403
        for text, job, told in ((ASKED, "a", "miss"), (LIKE, "b", "semantic")):
            assert (await cached.ask(text, job, model="heartbeat_check", headers=mine)).cache == told
        spent = 0
        for job, calls in (("a", 2), ("b", 1)):
            embedding, *_ = called = await cached.facts(job, "model_called")
            assert (embedding.name, embedding.model, len(called)) == ("semantic cache", "text-embedding-3-small", calls)
            assert {(each.actor, each.agent_id) for each in called} == {("k", "bot")}
            spent += sum(each.cost_microusd for each in await cached.facts(job, "model_succeeded"))
        shown = (await cached.served.http.get("/api/v1/budgets", headers=mine)).json()["budgets"]
        by_scope = {each["scope"]: each for each in shown if each["scope"] != "job"}
        for scope in ("key", "agent", "tenant"):
            assert by_scope[scope]["llm_calls"]["spent"] == 3, "two embeddings and an answer"
            assert by_scope[scope]["cost_usd"]["spent"] == pytest.approx(spent / 1_000_000)
        assert sorted(each["llm_calls"]["spent"] for each in shown if each["scope"] == "job") == [1, 2]
        assert (await cached.served.ask(OTHER, model="heartbeat_check", headers=mine)).status_code == 402


async def test_unattributed_job_does_not_end_with_its_embedding(cached: Caching) -> None:
    answer = await cached.served.ask(ASKED)
    events = await cached.served.ledger.events(answer.headers["x-job-id"])
    assert [each.facts.event for each in events][-2:] == ["model_succeeded", "completed"]
    assert [each.facts.event for each in events].count("started") == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"tenant": "t1"}, {"tenant": "t2"}),
        ({"headers": {"x-agent-name": "support"}}, {"headers": {"x-agent-name": "sales"}}),
        ({"headers": {"x-agent-name": "support"}}, {}),
        ({"model": "gpt-5.4"}, {"model": "gpt-5.4-mini"}),
        ({"model": "heartbeat_check"}, {"model": "gpt-5.4-mini"}),
        ({"temperature": 0}, {"temperature": 1}),
        ({}, {"tools": [{"type": "function", "function": {"name": "file"}}]}),
        ({"system": "You are brief."}, {"system": "You are brief!"}),
        ({"system": "x"}, {}),
        ({"history": "before"}, {"history": "Before"}),
    ],
    ids=str,
)
async def test_conversation_before_the_question_must_be_equal(
    cached: Caching, one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert (await ask_as(cached, ASKED, **one)).cache == "miss"
    assert (await ask_as(cached, LIKE, **other)).cache == "miss"
    assert (await ask_as(cached, LIKE, **one)).cache == "semantic"


async def test_realm_changes_with_prompts_and_not_with_routing(store: Store, provider: SpawnedProvider) -> None:
    told: list[str | None] = []
    for routing, prompts in (("", "1"), ("deadlines: {default_ms: 9000}", "1"), ("", "2")):
        async with caching(store, provider, SEMANTIC + routing, prompts_version=prompts) as cached:
            told.append((await cached.ask(LIKE if told else ASKED)).cache)
    assert told == ["miss", "semantic", "miss"]


async def ask_as(cached: Caching, text: str, system: str = "", history: str = "", **more: Any) -> Any:
    messages = [{"role": "system", "content": system}] if system else []
    if history:
        messages += [{"role": "user", "content": history}, {"role": "assistant", "content": "ok"}]
    return await cached.ask(text, messages=[*messages, {"role": "user", "content": text}], **more)


async def test_vectors_of_other_tenants_are_not_searched(cached: Caching) -> None:
    """Whatever a tenant calls itself, its agents and its jobs: the very same question of another one is not found."""
    names = [("acme", "a"), ("acme", "a|b"), ("acme|a", "b"), ("acme a", "b"), ("a", "acme"), ("default", "acme")]
    told = [
        await cached.ask(ASKED, f"one {agent}", tenant=tenant, headers={"x-agent-name": agent})
        for tenant, agent in names
    ]
    assert [each.cache for each in told] == ["miss"] * len(names)
    assert len({each.text for each in told}) == len(names)
    again = [
        await cached.ask(LIKE, f"another {agent}", tenant=tenant, headers={"x-agent-name": agent})
        for tenant, agent in names
    ]
    assert [each.text for each in again] == [each.text for each in told]


async def test_shadow_mode_records_only_a_comparison(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules(
        "rules: [{match: {user_contains: please}, answer: press the red reset button}, {answer: press the reset button}]"
    )
    async with caching(store, provider, SHADOW) as cached:
        agent = {"headers": {"x-agent-name": "support"}}
        assert (await cached.ask(ASKED, "a", **agent)).cache == "miss"
        assert await cached.ask(ASKED, "b", **agent) == ("press the reset button", "shadow")
        assert await cached.ask(LIKE, "c", **agent) == ("press the red reset button", "shadow")
        [same], [other] = await cached.facts("b", "cache_shadow"), await cached.facts("c", "cache_shadow")
        origin = (await cached.served.ledger.job("a")).job_id
        assert same.detail["of"]["job_id"] == other.detail["of"]["job_id"] == origin
        assert (same.detail["same"], same.detail["overlap"], same.detail["similarity"]) == (True, 1.0, 1.0)
        assert (other.detail["same"], other.detail["overlap"], other.detail["agrees"]) == (False, 0.8, True)
        [used] = await cache_usage(store, "default", 0, 99999999)
        assert (used.agent_id, used.kind, used.asked, used.hits) == ("support", "shadow", 3, 2)
        assert (used.same, used.agreement_rate, used.mean_overlap) == (1, 1.0, 0.9)
        assert used.saved_microusd > used.spent_microusd > 0
        assert not await cached.facts("c", "cache_hit")


async def test_each_agent_has_its_mode_and_threshold(store: Store, provider: SpawnedProvider) -> None:
    agents = "agents: {bold: {mode: on, threshold: 0.5}, 'strict-*': {mode: on, threshold: 0.999}, off: {mode: off}}}}"
    async with caching(store, provider, SHADOW.replace("}}\n", ", ") + agents + "\n") as cached:
        told: dict[str, Any] = {}
        for agent in ("bold", "strict-1", "off", "usual"):
            headers = {"x-agent-name": agent}
            told[agent] = [(await cached.ask(text, headers=headers)).cache for text in (ASKED, LIKE)]
    assert told == {
        "bold": ["miss", "semantic"],
        "strict-1": ["miss", "miss"],
        "off": [None, None],
        "usual": ["miss", "shadow"],
    }


async def test_own_similar_questions_of_a_job_are_misses(cached: Caching) -> None:
    assert [(await cached.ask(text, "a")).cache for text in (ASKED, LIKE, ASKED)] == ["miss"] * 3
    assert [(await cached.ask(text, "b")).cache for text in (ASKED, ASKED)] == ["semantic", "miss"]


async def test_replay_embeds_nothing(cached: Caching) -> None:
    await cached.ask(ASKED, "a")
    before = cached.paid
    again = await cached.served.ask(ASKED, headers={"x-job-id": "a", "x-job-attempt": "2"})
    assert again.headers["x-overnight-replayed"] == "true"
    assert cached.paid == before


@pytest.mark.parametrize(
    "rules",
    [
        "rules: [{answer: {tool_calls: [{name: file, arguments: {n: 7}}]}}]",
        "rules: [{answer: {text: cut, finish_reason: length}}]",
    ],
    ids=["tools", "cut"],
)
async def test_tool_turns_and_cut_answers_are_not_stored(cached: Caching, rules: str) -> None:
    cached.provider.set_rules(rules)
    assert [(await cached.ask(text)).cache for text in (ASKED, LIKE)] == ["miss"] * 2


async def test_tool_turns_are_stored_if_enabled(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{answer: {tool_calls: [{name: file, arguments: {n: 7}}]}}]")
    async with caching(store, provider, SEMANTIC.replace("mode: on", "mode: on, tool_turns: true")) as cached:
        assert [await cached.ask(text) for text in (ASKED, LIKE)] == [("file", "miss"), ("file", "semantic")]


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": ASKED}, {"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}],
        ASKED + " x" * 5000,
        "  ",
    ],
    ids=["picture", "document", "nothing"],
)
async def test_long_or_non_text_messages_are_not_embedded(cached: Caching, content: Any) -> None:
    for _ in range(2):
        assert (await cached.ask("", messages=[{"role": "user", "content": content}])).cache is None
    assert cached.paid == 2


@pytest.mark.parametrize(
    "fault",
    ["{status: 503}", "{status: 400}", "{reset: true}", "{broken_json: true}", "{stall: true}"],
)
async def test_failed_embeddings_fail_no_call(store: Store, provider: SpawnedProvider, fault: str) -> None:
    provider.set_rules(f"rules: [{{match: {{model: text-embedding-3-small}}, fault: {fault}}}, {{answer: fine}}]")
    async with caching(store, provider, SEMANTIC + "deadlines: {default_ms: 3000}") as cached:
        assert await cached.ask(ASKED, "a") == ("fine", "miss")
        [missed] = await cached.facts("a", "cache_missed")
        assert "could not be embedded" in missed.decision["why"]


async def test_budget_stop_of_an_embedding_does_not_stop_the_call(store: Store, provider: SpawnedProvider) -> None:
    async with caching(store, provider, SEMANTIC + "budgets: {max_llm_calls_per_job: 1}") as cached:
        answer = await cached.served.ask(ASKED, headers={"x-job-id": "a"})
        assert answer.status_code == 402
        assert await cached.served.story("a") == [
            "created", "model_called", "model_succeeded", "cache_missed", "budget_stopped",
        ]  # fmt: skip


async def test_exact_cache_works_without_vector_support(
    store: Store, provider: SpawnedProvider, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if store.dialect == "sqlite":
        monkeypatch.setitem(sys.modules, "sqlite_vec", None)
    else:
        await asyncio.to_thread(_without_pgvector, store)
    routing = SEMANTIC.replace("cache: {", "cache: {exact: {ttl_s: 60}, ")
    async with caching(store, provider, routing) as cached:
        assert [(await cached.ask(text)).cache for text in (ASKED, ASKED, LIKE)] == ["miss", "exact", "miss"]
        assert cached.paid == 2
    assert "semantic cache disabled in this process" in caplog.text
    assert ("pip install sqlite-vec" if store.dialect == "sqlite" else "CREATE EXTENSION vector") in caplog.text


def _without_pgvector(store: Store) -> None:
    """Somebody else's type of that name stands in the way of the extension, as a missing one would."""
    session: Any = store._database.connect()
    session.script("CREATE TYPE vector AS (nothing TEXT)")
    session.close()


async def test_exact_cache_precedes_the_semantic_one(store: Store, provider: SpawnedProvider) -> None:
    routing = SEMANTIC.replace("cache: {", EXACT.strip()[:-1] + ", ")
    async with caching(store, provider, routing) as cached:
        told = [(await cached.ask(text)).cache for text in (ASKED, ASKED, LIKE, LIKE)]
        assert told == ["miss", "exact", "semantic", "semantic"]
        assert cached.paid == 4  # one answer, three embeddings


async def test_streams_and_job_code_share_the_cache(cached: Caching) -> None:
    first = await cached.served.ask(ASKED, headers={"x-job-id": "a"}, stream=True)
    assert (first.headers[CACHE], "press the reset" in first.text) == ("miss", False)
    job = await leased(cached.store)
    answer = await JobCalls(cached.served.gateway).call(request(job, text=LIKE))
    assert (answer.facts.detail or {})["cache"]["kind"] == "semantic"
    streamed = await cached.served.ask(LIKE, headers={"x-job-id": "c"}, stream=True)
    assert streamed.headers[CACHE] == "semantic"
