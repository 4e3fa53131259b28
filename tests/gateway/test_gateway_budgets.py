"""Hard stops with many callers and two gateway processes on one budget."""

import asyncio
import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from overnight.domain import micro_to_usd
from overnight.ledger import Ledger
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from serving import Served, gateway_process, routed, serving


async def budget(served: Served, job: str) -> dict[str, int]:
    from overnight.budgets import BUDGET_SQL

    values = {"tenant_id": "default", "scope": "job", "scope_id": (await served.ledger.job(job)).job_id}
    [row] = await served.store.read(BUDGET_SQL["read_budget"], values)
    return {"reserved": row[5], "spent": row[6], "bound": row[19], "calls": row[7]}


async def test_call_over_the_limit_is_402_without_retry(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed("budgets: {max_llm_calls_per_job: 2}")) as served:
        for _ in range(2):
            assert (await served.ask(headers={"x-job-id": "b"})).status_code == 200
        patient = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=3)
        with pytest.raises(openai.APIStatusError) as raised:
            await patient.chat.completions.create(
                model="auto", messages=[{"role": "user", "content": "x"}], extra_headers={"x-job-id": "b"}
            )
        await patient.close()
        assert (raised.value.status_code, raised.value.code) == (402, "budget_exceeded")
        assert raised.value.response.headers["x-should-retry"] == "false"
        stopped = [event.facts for event in await served.events("b") if event.facts.event == "budget_stopped"]
        assert len(stopped) == 1
        assert (stopped[0].decision["limit"], stopped[0].decision["allowed_calls"]) == ("max_llm_calls_per_job", 2)
        assert provider.stats()["paid_calls"] == 2


async def test_response_reports_the_remaining_budget(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed("budgets: {max_cost_per_job_usd: 0.5}")) as served:
        spent = 0.0
        for _ in range(2):
            headers = (await served.ask(headers={"x-job-id": "left"})).headers
            spent += float(headers["x-overnight-cost-usd"])
            assert float(headers["x-overnight-budget-left-usd"]) == pytest.approx(0.5 - spent)
    async with serving(store, provider, routed("")) as served:
        assert "x-overnight-budget-left-usd" not in (await served.ask()).headers


async def test_retries_and_fallbacks_count_as_calls(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{fault: {status: 503}}]")
    async with serving(store, provider, routed("budgets: {max_llm_calls_per_job: 3}")) as served:
        answer = await served.ask(model="claude-opus-4.6", headers={"x-job-id": "r"})
        assert answer.status_code == 402
        story = await served.story("r")
        assert (story.count("model_called"), story.count("model_failed"), story[-1]) == (3, 3, "budget_stopped")
        assert await budget(served, "r") == {"reserved": 0, "spent": 0, "bound": 0, "calls": 3}
        assert provider.stats()["requests"] == 3


async def test_job_cancelled_between_attempts_keeps_no_reservation(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{fault: {status: 503, delay_ms: 1500}}]")
    async with serving(store, provider) as served:
        await served.http.get("/api/v1/jobs")  # loads the API, which may take longer than the call
        asking = asyncio.create_task(served.ask(headers={"x-job-id": "c"}))
        await served.until("c", "model_called")
        await served.http.post("/api/v1/jobs/c/cancel")
        assert (await asking).status_code == 409
        assert provider.stats()["requests"] == 1
        assert (await served.story("c"))[-1] == "model_failed"
        assert await budget(served, "c") == {"reserved": 0, "spent": 0, "bound": 0, "calls": 1}


async def test_output_cap_is_lowered_to_the_budget(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed("budgets: {max_cost_per_job_usd: 0.01}")) as served:
        answer = await served.ask("hi", headers={"x-job-id": "low"})
        assert answer.status_code == 200
        detail = (await served.events("low"))[1].facts.detail
        assert detail["lowered"]
        assert 256 <= detail["max_output_tokens"] < 8192
        assert int(answer.headers["x-overnight-output-cap"]) == detail["max_output_tokens"]
        assert detail["reserved_microusd"] <= 10_000


async def test_streams_draw_on_the_budget_too(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed("budgets: {max_llm_calls_per_job: 1}")) as served:
        body = {"model": "auto", "messages": [{"role": "user", "content": "x"}], "stream": True}
        answers = [
            await served.http.post("/v1/chat/completions", json=body, headers={"x-job-id": "s"}) for _ in range(2)
        ]
        assert [answer.status_code for answer in answers] == [200, 402]


async def flood(urls: list[str], count: int, job: str, text: str = "x", **more: Any) -> Counter[int]:
    """`count` calls at once, spread over the gateways; how many came out with which status."""
    limits = httpx2.Limits(max_connections=count)
    async with httpx2.AsyncClient(timeout=110, limits=limits) as http:

        async def one(number: int) -> int:
            body = {"model": "auto", "messages": [{"role": "user", "content": f"{text} {number}"}], **more}
            url = f"{urls[number % len(urls)]}/v1/chat/completions"
            return (await http.post(url, json=body, headers={"x-job-id": job})).status_code

        return Counter(await asyncio.gather(*(one(number) for number in range(count))))


@pytest.mark.timeout(180)
async def test_two_processes_pay_exactly_ten_of_a_thousand_calls(
    store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    provider.set_rules("rules: [{answer: ok, fault: {delay_ms: 20}}]")
    routing = routed("budgets: {max_llm_calls_per_job: 10}\ndeadlines: {default_ms: 100000}")
    with ExitStack() as stack:
        urls = [stack.enter_context(gateway_process(store_url, provider, tmp_path, routing)).url for _ in range(2)]
        statuses = await flood(urls, 1000, "flood")
    assert statuses == {200: 10, 402: 990}
    assert provider.stats()["paid_calls"] == 10
    assert provider.stats()["requests"] == 10


@pytest.mark.timeout(180)
async def test_money_budget_holds_at_two_processes(store_url: str, provider: SpawnedProvider, tmp_path: Path) -> None:
    # An answer of 2,000 tokens costs 2 ¢ here, and 2.1 ¢ are reserved for it: most callers must wait for others to settle,
    # and the last ones get less than they asked for.
    provider.set_rules("rules: [{answer: {text: word, repeat_words: 1600}, fault: {delay_ms: 5}}]")
    routing = routed(
        "prices: {gpt-5.4-mini: {input_usd_per_mtok: 10, output_usd_per_mtok: 10}}\n"
        "budgets: {max_cost_per_job_usd: 0.61}\n"
        "deadlines: {default_ms: 100000}"
    )
    with ExitStack() as stack:
        urls = [stack.enter_context(gateway_process(store_url, provider, tmp_path, routing)).url for _ in range(2)]
        statuses = await flood(urls, 100, "money", max_tokens=2048)
    paid = provider.stats()["paid_calls"]
    with open_store(store_url) as store:
        ledger = Ledger(store)
        job = await ledger.job("money")
        [(_, calls, _, _, _, microusd, _)] = await ledger.usage(job.job_id)
        lows = [
            event.facts.detail["max_output_tokens"]
            for event in await ledger.events(job.job_id)
            if event.facts.event == "model_called"
        ]
    assert statuses[200] == calls == paid
    assert set(statuses) == {200, 402}
    assert micro_to_usd(microusd) <= 0.61
    # What is left would not have bought the floor of 256 output tokens and the prompt's 200 bytes.
    assert 0.61 - micro_to_usd(microusd) < 0.005
    assert all(tokens >= 256 for tokens in lows)


async def test_calls_wait_in_arrival_order(store: Store, provider: SpawnedProvider) -> None:
    # The first call holds the budget until all the others stand in line.
    slow = "{match: {user_contains: first}, answer: ok, fault: {delay_ms: 1500}}"
    provider.set_rules(f"rules: [{slow}, {{answer: ok, fault: {{delay_ms: 5}}}}]")
    routing = routed(
        "prices: {gpt-5.4-mini: {input_usd_per_mtok: 1, output_usd_per_mtok: 100}}\nbudgets: {max_cost_per_job_usd: 0.03}"
    )
    # 256 tokens cost 2.56 ¢ at most: one call fits at a time, and each answer costs next to nothing.
    order: list[int] = []
    async with serving(store, provider, routing) as served:

        async def one(number: int) -> None:
            answer = await served.ask(f"{number}" if number else "first", max_tokens=256, headers={"x-job-id": "line"})
            assert answer.status_code == 200
            order.append(number)

        tasks = []
        for number in range(8):
            tasks.append(asyncio.create_task(one(number)))
            await asyncio.sleep(0.1)
        await asyncio.gather(*tasks)
        assert (await budget(served, "line"))["reserved"] == 0
    assert order == sorted(order)


async def test_a_call_that_waits_longer_than_its_queue_time_is_503(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{match: {user_contains: slow}, answer: ok, fault: {delay_ms: 1500}}]")
    routing = routed(
        "prices: {gpt-5.4-mini: {input_usd_per_mtok: 1, output_usd_per_mtok: 100}}\n"
        "budgets: {max_cost_per_job_usd: 0.03}\n"
        "deadlines: {queue_ms: 150}"
    )
    async with serving(store, provider, routing) as served:
        slow = asyncio.create_task(served.ask("slow", max_tokens=256, headers={"x-job-id": "w"}))
        await asyncio.sleep(0.1)
        hasty = await served.ask("hasty", max_tokens=256, headers={"x-job-id": "w"})
        assert (hasty.status_code, hasty.json()["error"]["code"]) == (503, "budget_busy")
        assert int(hasty.headers["retry-after"]) >= 1
        assert "x-should-retry" not in hasty.headers
        assert (await slow).status_code == 200


async def test_reservations_of_a_dead_gateway_are_booked(
    store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}
    with gateway_process(store_url, provider, tmp_path, crash_at="model_admitted") as gateway:
        async with httpx2.AsyncClient(base_url=gateway.url) as http:
            with pytest.raises(httpx2.HTTPError):
                await http.post("/v1/chat/completions", json=body, headers={"x-job-id": "dead"})
    with open_store(store_url) as store:
        async with serving(store, provider) as served:
            before = await budget(served, "dead")
            assert before["reserved"] > 0
            assert await served.gateway.settle_owner(gateway.owner) == 1
            assert await served.gateway.settle_owner(gateway.owner) == 0
            assert await budget(served, "dead") == {"reserved": 0, "spent": 0, "bound": before["reserved"], "calls": 1}
            lost = (await served.events("dead"))[-1].facts
            assert (lost.event, lost.cost_microusd, lost.bound_microusd) == ("model_lost", 0, before["reserved"])
            job = await served.ledger.job("dead")
            assert (await served.ledger.usage(job.job_id))[0][5:] == (0, before["reserved"])


async def test_dead_local_process_is_settled_at_once(store_url: str, provider: SpawnedProvider, tmp_path: Path) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}
    with gateway_process(store_url, provider, tmp_path, crash_at="model_admitted") as gateway:
        async with httpx2.AsyncClient(base_url=gateway.url) as http:
            with pytest.raises(httpx2.HTTPError):
                await http.post("/v1/chat/completions", json=body, headers={"x-job-id": "late"})
    with open_store(store_url) as store:
        async with serving(store, provider) as served:
            await served.until("late", "model_lost")


@pytest.mark.parametrize("point", ["model_answered", "model_settled"])
async def test_crash_after_the_answer_loses_no_booking(
    store_url: str, provider: SpawnedProvider, tmp_path: Path, point: str
) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}
    with gateway_process(store_url, provider, tmp_path, crash_at=point) as gateway:
        async with httpx2.AsyncClient(base_url=gateway.url) as http:
            with pytest.raises(httpx2.HTTPError):
                await http.post("/v1/chat/completions", json=body, headers={"x-job-id": "crash"})
    with open_store(store_url) as store:
        async with serving(store, provider) as served:
            lost = await served.gateway.settle_owner(gateway.owner)
            again = await served.ask("x", headers={"x-job-id": "crash", "x-job-attempt": "2"})
            assert again.status_code == 200
            story = await served.story("crash")
    if point == "model_answered":
        # Not recorded, so it is asked again; what the first may have cost stays counted.
        assert lost == 1
        assert story.count("model_lost") == 1
        assert provider.stats()["paid_calls"] == 2
    else:
        assert lost == 0
        assert again.headers["x-overnight-replayed"] == "true"
        assert provider.stats()["paid_calls"] == 1
    assert json.loads(again.text)["choices"]
