"""A restarted external program receives its recorded answers once, at no cost."""

import asyncio
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from overnight.domain import Event
from overnight.ledger import Append
from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, gateway_process, routed, serving


@pytest.fixture
def provider(provider: SpawnedProvider) -> SpawnedProvider:
    provider.set_rules("rules: [{answer: 'answer {count}'}]")
    return provider


async def ask(served: Served, text: str, attempt: int | None = None, **more: Any) -> tuple[str, bool]:
    """(what was answered, whether it was a replay)."""
    headers = {"x-job-id": "n"} | ({"x-job-attempt": str(attempt)} if attempt else {})
    answer = await served.ask(text, headers=headers, **more)
    assert answer.status_code == 200, answer.text
    replayed = answer.headers.get("x-overnight-replayed") == "true"
    if replayed:
        assert float(answer.headers["x-overnight-cost-usd"]) == 0
    return answer.json()["choices"][0]["message"]["content"], replayed


async def test_repeated_request_without_new_attempt_is_a_new_call(served: Served) -> None:
    assert [await ask(served, "poll") for _ in range(3)] == [
        ("answer 1", False),
        ("answer 2", False),
        ("answer 3", False),
    ]


async def test_kth_request_receives_kth_answer_then_live_calls(served: Served) -> None:
    for text in ("poll", "other", "poll"):
        await ask(served, text, 1)
    again = [await ask(served, text, 2) for text in ("poll", "poll", "other", "poll")]
    assert again == [("answer 1", True), ("answer 3", True), ("answer 2", True), ("answer 4", False)]
    assert served.provider.stats()["paid_calls"] == 4
    events = await served.events("n")
    replayed = [event for event in events if event.facts.event == "model_replayed"]
    seqs = [event.seq for event in events if event.facts.event == "model_succeeded"]
    assert [event.facts.detail["of"] for event in replayed] == [seqs[0], seqs[2], seqs[1]]
    assert all(event.facts.cost_microusd == 0 for event in replayed)
    assert "diverged" not in await served.story("n")


async def test_next_attempt_replays_replayed_and_live_answers(served: Served) -> None:
    await ask(served, "a", 1)
    await ask(served, "a", 2)
    await ask(served, "a", 2)
    assert [await ask(served, "a", 3) for _ in range(3)] == [
        ("answer 1", True),
        ("answer 2", True),
        ("answer 3", False),
    ]


async def test_attempt_starts_over_the_api(served: Served) -> None:
    await ask(served, "a")
    announced = await served.http.post("/api/v1/jobs/n/attempts", json={"mode": "recover"})
    assert (announced.status_code, announced.json()["attempt"]) == (201, 2)
    assert await ask(served, "a") == ("answer 1", True)


async def test_retry_re_runs_calls_after_the_last_effect(served: Served) -> None:
    await ask(served, "before")
    job = await served.ledger.job("n")
    await served.store.commit(Append(job.job_id, Event("tool_succeeded", name="file", attempt=1)))
    await ask(served, "after")
    await served.http.post("/api/v1/jobs/n/attempts", json={"mode": "retry"})
    assert await ask(served, "before") == ("answer 1", True)
    assert await ask(served, "after") == ("answer 3", False)
    await served.http.post("/api/v1/jobs/n/attempts", json={"mode": "recover"})
    assert await ask(served, "after") == ("answer 3", True)


async def test_replay_works_for_plain_and_streamed_requests(served: Served) -> None:
    tool_rule = "rules: [{answer: {tool_calls: [{name: file, arguments: {n: 7}}]}}]"
    served.provider.set_rules(tool_rule)
    plain = (await served.ask("x", headers={"x-job-id": "n"})).json()
    pieces = [
        piece
        async for piece in await served.openai.chat.completions.create(
            model="auto",
            messages=[{"role": "user", "content": "x"}],
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"x-job-id": "n", "x-job-attempt": "2"},
        )
    ]
    [call] = [call for piece in pieces if piece.choices for call in piece.choices[0].delta.tool_calls or []]
    assert call.function.arguments == plain["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert pieces[-2].choices[0].finish_reason == "tool_calls"
    assert pieces[-1].usage.cost_usd == 0
    assert served.provider.stats()["paid_calls"] == 1
    streamed_first = await served.ask("y", headers={"x-job-id": "m"}, stream=True)
    assert streamed_first.status_code == 200
    whole = await served.ask("y", headers={"x-job-id": "m", "x-job-attempt": "2"})
    assert whole.headers["x-overnight-replayed"] == "true"
    assert whole.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "file"


async def test_unmatched_request_is_one_event_and_goes_live(served: Served) -> None:
    for text in ("a", "b"):
        await ask(served, text, 1)
    for text in ("new", "newer"):
        assert not (await ask(served, text, 2))[1]
    diverged = [event.facts for event in await served.events("n") if event.facts.event == "diverged"]
    assert [facts.detail["unconsumed"] for facts in diverged] == [2]
    assert await ask(served, "b", 2) == ("answer 2", True)


@pytest.mark.parametrize(("attempt", "code"), [(1, "attempt_is_over"), (4, "conflict")])
async def test_ended_or_skipped_attempt_number_is_409(served: Served, attempt: int, code: str) -> None:
    await ask(served, "a", 1)
    await ask(served, "a", 2)
    answer = await served.ask("a", headers={"x-job-id": "n", "x-job-attempt": str(attempt)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, code)
    assert answer.headers["x-should-retry"] == "false"


async def test_job_may_start_with_its_second_attempt(served: Served) -> None:
    assert await ask(served, "a", 2) == ("answer 1", False)
    assert (await served.ledger.job("n")).attempt == 2


async def test_late_answer_is_recorded_and_not_returned(served: Served) -> None:
    served.provider.set_rules("rules: [{answer: 'answer {count}', fault: {delay_ms: 400}}]")
    old = asyncio.create_task(served.ask("a", headers={"x-job-id": "n", "x-job-attempt": "1"}))
    await served.until("n", "model_called")
    joined = await ask(served, "a", 2)
    assert joined == ("answer 1", True)
    assert (await old).status_code == 409
    assert served.provider.stats()["paid_calls"] == 1


async def test_failures_are_not_replayed(served: Served) -> None:
    served.provider.set_rules("rules: [{match: {times: 2}, fault: {status: 503}}, {answer: better}]")
    assert (await served.ask("a", headers={"x-job-id": "n"})).status_code == 503
    assert await ask(served, "a", 2) == ("better", False)


async def test_a_replay_costs_no_call_of_the_budget(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed("budgets: {max_llm_calls_per_job: 2}")) as served:
        await ask(served, "a", 1)
        await ask(served, "a", 2)
        assert await ask(served, "b", 2) == ("answer 2", False)


async def test_a_large_answer_is_replayed_from_its_blob(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{answer: {text: word, repeat_words: 20000}}]")
    async with serving(store, provider, routed("limits: {default_max_output_tokens: 50000}")) as served:
        first = await ask(served, "a", 1)
        event = (await served.events("n"))[-1]
        assert event.content is None
        assert event.facts.output_ref.startswith("blob://")
        assert await ask(served, "a", 2) == (first[0], True)


async def test_two_gateways_replay_each_answer_once(store_url: str, provider: SpawnedProvider, tmp_path: Path) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "same"}]}
    with ExitStack() as stack:
        urls = [stack.enter_context(gateway_process(store_url, provider, tmp_path)).url for _ in range(2)]
        async with httpx2.AsyncClient(timeout=30) as http:

            async def one(number: int, attempt: int) -> tuple[str, bool]:
                headers = {"x-job-id": "n", "x-job-attempt": str(attempt)}
                answer = await http.post(f"{urls[number % 2]}/v1/chat/completions", json=body, headers=headers)
                assert answer.status_code == 200, answer.text
                return json.loads(answer.text)["id"], "x-overnight-replayed" in answer.headers

            first = [await one(number, 1) for number in range(6)]
            second = await asyncio.gather(*(one(number, 2) for number in range(12)))
    replays = [answer for answer, replayed in second if replayed]
    assert sorted(replays) == sorted(answer for answer, _ in first)
    assert provider.stats()["paid_calls"] == 12


async def test_a_finished_job_is_reopened_and_a_cancelled_one_is_not(served: Served) -> None:
    await ask(served, "a")
    await served.http.post("/api/v1/jobs/n/complete", json={"result": {"filed": 3}})
    assert (await served.ledger.job("n")).state == "succeeded"
    await ask(served, "b")
    assert (await served.ledger.job("n")).state == "running"
    reopened = [e.facts for e in await served.events("n") if e.facts.event == "started"]
    assert "reopened" in reopened[0].decision["why"]
    await served.http.post("/api/v1/jobs/n/cancel")
    answer = await served.ask("c", headers={"x-job-id": "n"})
    assert (answer.status_code, "cancelled" in answer.json()["error"]["message"]) == (409, True)
