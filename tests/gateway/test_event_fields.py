"""Fields of model events: the record, the queue time, the first byte of a stream, and the call of a fallback."""

import asyncio
from typing import Any

from circuit_house import broken, house, routing
from overnight.store import Store
from overnight.story import build_timeline, load_job_tree
from overnight.testing import SpawnedProvider
from serving import routed, serving


async def facts(served: Any, job: str, *names: str) -> list[Any]:
    return [each.facts for each in await served.events(job) if each.facts.event in names]


async def test_record_header_is_in_all_events_of_the_call(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider) as served:
        headers = {"x-job-id": "j", "x-record": "mail-17"}
        assert (await served.ask("one", headers=headers)).status_code == 200
        assert (await served.ask("mail-18: two", headers={"x-job-id": "j"})).status_code == 200
        about = [each.about for each in await facts(served, "j", "model_called", "model_succeeded")]
        assert about == ["mail-17", "mail-17", None, None]
        shown = (await served.http.get("/api/v1/jobs/j/events")).json()["events"]
        assert [each.get("about") for each in shown if each["event"] == "model_called"] == ["mail-17", None]
        refused = await served.ask("three", headers=headers | {"x-record": "mail\t17"})
        assert (refused.status_code, "x-record" in refused.text) == (400, True)
        timeline = build_timeline(await load_job_tree(served.ledger, await served.ledger.job("j")), store.clock())
        assert ["about mail-17" in line.facts for line in timeline.lines if line.kind == "model"] == [True, False]


async def test_lost_call_keeps_its_attribution(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{fault: {delay_ms: 20000}}]")
    async with serving(store, provider) as served:
        headers = {"x-job-id": "j", "x-record": "mail-17", "x-step": "draft", "x-task": "reply", "x-workflow": "post"}
        call = asyncio.ensure_future(served.ask(headers=headers | {"x-session-id": "s"}))
        await served.until("j", "model_called")
        assert await served.gateway.settle_owner(served.gateway.owner) == 1
        (lost,) = await facts(served, "j", "model_lost")
        call.cancel()
    assert (lost.about, lost.step, lost.task_id, lost.workflow) == ("mail-17", "draft", "reply", "post")
    assert lost.session_id == "s"


async def test_queue_time_and_first_byte_are_recorded(store: Store, provider: SpawnedProvider) -> None:
    limits = "rate_limits: [{scope: tenant, concurrency: 1}]\ndeadlines: {queue_ms: 20000, default_ms: 20000}\n"
    provider.set_rules("rules: [{fault: {delay_ms: 250}}]")
    async with serving(store, provider, routed(limits)) as served:
        await asyncio.gather(*(served.ask(f"{n}", headers={"x-job-id": "j"}) for n in range(2)))
        first, second = sorted(each.queued_ms for each in await facts(served, "j", "model_succeeded"))
        assert 0 <= first < 150 <= second
        stream = await served.openai.chat.completions.create(
            model="auto",
            messages=[{"role": "user", "content": "hello"}],
            stream=True,
            extra_headers={"x-job-id": "s"},
        )
        assert [chunk async for chunk in stream]
        (streamed,) = await facts(served, "s", "model_succeeded")
        (whole, _) = await facts(served, "j", "model_succeeded")
    assert 0 < streamed.first_byte_ms <= streamed.latency_ms
    assert whole.first_byte_ms is None


async def test_fallback_names_the_call_that_takes_over(store: Store, provider: SpawnedProvider) -> None:
    broken(provider)
    async with house(store, provider, routing(more="rate_limits: [{scope: target, concurrency: 1}]")) as served:
        answers = await asyncio.gather(*(served.ask(f"{n}", "r", {"x-job-id": "j"}) for n in range(4)))
        assert [each.status_code for each in answers] == [200] * 4
        called = {each.call_id: each.model for each in await facts(served, "j", "model_called")}
        taken = await facts(served, "j", "fallback_taken")
    assert len({each.call_id for each in taken}) == 4
    assert {called[each.call_id] for each in taken} == {"b"}
