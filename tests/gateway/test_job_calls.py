"""Model calls of job code: the same path, recorded at a position of the job."""

import asyncio
import json

import msgspec
import pytest

from ends import check_ends
from job_model_calls import leased, request
from overnight.domain import BadInput, BudgetStopped, Fenced, Recorded
from overnight.gateway import JobCalls
from overnight.jobs.commands import Finish
from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, routed, serving


async def test_answer_is_recorded_at_its_position(served: Served) -> None:
    job = await leased(served.store)
    answer = await JobCalls(served.gateway).call(request(job, 3, task="heartbeat_check"))
    assert isinstance(answer, Recorded)
    assert json.loads(answer.content or b"")["choices"]
    stored = await served.ledger.events(job.job_id)
    called, succeeded = stored[-2:]
    for event, name in ((called, "model_called"), (succeeded, "model_succeeded")):
        assert (event.facts.event, event.path, event.ordinal, event.fingerprint) == (name, "/1", 3, "print-3")
        assert (event.facts.kind, event.facts.name, event.facts.step) == ("model", "heartbeat_check", "a step")
    assert (answer.seq, answer.at) == (succeeded.seq, succeeded.at)
    assert answer.facts == succeeded.facts
    plain = await JobCalls(served.gateway).call(request(job, 4))
    assert plain.facts.name == "default"


async def test_only_the_last_failure_answers_a_position(served: Served) -> None:
    served.provider.set_rules("rules: [{fault: {status: 503}}]")
    job = await leased(served.store)
    answer = await JobCalls(served.gateway).call(request(job))
    assert (answer.facts.event, answer.path, answer.ordinal) == ("model_failed", "/1", 0)
    assert answer.facts.error is not None
    assert answer.facts.error.error_class == "overloaded"
    failed = [event for event in await served.ledger.events(job.job_id) if event.facts.event == "model_failed"]
    assert [event.path for event in failed] == [None, "/1"]


async def test_worker_without_lease_makes_no_call(served: Served) -> None:
    job = await leased(served.store)
    await leased(served.store, job_id=job.job_id)
    with pytest.raises(Fenced):
        await JobCalls(served.gateway).call(request(job))
    assert served.provider.stats()["requests"] == 0


async def test_call_without_lease_does_not_end_the_next_one(store: Store, provider: SpawnedProvider) -> None:
    """A worker that was stopped past its lease goes on with other jobs, on the connections that its refused calls leave."""
    routes = "default_model: gpt-5.4-mini\nroutes: {hasty: {model: gpt-5.4-mini, deadline_ms: 600}}"

    def refuse() -> None:
        raise Fenced("its lease has run out")

    provider.set_rules("rules: [{match: {user_contains: slow}, fault: {delay_ms: 1000}}]")
    async with serving(store, provider, routes) as served:
        job, calls = await leased(store), JobCalls(served.gateway)
        await calls.call(request(job))  # opens a connection
        refused = msgspec.structs.replace(request(job, 1, model="hasty"), check=refuse)
        with pytest.raises(Fenced):
            await calls.call(refused)
        async with asyncio.timeout(20):
            answer = await calls.call(request(job, 2, "slow"))
        assert answer.facts.event == "model_succeeded"
        assert served.provider.stats()["requests"] == served.provider.stats()["paid_calls"] == 2


@pytest.mark.parametrize("then", ["another lease", "the end of the job"])
async def test_answer_after_the_lease_only_corrects_the_cost(served: Served, then: str) -> None:
    """The position is asked again by whoever has the job next. So the late answer must not be a second recorded one."""
    served.provider.set_rules("rules: [{match: {times: 1}, fault: {delay_ms: 300}}]")
    job = await leased(served.store)
    calls = JobCalls(served.gateway)
    asking = asyncio.create_task(calls.call(request(job)))
    await served.until(job.job_id, "model_called")
    if then == "another lease":
        newer = await leased(served.store, job_id=job.job_id)
    else:
        await served.store.commit(Finish(job.job_id, None, job.lease_epoch, "failed"))
    with pytest.raises(Fenced):
        await asking
    lost, corrected = (await served.ledger.events(job.job_id))[-2:]
    assert (lost.facts.event, corrected.facts.event) == ("model_lost", "cost_corrected")
    assert (lost.path, corrected.path, corrected.fingerprint) == (None, None, None)
    assert (lost.facts.step, lost.facts.cost_microusd) == ("a step", 0)
    assert (lost.facts.bound_microusd or 0) > (corrected.facts.cost_microusd or 0) > 0
    if then == "another lease":
        assert await calls.settle_lost(newer) == 0
        assert (await calls.call(request(newer))).path == "/1"
        answers = [e for e in await served.ledger.events(job.job_id) if e.facts.event == "model_succeeded"]
        assert len(answers) == 1
        assert served.provider.stats()["paid_calls"] == 2
    [(_, made, _, _, _, cost, bound)] = await served.ledger.usage(job.job_id)
    booked = 2 if then == "another lease" else 1
    assert (made, cost, bound) == (booked, booked * (corrected.facts.cost_microusd or 0), 0)
    check_ends(msgspec.to_builtins(event.facts) for event in await served.ledger.events(job.job_id))


async def test_calls_of_an_older_lease_are_lost_once(served: Served) -> None:
    served.provider.set_rules("rules: [{match: {times: 1}, fault: {stall: true}}]")
    job = await leased(served.store)
    calls = JobCalls(served.gateway)
    asking = asyncio.create_task(calls.call(request(job)))
    await served.until(job.job_id, "model_called")
    async with asyncio.timeout(20):
        while served.provider.stats()["paid_calls"] == 0:  # else the stall would be left for the next call
            await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.wait([asking])
    newer = await leased(served.store, job_id=job.job_id)
    assert await calls.settle_lost(newer) == 1
    assert await calls.settle_lost(newer) == 0
    lost = (await served.ledger.events(job.job_id))[-1]
    assert (lost.facts.event, lost.path) == ("model_lost", None)
    assert (lost.facts.bound_microusd or 0) > 0
    answer = await calls.call(request(newer))
    assert answer.facts.event == "model_succeeded"


async def test_a_call_of_a_live_lease_is_not_lost(served: Served) -> None:
    served.provider.set_rules("rules: [{fault: {delay_ms: 200}}]")
    job = await leased(served.store)
    calls = JobCalls(served.gateway)
    asking = asyncio.create_task(calls.call(request(job)))
    await served.until(job.job_id, "model_called")
    assert await calls.settle_lost(job) == 0
    assert (await asking).facts.event == "model_succeeded"


async def test_http_call_of_a_job_outlives_the_lease_of_its_worker(served: Served) -> None:
    served.provider.set_rules("rules: [{fault: {delay_ms: 200}}]")
    job = await leased(served.store)
    asking = asyncio.create_task(served.ask(headers={"x-job-id": job.job_id}))
    await served.until(job.job_id, "model_called")
    newer = await leased(served.store, job_id=job.job_id)
    assert await JobCalls(served.gateway).settle_lost(newer) == 0
    assert (await asking).status_code == 200
    names = [event.facts.event for event in await served.ledger.events(job.job_id)]
    assert ("model_succeeded" in names, "model_lost" in names) == (True, False)


async def test_late_answer_after_model_lost_corrects_the_cost(served: Served) -> None:
    served.provider.set_rules("rules: [{fault: {delay_ms: 200}}]")
    asking = asyncio.create_task(served.ask(headers={"x-job-id": "late"}))
    await served.until("late", "model_called")
    assert await served.gateway.settle_owner(served.gateway.owner) == 1
    assert (await asking).status_code == 200
    events = await served.events("late")
    lost, corrected = events[-2:]
    assert (lost.facts.event, corrected.facts.event) == ("model_lost", "cost_corrected")
    assert (lost.facts.cost_microusd, corrected.facts.bound_microusd) == (0, 0)
    assert lost.facts.bound_microusd > corrected.facts.cost_microusd > 0
    [(_, calls, _, _, _, *booked)] = await served.ledger.usage((await served.ledger.job("late")).job_id)
    assert (calls, booked) == (1, [corrected.facts.cost_microusd, 0])


async def test_a_child_draws_on_the_budget_of_all_its_ancestors(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed("budgets: {max_llm_calls_per_job: 3}")) as served:
        calls = JobCalls(served.gateway)
        root = await leased(store)
        child = await leased(store, root)
        grandchild = await leased(store, child)
        for job in (root, child, grandchild):
            await calls.call(request(job))
        with pytest.raises(BudgetStopped) as stopped:
            await calls.call(request(grandchild, 1))
        assert root.job_id in str(stopped.value)
        assert (await served.ledger.events(grandchild.job_id))[-1].facts.event == "budget_stopped"
        over_http = await served.ask(headers={"x-job-id": grandchild.job_id})
        assert over_http.status_code == 402


async def test_body_without_json_form_is_rejected(served: Served) -> None:
    job = await leased(served.store)
    with pytest.raises(BadInput, match="JSON"):
        await JobCalls(served.gateway).call(request(job, seed=object()))


async def test_a_program_may_call_as_the_job_that_started_it(served: Served) -> None:
    job = await leased(served.store)
    assert (await served.ask(headers={"x-job-id": job.job_id})).headers["x-job-id"] == job.job_id
    assert all(e.path is None for e in await served.ledger.events(job.job_id) if e.facts.event.startswith("model_"))
    await served.store.commit(Finish(job.job_id, None, job.lease_epoch, "succeeded"))
    answer = await served.ask(headers={"x-job-id": job.job_id})
    assert (answer.status_code, "overnight resume" in answer.json()["error"]["message"]) == (409, True)


async def test_closing_gateway_settles_its_calls(store: Store, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{fault: {stall: true}}]")
    async with serving(store, provider) as served:
        job = await leased(store)
        asking = asyncio.create_task(JobCalls(served.gateway).call(request(job)))
        await served.until(job.job_id, "model_called")
        asking.cancel()
        ledger = served.ledger
    assert (await ledger.events(job.job_id))[-1].facts.event == "model_lost"
