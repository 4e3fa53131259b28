"""Circuits in the gateway: opened, skipped, probed, closed; and calls without a target."""

import asyncio
import json
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from circuit_house import broken, fail_three, house, routing
from cli_runs import run
from faulty_upstream import Asked, answers, faulty_upstream, refuses
from job_model_calls import leased, request
from overnight.circuit_breakers import (
    CloseCircuit,
    RecordBreakerUpdate,
    caller_account,
    list_circuits,
)
from overnight.domain import Event
from overnight.gateway import JobCalls
from overnight.outgoing import NeverSent
from overnight.providers.error_classes import exception_failure
from overnight.store import Store
from overnight.story import build_timeline, load_job_tree
from overnight.testing import SpawnedProvider
from serving import Served, deadlines

HOUSE = "{base_url: '%s', models: [%s]}"
SHORT = "cool_down_ms: 150, max_cool_down_ms: 150"


OWN = caller_account("house", "default", None)
"""Of the caller of these tests, who shows no key."""


async def events(served: Served, job: str, name: str) -> list[Any]:
    return [event.facts for event in await served.events(job) if event.facts.event == name]


async def story(served: Served, job: str) -> str:
    chapter = await load_job_tree(served.ledger, await served.ledger.job(job))
    return "\n".join(str(line) for line in build_timeline(chapter, served.store.clock()).lines)


async def test_open_circuit_is_skipped_and_reported(store: Store, provider: SpawnedProvider) -> None:
    broken(provider)
    async with house(store, provider, routing()) as served:
        await fail_three(served)
        asked = provider.stats()["requests"]
        answer = await served.ask(model="r", headers={"x-job-id": "after"})
        assert (answer.status_code, answer.headers["x-overnight-model"]) == (200, "b")
        assert answer.headers["x-overnight-circuit-open"] == "house/a"
        assert answer.headers["x-overnight-fallback"] == "b"
        assert provider.stats()["requests"] == asked + 1
        names = await served.story("before")
        at = names.index("circuit_opened")
        assert names[at - 1 : at + 2] == ["model_failed", "circuit_opened", "fallback_taken"]
        [opened] = await events(served, "before", "circuit_opened")
        assert (opened.provider, opened.model, opened.decision["target"]) == ("house", "a", "house/a")
        assert "3 failures within 60 s" in opened.decision["why"]
        [taken] = await events(served, "after", "fallback_taken")
        assert (taken.decision["from"], taken.decision["to"]) == ("a", "b")
        assert "circuit of house/a is open until 20" in taken.decision["why"]
        assert "server_error" in taken.decision["why"]
        assert "circuit of house/a opened; no calls until" in await story(served, "before")


async def test_streams_skip_an_open_circuit(store: Store, provider: SpawnedProvider) -> None:
    broken(provider)
    async with house(store, provider, routing()) as served:
        await fail_three(served)
        body = {"model": "r", "messages": [{"role": "user", "content": "x"}], "stream": True}
        answer = await served.http.post("/v1/chat/completions", json=body)
        assert (answer.headers["x-overnight-model"], answer.headers["x-overnight-circuit-open"]) == ("b", "house/a")
        assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("streamed", [False, True])
async def test_successful_probe_closes_the_circuit(store: Store, provider: SpawnedProvider, streamed: bool) -> None:
    broken(provider)
    async with house(store, provider, routing(SHORT)) as served:
        await fail_three(served)
        provider.set_rules("rules: [{match: {model: a}, answer: ok, fault: {delay_ms: 300}}]")
        await asyncio.sleep(0.2)
        provider.reset()

        async def ask(number: int) -> Any:
            return await served.ask(model="r", stream=streamed, headers={"x-job-id": f"j{number}"})

        answers = await asyncio.gather(*(ask(number) for number in range(30)))
        models = [answer.headers["x-overnight-model"] for answer in answers]
        assert models.count("a") == 1
        assert provider.stats()["paid_calls_by_model"]["a"] == 1
        prober = f"j{models.index('a')}"
        [closed] = await events(served, prober, "circuit_closed")
        assert (closed.model, closed.decision["target"]) == ("a", "house/a")
        assert await list_circuits(store) == []
        assert {(await ask(99)).headers["x-overnight-model"] for _ in range(3)} == {"a"}
        assert "circuit of house/a closed" in await story(served, prober)


async def test_failed_probe_doubles_the_cool_down(store: Store, provider: SpawnedProvider) -> None:
    broken(provider)
    async with house(store, provider, routing("cool_down_ms: 100, max_cool_down_ms: 60000")) as served:
        await fail_three(served)
        await asyncio.sleep(0.15)
        assert (await served.ask(model="r", headers={"x-job-id": "probe"})).headers["x-overnight-model"] == "b"
        [again] = await events(served, "probe", "circuit_opened")
        assert (again.decision["opening"], "probe failed" in again.decision["why"]) == (2, True)
        [row] = await list_circuits(store, only_open=True)
        assert row.openings == 2
        assert row.probe is None


async def test_probe_with_an_invalid_request_closes_the_circuit(store: Store, provider: SpawnedProvider) -> None:
    broken(provider)
    async with house(store, provider, routing(SHORT)) as served:
        await fail_three(served)
        broken(provider, fault="status: 400")
        await asyncio.sleep(0.2)
        assert (await served.ask(model="r", headers={"x-job-id": "refused"})).status_code == 400
        assert await list_circuits(store) == []
        assert (await served.story("refused"))[-2:] == ["model_failed", "circuit_closed"]


async def test_probe_stopped_by_budget_is_returned(store: Store, provider: SpawnedProvider) -> None:
    broken(provider)
    async with house(store, provider, routing(SHORT, more="budgets: {max_llm_calls_per_job: 6}")) as served:
        await fail_three(served)  # six calls
        provider.set_rules("rules: []")
        await asyncio.sleep(0.2)
        assert (await served.ask(model="r", headers={"x-job-id": "before"})).status_code == 402
        async with asyncio.timeout(5):
            while (await list_circuits(store, only_open=True))[0].probe is not None:
                await asyncio.sleep(0.01)
        assert (await served.ask(model="r")).headers["x-overnight-model"] == "a"


async def test_processes_share_circuits(store: Store, provider: SpawnedProvider) -> None:
    broken(provider)
    async with AsyncExitStack() as stack:
        one, other = [await stack.enter_async_context(house(store, provider, routing())) for _ in range(2)]
        await one.ask(model="r")
        await one.ask(model="r")
        assert one.gateway.circuits.allows("house", "a", OWN)
        await other.ask(model="r", headers={"x-job-id": "third"})
        assert len(await events(other, "third", "circuit_opened")) == 1
        async with asyncio.timeout(10):
            while one.gateway.circuits.allows("house", "a", OWN) or other.gateway.circuits.allows("house", "a", OWN):
                await asyncio.sleep(0.01)
        await store.commit(CloseCircuit((OWN, "a"), "ann"))
        async with asyncio.timeout(10):
            while not (
                one.gateway.circuits.allows("house", "a", OWN) and other.gateway.circuits.allows("house", "a", OWN)
            ):
                await asyncio.sleep(0.01)


async def test_retries_end_when_the_circuit_opens(store: Store, provider: SpawnedProvider) -> None:
    broken(provider)
    text = routing().replace("max_attempts: 1", "max_attempts: 9")
    async with house(store, provider, text) as served:
        assert (await served.ask(model="r", headers={"x-job-id": "many"})).headers["x-overnight-model"] == "b"
        assert (await served.story("many")).count("model_failed") == 3


async def test_circuits_are_listed_and_closed_by_people(
    store: Store, store_url: str, provider: SpawnedProvider
) -> None:
    async def overnight(*words: str) -> str:
        environment = os.environ | {"DATABASE_URL": store_url}
        ran = await asyncio.to_thread(run, Path.cwd(), environment, "circuits", *words)
        return ran.out + ran.err

    broken(provider)
    async with house(store, provider, routing()) as served:
        assert "All circuits are closed" in await overnight()
        await fail_three(served)
        listing = (await served.http.get("/api/v1/circuits")).json()["circuits"]
        [shown] = [each for each in listing if not each["for_all"]]
        assert (shown["target"], shown["state"], shown["failures"]) == ("house/a", "open", 3)
        assert shown["open_until_at"] > shown["opened_at"] > "2026"
        assert (shown["tenant_id"], shown["key_id"]) == ("default", None)
        assert json.loads(await overnight("--json")) == listing
        listed = await overnight()
        assert "house/a" in listed
        assert "server_error" in listed
        assert "circuit not found" in await overnight("close", "house/b")
        assert "circuit closed (was" in await overnight("close", "house/a")
        assert (await served.http.get("/api/v1/circuits")).json() == {"circuits": []}
        provider.set_rules("rules: []")
        async with asyncio.timeout(10):
            while (await served.ask(model="r")).headers["x-overnight-model"] != "a":
                await asyncio.sleep(0.05)


async def test_a_tenants_own_account_is_shown_to_that_tenant(store: Store, provider: SpawnedProvider) -> None:
    async with house(store, provider, routing()) as served:
        for account in ("house", "house@acme"):
            mark = served.gateway.circuits.record_failure(account, "a", exception_failure(NeverSent("h", "no")))
            job = (await served.ask(model="r")).headers["x-job-id"]
            await store.commit(RecordBreakerUpdate(job, mark, Event("model_failed", provider="house")))
        seen = {}
        for tenant in ("default", "acme"):
            answer = await served.http.get("/api/v1/circuits", headers={"x-tenant-id": tenant})
            seen[tenant] = [shown["target"] for shown in answer.json()["circuits"]]
        assert seen == {"default": ["house/a"], "acme": ["house/a", "house@acme/a"]}


# ── every circuit is open ───────────────────────────────────────────────────────────────────────────────────────────


async def test_policy_fail_fails_at_once_and_is_recorded(store: Store, provider: SpawnedProvider) -> None:
    broken(provider, "*")
    async with house(store, provider, routing(route=", when_all_open: fail")) as served:
        await fail_three(served)
        asked = provider.stats()["requests"]
        answer = await served.ask(model="r", headers={"x-job-id": "shut"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["type"]) == (503, "circuit_open", "server_error")
        assert 0 < int(answer.headers["retry-after"]) <= 60
        assert "house/a" in error["message"]
        assert "house/b" in error["message"]
        assert provider.stats()["requests"] == asked
        assert await served.story("shut") == ["created", "model_failed"]
        [failed] = await events(served, "shut", "model_failed")
        assert (failed.error.error_class, failed.cost_microusd) == ("circuit_open", 0)
        alone = await served.ask(model="r")
        assert (await served.ledger.job(alone.headers["x-job-id"])).state == "failed"
        body = {"model": "r", "messages": [{"role": "user", "content": "x"}], "stream": True}
        assert (await served.http.post("/v1/chat/completions", json=body)).status_code == 503


async def test_replay_works_with_every_circuit_open(store: Store, provider: SpawnedProvider) -> None:
    async with house(store, provider, routing(route=", when_all_open: fail")) as served:
        first = await served.ask(model="r", headers={"x-job-id": "old"})
        broken(provider, "*")
        await fail_three(served)
        again = await served.ask(model="r", headers={"x-job-id": "old", "x-job-attempt": "2"})
        assert (again.status_code, again.headers["x-overnight-replayed"]) == (200, "true")
        assert again.json() == first.json()


async def test_policy_wait_continues_when_a_circuit_allows(store: Store, provider: SpawnedProvider) -> None:
    broken(provider)
    async with house(
        store, provider, routing("cool_down_ms: 700, max_cool_down_ms: 700", ", when_all_open: wait")
    ) as served:
        await fail_three(served, "alone")
        provider.set_rules("rules: []")
        provider.reset()
        answers = await asyncio.gather(*(served.ask(model="alone") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert provider.stats()["errors_by_status"] == {}


async def test_policy_wait_ends_at_the_deadline(store: Store, provider: SpawnedProvider) -> None:
    broken(provider)
    async with house(store, provider, routing(route=", when_all_open: wait, deadline_ms: 300")) as served:
        await fail_three(served, "alone")
        answer = await served.ask(model="alone")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "circuit_open")


async def test_failed_wait_after_attempts_reports_both(store: Store, provider: SpawnedProvider) -> None:
    broken(provider)
    text = routing(route=", when_all_open: wait, deadline_ms: 400").replace("max_attempts: 1", "max_attempts: 9")
    async with house(store, provider, text) as served:
        answer = await served.ask(model="alone", headers={"x-job-id": "vain"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "circuit_open")
        assert "server_error" in answer.json()["error"]["message"]
        tries = ["model_called", "model_failed"]
        assert await served.story("vain") == ["created", *tries, *tries, *tries, "circuit_opened", "model_failed"]
        assert (await events(served, "vain", "model_failed"))[-1].error.error_class == "circuit_open"


async def test_last_resort_is_called_once_and_closes_the_circuit(store: Store, provider: SpawnedProvider) -> None:
    broken(provider, "*")
    text = routing().replace("max_attempts: 1", "max_attempts: 3")
    async with house(store, provider, text) as served:
        await fail_three(served)
        provider.reset()
        assert (await served.ask(model="r", headers={"x-job-id": "last"})).status_code == 502
        assert provider.stats()["requests"] == 1
        names = await served.story("last")
        assert names.count("model_called") == 1
        provider.set_rules("rules: []")
        answer = await served.ask(model="r", headers={"x-job-id": "back"})
        assert answer.status_code == 200
        assert "circuit_closed" in await served.story("back")
        assert len(await list_circuits(store, only_open=True)) == 1  # the other one


# ── degraded ────────────────────────────────────────────────────────────────────────────────────────────────────────

SORRY = ", degraded: {answer: 'We are at capacity.'}"
HELLO = [{"role": "user", "content": "hello"}]
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": HELLO}),
    "responses": ("/v1/responses", {"input": "hello"}),
    "messages": ("/v1/messages", {"messages": HELLO, "max_tokens": 100}),
}


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("form", FORMATS)
async def test_a_chain_may_end_in_a_fixed_answer(
    store: Store, provider: SpawnedProvider, form: str, streamed: bool
) -> None:
    broken(provider, "*")
    path, body = FORMATS[form]
    async with house(store, provider, routing(route=SORRY)) as served:
        answer = await served.http.post(
            path, json={"model": "r", "stream": streamed, **body}, headers={"x-job-id": "sorry"}
        )
        assert (answer.status_code, answer.headers["x-overnight-degraded"]) == (200, "answer")
        assert answer.headers["x-overnight-cost-usd"] == "0.000000"
        assert "x-overnight-replayed" not in answer.headers
        assert "We are at capacity." in answer.text.replace('"}', "")
        names = await served.story("sorry")
        assert names[-3:] == ["model_failed", "degraded", "model_succeeded"]
        [said] = await events(served, "sorry", "degraded")
        [succeeded] = await events(served, "sorry", "model_succeeded")
        assert said.decision["kind"] == "answer"
        assert "server_error" in said.decision["why"]
        assert (succeeded.provider, succeeded.model, succeeded.cost_microusd) == ("degraded", "degraded", 0)
        shown = await story(served, "sorry")
        assert "degraded: no provider answered; served the fixed response of the route" in shown
        assert "no model answered" in shown
        assert "answered in text" not in shown
        again = await served.http.post(
            path,
            json={"model": "r", "stream": streamed, **body},
            headers={"x-job-id": "sorry", "x-job-attempt": "2"},
        )
        assert (again.headers["x-overnight-degraded"], again.headers["x-overnight-replayed"]) == ("answer", "true")


async def test_official_clients_read_the_fixed_answer(store: Store, provider: SpawnedProvider) -> None:
    broken(provider, "*")
    async with house(store, provider, routing(route=SORRY)) as served:
        plain = await served.openai.chat.completions.create(model="r", messages=HELLO)  # type: ignore[arg-type]
        assert plain.choices[0].message.content == "We are at capacity."
        pieces = await served.openai.chat.completions.create(model="r", messages=HELLO, stream=True)  # type: ignore[arg-type]
        said = [piece.choices[0].delta.content or "" async for piece in pieces if piece.choices]
        assert "".join(said) == "We are at capacity."
        response = await served.openai.responses.create(model="r", input="hello")
        assert response.output_text == "We are at capacity."


async def test_fixed_answer_is_immediate_with_all_circuits_open(store: Store, provider: SpawnedProvider) -> None:
    broken(provider, "*")
    async with house(store, provider, routing(route=SORRY)) as served:
        await fail_three(served)
        asked = provider.stats()["requests"]
        answer = await served.ask(model="r", headers={"x-job-id": "shut"})
        assert (answer.status_code, answer.headers["x-overnight-degraded"]) == (200, "answer")
        assert provider.stats()["requests"] == asked
        assert await served.story("shut") == ["created", "degraded", "model_succeeded"]


async def test_invalid_request_is_not_degraded(store: Store, provider: SpawnedProvider) -> None:
    broken(provider, "*", "status: 400")
    async with house(store, provider, routing(route=SORRY)) as served:
        answer = await served.ask(model="r")
        assert answer.status_code == 400
        assert "x-overnight-degraded" not in answer.headers


async def test_expired_cache_answer_precedes_the_fixed_one(store: Store, provider: SpawnedProvider) -> None:
    route = ", degraded: {cache: true, answer: 'We are at capacity.'}"
    async with house(store, provider, routing(route=route)) as served:
        provider.set_rules("rules: [{answer: the first answer}]")
        first = await served.ask("one", model="r", headers={"x-job-id": "j1"})
        broken(provider, "*")
        kept = await served.ask("one", model="r", headers={"x-job-id": "j2"})
        assert (kept.status_code, kept.headers["x-overnight-degraded"]) == (200, "cache")
        assert kept.json()["choices"] == first.json()["choices"]
        [said] = await events(served, "j2", "degraded")
        assert said.detail["of"]["job_id"] == first.headers["x-job-id"]
        unknown = await served.ask("two", model="r", headers={"x-job-id": "j3"})
        assert unknown.headers["x-overnight-degraded"] == "answer"
        # A degraded answer never enters the cache: the provider is asked as soon as it answers again.
        provider.set_rules("rules: [{answer: the real answer}]")
        await store.commit(CloseCircuit((OWN, "a"), "ann"))
        await served.gateway.circuits.refresh()
        real = await served.ask("two", model="alone", headers={"x-job-id": "j4"})
        assert real.json()["choices"][0]["message"]["content"] == "the real answer"


async def test_degraded_answer_is_recorded_at_the_position(store: Store, provider: SpawnedProvider) -> None:
    broken(provider, "*")
    async with house(store, provider, routing(route=SORRY)) as served:
        recorded = await JobCalls(served.gateway).call(request(await leased(store), model="r"))
        assert recorded.facts.event == "model_succeeded"
        assert json.loads(recorded.content or b"")["choices"][0]["message"]["content"] == "We are at capacity."
        assert (recorded.path, recorded.ordinal) == ("/1", 0)


# ── tries by class; what nobody knows the cost of ───────────────────────────────────────────────────────────────────


async def test_each_failure_class_has_its_own_attempts(store: Store, provider: SpawnedProvider) -> None:
    text = routing().replace(
        "backoff_ms: 1}", "backoff_ms: 1, by_class: {rate_limited: {max_attempts: 4}, server_error: {max_attempts: 2}}}"
    )
    async with house(store, provider, text) as served:
        for status, tries in ((429, 4), (500, 2), (503, 1)):
            broken(provider, fault=f"status: {status}")
            await served.ask(model="alone", headers={"x-job-id": f"s{status}"})
            assert (await served.story(f"s{status}")).count("model_called") == tries


@pytest.mark.parametrize("fault", ["stall: true", "cut_after_chunks: 1", "broken_json: true"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_unknown_cost_counts_in_full(store: Store, provider: SpawnedProvider, fault: str, streamed: bool) -> None:
    broken(provider, fault=fault)
    async with house(store, provider, routing(route=", deadline_ms: 400")) as served:
        await served.ask(model="alone", stream=streamed, headers={"x-job-id": "lost"})
        failed = (await served.until("lost", "model_failed"))[-1].facts
        [called] = await events(served, "lost", "model_called")
        # Where a stream broke, what came is a cost; the rest of what was reserved is a bound.
        known, bound = failed.cost_microusd or 0, failed.bound_microusd or 0
        assert known + bound == called.detail["reserved_microusd"] > 1000
        assert known == 0 or streamed
        [usage] = await served.ledger.usage((await served.ledger.job("lost")).job_id)
        assert (usage[1], *usage[5:]) == (1, known, bound)


async def test_second_circuit_check_is_not_slower(store: Store, provider: SpawnedProvider) -> None:
    """An open circuit costs a look into a dict: a hundred calls past it take no longer than a second each, by far."""
    broken(provider, fault="stall: true")
    async with house(store, provider, routing(route=", deadline_ms: 600")) as served:
        await asyncio.gather(*(served.ask(model="r") for _ in range(3)))
        began = time.monotonic()
        answers = await asyncio.gather(*(served.ask(model="r") for _ in range(100)))
        assert {answer.headers["x-overnight-model"] for answer in answers} == {"b"}
        assert time.monotonic() - began < 30


async def test_untranslatable_probe_is_returned(store: Store, provider: SpawnedProvider) -> None:
    broken(provider)
    other = "other: {base_url: 'HERE', models: [b], apis: [responses]}"
    text = routing(SHORT).replace("models: [a, b]}", "models: [a]}, " + other)
    async with house(store, provider, text) as served:
        await fail_three(served)
        provider.set_rules("rules: []")
        await asyncio.sleep(0.2)
        body = {"model": "r", "input": "look it up", "tool_choice": {"type": "web_search"}}
        answer = await served.http.post("/v1/responses", json=body, headers={"x-job-id": "hosted"})
        assert (answer.status_code, answer.headers["x-overnight-model"]) == (200, "b")
        assert (await events(served, "hosted", "model_failed"))[0].error.code == "not_carried"
        async with asyncio.timeout(5):
            while (await list_circuits(store, only_open=True))[0].probe is not None:
                await asyncio.sleep(0.01)
        assert (await served.ask(model="r")).headers["x-overnight-model"] == "a"


async def test_failed_probe_is_settled_before_the_next_wait(store: Store) -> None:
    """Its call goes on at a target where others stand in line; all others wait to hear how the probe came out."""
    room = asyncio.Event()

    async def holds(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await room.wait()
        await answers(asked, reader, writer)

    plan: dict[str, Any] = {"a": refuses(500, "server_error"), "b": answers}
    text = routing(SHORT, more="rate_limits: [{scope: target, concurrency: 1}]")
    text = text.replace("deadlines: {default_ms: 5000}", deadlines(20_000))
    async with faulty_upstream(plan) as upstream, house(store, upstream, text) as served:  # type: ignore[arg-type]
        await fail_three(served)
        upstream.plan["b"] = holds
        calls = [asyncio.create_task(served.ask(model="b", headers={"x-job-id": "holds"}))]
        await served.until("holds", "model_called")
        calls.append(asyncio.create_task(served.ask(model="b")))
        await asyncio.sleep(0.2)
        calls.append(asyncio.create_task(served.ask("x", model="r", headers={"x-job-id": "probe"})))
        found = await served.until("probe", "circuit_opened")
        [again] = [each.facts for each in found if each.facts.event == "circuit_opened"]
        assert again.decision["opening"] == 2
        [row] = await list_circuits(store, only_open=True)
        assert (row.openings, row.probe) == (2, None)
        room.set()
        assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}
        assert (await served.story("probe"))[-1] == "model_succeeded"
