"""Jobs stopped by budgets and loop guards: they continue after top-ups, new days and decisions."""

import asyncio
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import overnight
from overnight.budgets import BudgetLine, TopUp, list_budgets, resolve_top_up, top_up_budget, wake_waiting_jobs
from overnight.domain import FINISHED, BadInput, NotFound
from overnight.jobs import Decision, ModelFailed, Operations
from overnight.ledger import Ledger
from overnight.settings import Settings
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from served_jobs import rest, start, told, working
from serving import Served, routed, serving

EVENING = int(datetime(2026, 3, 31, 21, 59, tzinfo=UTC).timestamp()) * 1_000_000
"""One minute to midnight in Berlin, where it is the last day of the month, too."""
DAY_US = 86_400_000_000


class Clock:
    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


async def add(served: Served, scope: str, name: str, per: str | None = None, **amounts: int) -> list[str]:
    wanted = TopUp("default", scope, name, "ann", "worth it", **amounts)
    _, woken = await top_up_budget(
        served.store, resolve_top_up(served.gateway.policy, wanted, per, served.store.clock())
    )
    return woken


@overnight.job
async def asks(count: int) -> int:
    for number in range(count):
        await overnight.chat(f"question {number}")
    return count


@overnight.job
async def asks_by_a_child(count: int) -> int:
    return await asks(count)


@overnight.job
async def asks_beside_a_nap(count: int, seconds: float) -> int:
    async def nap() -> None:
        await nap_step(seconds)

    task = asyncio.create_task(nap())
    for number in range(count):
        await overnight.chat(f"question {number}")
    task.cancel()
    return count


@overnight.step
async def nap_step(seconds: float) -> None:
    await asyncio.sleep(seconds)


# ── top-ups ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_top_up_wakes_the_job_and_is_recorded(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed("budgets: {max_llm_calls_per_job: 2}")) as served, working(served):
        job_id = await start(served, asks, 4)
        job = await rest(served, job_id)
        assert [(wait["for"], wait["scope"], wait["name"]) for wait in job.waits] == [("budget", "job", job_id)]
        assert f"overnight budget top-up job {job_id} --calls" in await told(served, job_id)
        assert await add(served, "job", job_id, calls=1) == [job_id]
        await served.until(job_id, "parked", 2)
        assert await add(served, "job", job_id, calls=5) == [job_id]
        assert (await rest(served, job_id, *FINISHED)).result == b"4"
        events = [event.facts for event in await served.events(job_id)]
        topped = [event for event in events if event.event == "budget_topped_up"]
        assert [(event.actor, event.detail["added_calls"]) for event in topped] == [("ann", 1), ("ann", 5)]
        assert topped[0].decision == {"why": "worth it"}
        assert "ann added 5 calls to the budget of job" in await told(served, job_id)
        assert provider.stats()["paid_calls"] == 4
        [line] = await list_budgets(store, served.gateway.policy, job_id=job_id)
        calls = line.measures["llm_calls"]
        assert (calls.allowed, calls.added, calls.spent, calls.left) == (8, 6, 4, 4)


@pytest.mark.parametrize("per", [None, "day"])
async def test_unparked_job_receives_a_top_up(store: Store, provider: SpawnedProvider, per: str | None) -> None:
    """A program of its own that was refused asks again when it likes."""
    limit = f"budgets: {{limits: [{{scope: job, per: {per or 'total'}, max_llm_calls: 1}}]}}"
    async with serving(store, provider, routed(limit)) as served:
        assert [(await served.ask(headers={"x-job-id": "why"})).status_code for _ in range(2)] == [200, 402]
        job = await served.ledger.job("why")
        assert await add(served, "job", job.job_id, per, calls=5) == []
        assert (await served.ask(headers={"x-job-id": "why"})).status_code == 200
        [topped] = [each.facts for each in await served.events("why") if each.facts.event == "budget_topped_up"]
        assert (topped.actor, topped.decision, topped.detail["added_calls"]) == ("ann", {"why": "worth it"}, 5)
        story = await told(served, job.job_id)
        assert "ann added 5 calls to the budget of job" in story
        assert "worth it" in story
        with pytest.raises(NotFound):
            await add(served, "job", "job_of_nobody", per, calls=5)


async def test_job_waiting_for_another_budget_wakes_once(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed("budgets: {max_llm_calls_per_job: 1}")) as served, working(served):
        parent = await start(served, asks_by_a_child, 2)
        async with asyncio.timeout(20):
            while not (below := await served.ledger.children(parent)) or below[0].state != "parked":
                await asyncio.sleep(0.01)
        [child] = below
        assert await add(served, "job", parent, calls=5) == [child.job_id]
        await served.until(child.job_id, "parked", 2)
        assert await add(served, "job", child.job_id, calls=5) == [child.job_id]
        assert (await rest(served, parent, *FINISHED)).result == b"2"
        for each, rows in ((parent, [parent]), (child.job_id, [parent, child.job_id])):
            topped = [found.facts for found in await served.events(each) if found.facts.event == "budget_topped_up"]
            assert [facts.detail["row"] for facts in topped] == rows


async def test_only_jobs_waiting_for_the_budget_wake(store: Store, provider: SpawnedProvider) -> None:
    limit = "budgets: {max_llm_calls_per_job: 2, limits: [{scope: workflow, only: asks, max_llm_calls: 5}]}"
    async with serving(store, provider, routed(limit)) as served, working(served):
        own = await start(served, asks, 3)
        await rest(served, own)
        both = [await start(served, asks, 2) for _ in range(2)]
        for each in both:
            await rest(served, each)
        stopped = [each for each in both if (await served.ledger.job(each)).state == "parked"]
        assert len(stopped) == 1
        assert await add(served, "workflow", "asks", calls=10) == stopped
        assert (await rest(served, stopped[0], *FINISHED)).state == "succeeded"
        assert (await served.ledger.job(own)).state == "parked"


async def test_busy_job_receives_a_top_up(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed("budgets: {max_llm_calls_per_job: 1}")) as served, working(served):
        job_id = await start(served, asks_beside_a_nap, 2, 15.0)
        await served.until(job_id, "budget_stopped")
        assert (await served.ledger.job(job_id)).state == "running"
        assert await add(served, "job", job_id, calls=1) == []
        assert (await rest(served, job_id, *FINISHED)).state == "succeeded"
        assert "parked" not in await served.story(job_id)
        assert "budget_topped_up" in await served.story(job_id)


@pytest.mark.parametrize("ahead_s", [0, -3600, 3600])
async def test_unnotified_job_is_woken_with_any_clock(
    store: Store, store_url: str, provider: SpawnedProvider, ahead_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The top-up is written by another host, which dies before it looks who waits. Its clock may be wrong."""
    monkeypatch.setattr("overnight.gateway.housekeeping.WAKE_EVERY", 1)

    def clock() -> int:
        return store.clock() + ahead_s * 1_000_000

    async with serving(store, provider, routed("budgets: {max_llm_calls_per_job: 1}")) as served, working(served):
        job_id = await start(served, asks, 2)
        await rest(served, job_id)
        wanted = TopUp("default", "job", job_id, "ann", "", calls=1)
        with open_store(store_url, clock=clock) as elsewhere:
            await elsewhere.commit(resolve_top_up(served.gateway.policy, wanted, None, clock()))
        assert (await rest(served, job_id, *FINISHED)).state == "succeeded"
        assert (await served.story(job_id)).count("budget_topped_up") == 1


async def test_top_up_wakes_a_job_once(store: Store, provider: SpawnedProvider) -> None:
    """What was too little is not looked at again."""
    async with serving(store, provider, routed("budgets: {max_llm_calls_per_job: 1}")) as served, working(served):
        job_id = await start(served, asks, 3)
        await rest(served, job_id)
        assert await add(served, "job", job_id, calls=1) == [job_id]
        before = await served.until(job_id, "parked", 2)
        await wake_waiting_jobs(store)
        await wake_waiting_jobs(store)
        assert [event.seq for event in await served.events(job_id)] == [event.seq for event in before]


async def test_invalid_top_up_is_rejected(store: Store, provider: SpawnedProvider) -> None:
    limits = (
        "budgets: {limits: [{scope: tenant, per: day, max_cost_usd: 1}, {scope: tenant, per: month, max_cost_usd: 9}]}"
    )
    async with serving(store, provider, routed(limits)) as served:
        with pytest.raises(BadInput, match="per day and per month: select one"):
            await add(served, "tenant", "default", microusd=1)
        with pytest.raises(BadInput, match="has no limit"):
            await add(served, "agent", "somebody", microusd=1)
        with pytest.raises(BadInput, match="above 0"):
            await add(served, "tenant", "default", "day")
        with pytest.raises(BadInput, match="above 0"):
            await add(served, "tenant", "default", "day", microusd=5, tokens=-1)
        with pytest.raises(BadInput, match="only allowed for the scope job"):
            await add(served, "tenant", "default", "day", wall_clock_s=5)
        with pytest.raises(NotFound):
            await add(served, "job", "job_0000", microusd=1)
        assert await list_budgets(store, served.gateway.policy) == []


async def test_external_call_is_admitted_after_a_top_up(store: Store, provider: SpawnedProvider) -> None:
    limits = "budgets: {limits: [{scope: agent, only: reader, per: month, max_cost_usd: 0}]}"
    async with serving(store, provider, routed(limits)) as served:
        headers = {"x-agent-name": "reader", "x-job-id": "r"}
        refused = await served.ask(headers=headers)
        assert (refused.status_code, refused.headers["x-should-retry"]) == (402, "false")
        assert "max_cost_usd per month" in refused.json()["error"]["message"]
        [stop] = [each.facts for each in await served.events("r") if each.facts.event == "budget_stopped"]
        assert (stop.decision["scope"], stop.decision["name"], stop.decision["per"]) == ("agent", "reader", "month")
        assert await add(served, "agent", "reader", microusd=100_000) == []
        assert (await served.ask(headers=headers)).status_code == 200
        assert (await served.ask(headers={"x-agent-name": "writer"})).status_code == 200


# ── days, months, time ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("per", "days"), [("day", 1), ("month", 1)])
async def test_next_day_or_month_wakes_the_job(store_url: str, provider: SpawnedProvider, per: str, days: int) -> None:
    clock = Clock(EVENING)
    limits = f"budgets: {{time_zone: Europe/Berlin, limits: [{{scope: tenant, per: {per}, max_llm_calls: 2}}]}}"
    with open_store(store_url, clock) as store:
        async with serving(store, provider, routed(limits)) as served, working(served):
            job_id = await start(served, asks, 3)
            job = await rest(served, job_id)
            assert job.wake_at == EVENING + 60_000_000
            clock.now = EVENING + 59_000_000
            await asyncio.sleep(0.2)
            assert (await served.ledger.job(job_id)).state == "parked"
            clock.now = EVENING + 60_000_000
            assert (await rest(served, job_id, *FINISHED)).state == "succeeded"
            assert provider.stats()["paid_calls"] == 3
            [line] = [each for each in await list_budgets(store, served.gateway.policy) if each.scope == "tenant"]
            assert (line.window, line.measures["llm_calls"].spent) == (
                {"day": "2026-04-01", "month": "2026-04"}[per],
                1,
            )


async def test_reservation_is_settled_in_its_day(store_url: str, provider: SpawnedProvider) -> None:
    provider.set_rules("rules: [{answer: ok, fault: {delay_ms: 300}}]")
    clock = Clock(EVENING)
    limits = "budgets: {time_zone: Europe/Berlin, limits: [{scope: tenant, per: day, max_cost_usd: 5}]}"
    with open_store(store_url, clock) as store:
        async with serving(store, provider, routed(limits)) as served:
            asking = asyncio.create_task(served.ask(headers={"x-job-id": "late"}))
            await served.until("late", "model_called")
            [before] = await _of_tenants(served)
            clock.now += 120_000_000
            assert (await asking).status_code == 200
            assert (await served.ask()).status_code == 200
            columns = "scope_id, spent_microusd + bound_microusd, reserved_microusd"
            sql = f"SELECT {columns} FROM budget WHERE scope = 'tenant' ORDER BY scope_id"
            from machine_parts import rows

            yesterday, today = rows(store_url, sql)
            assert (yesterday[0], today[0]) == ("default[2026-03-31]", "default[2026-04-01]")
            assert yesterday[1] > 0 == yesterday[2] == today[2]
            assert before.window == "2026-03-31"


async def _of_tenants(served: Served) -> list[BudgetLine]:
    return [each for each in await list_budgets(served.store, served.gateway.policy) if each.scope == "tenant"]


async def test_job_over_its_time_limit_makes_no_call(store_url: str, provider: SpawnedProvider) -> None:
    clock = Clock(EVENING)
    limits = "budgets: {limits: [{scope: agent, only: 'r*', max_wall_clock_s: 60}]}"
    with open_store(store_url, clock) as store:
        async with serving(store, provider, routed(limits)) as served:
            headers = {"x-agent-name": "reader", "x-job-id": "long"}
            assert (await served.ask(headers=headers)).status_code == 200
            clock.now += 59_000_000
            assert (await served.ask("a", headers=headers)).status_code == 200
            clock.now += 1_000_000
            refused = await served.ask("b", headers=headers)
            assert (refused.status_code, "max_wall_clock_s" in refused.text) == (402, True)
            assert (await served.ask(headers={**headers, "x-job-id": "another"})).status_code == 200
            job = await served.ledger.job("long")
            await add(served, "job", job.job_id, wall_clock_s=60)
            assert (await served.ask("c", headers=headers)).status_code == 200


# ── tool calls ───────────────────────────────────────────────────────────────────────────────────────────────────────

posted: list[str] = []


@overnight.effect
async def post(text: str) -> str:
    posted.append(text)
    return text


@overnight.job
async def posts(count: int) -> int:
    for number in range(count):
        await post(f"{number}")
    return count


@overnight.job
async def posts_by_children(count: int) -> int:
    return sum([await posts(1) for _ in range(count)])


async def test_tool_calls_are_counted_where_they_are_claimed(store: Store, provider: SpawnedProvider) -> None:
    posted.clear()
    limits = "budgets: {limits: [{scope: job, only: 'posts*', max_tool_calls: 2}]}"
    async with serving(store, provider, routed(limits)) as served, working(served):
        job_id = await start(served, posts, 4)
        job = await rest(served, job_id)
        assert [(wait["for"], wait["limit"]) for wait in job.waits] == [("budget", "max_tool_calls")]
        assert posted == ["0", "1"]
        assert "overnight budget top-up job" in await told(served, job_id)
        assert "--tool-calls" in await told(served, job_id)
        assert await add(served, "job", job_id, tool_calls=2) == [job_id]
        assert (await rest(served, job_id, *FINISHED)).result == b"4"
        assert posted == ["0", "1", "2", "3"]
        story = await served.story(job_id)
        assert (story.count("tool_called"), story.count("budget_stopped")) == (4, 1)


async def test_the_tool_calls_of_children_count_for_their_parent(store: Store, provider: SpawnedProvider) -> None:
    posted.clear()
    limits = "budgets: {limits: [{scope: job, only: posts_by_children, max_tool_calls: 3}]}"
    async with serving(store, provider, routed(limits)) as served, working(served):
        job_id = await start(served, posts_by_children, 5)
        await served.until(job_id, "child_started", 4)
        async with asyncio.timeout(20):
            while not any(job.state == "parked" and job.parent_job_id for job in await served.ledger.jobs()):
                await asyncio.sleep(0.01)
        assert len(posted) == 3
        assert len(await add(served, "job", job_id, tool_calls=9)) == 1
        assert (await rest(served, job_id, *FINISHED)).result == b"5"
        [line] = await list_budgets(store, served.gateway.policy, job_id=job_id, everything=True)
        assert line.measures["tool_calls"].spent == 5


async def test_parallel_branches_stay_within_the_tool_limit(store: Store, provider: SpawnedProvider) -> None:
    posted.clear()
    limits = "budgets: {limits: [{scope: tenant, per: day, max_tool_calls: 7}]}"
    async with serving(store, provider, routed(limits)) as served, working(served):
        ids = [await start(served, posts, 4) for _ in range(5)]
        for each in ids:
            await rest(served, each)
        assert len(posted) == 7
        await add(served, "tenant", "default", tool_calls=100)
        for each in ids:
            assert (await rest(served, each, *FINISHED)).state == "succeeded"
        assert len(posted) == 20


def test_external_program_continues_after_a_top_up(store_url: str, tmp_path: Path) -> None:
    posted.clear()
    brain = tmp_path / "brain"
    brain.mkdir()
    (brain / "routing.yaml").write_text("budgets: {limits: [{scope: job, max_tool_calls: 1}]}\n")
    settings = Settings(tmp_path, store_url, brain)

    def program() -> None:
        with overnight.attach("nightly", settings=settings):
            for number in range(2):
                post.run(f"{number}")

    with pytest.raises(overnight.JobParked, match="1 of 1 tool calls"):
        program()
    with open_store(store_url) as store:
        job = asyncio.run(Ledger(store).job("nightly"))
        assert (job.state, job.waits[0]["for"]) == ("parked", "budget")
        top_up = TopUp("default", "job", job.job_id, "ann", "", tool_calls=1)
        assert asyncio.run(top_up_budget(store, top_up))[1] == [job.job_id]
    program()
    assert posted == ["0", "1"]


# ── loops ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@overnight.job
async def polls(count: int) -> str:
    for _ in range(count):
        try:
            await overnight.chat("is it done?")
        except ModelFailed as error:
            return error.error_class
    return "done"


@pytest.mark.parametrize("approved", [True, False])
async def test_repeated_calls_request_a_review(store: Store, provider: SpawnedProvider, approved: bool) -> None:
    async with serving(store, provider, routed("guards: {same_call: 4}")) as served, working(served):
        job_id = await start(served, polls, 7)
        job = await rest(served, job_id)
        [wait] = job.waits
        assert wait["for"] == "approval"
        assert provider.stats()["paid_calls"] == 4
        assert "stopped as a loop: the job repeated the same call 4 times" in await told(served, job_id)
        await Operations(store).decide(
            wait["review_id"], Decision("continue" if approved else "stop", "ann", "look at it")
        )
        job = await rest(served, job_id, *FINISHED)
        # Three more after the approval: the count began again.
        assert (job.result, provider.stats()["paid_calls"]) == ((b'"done"', 7) if approved else (b'"loop_stopped"', 4))
        assert (await served.story(job_id)).count("review_requested") == 1


async def test_external_loop_error_has_instructions(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed("guards: {same_call: 3}")) as served:
        headers = {"x-job-id": "loop"}
        statuses = [(await served.ask(headers=headers)).status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 409, 409]
        refused = await served.ask(headers=headers)
        assert refused.json()["error"]["code"] == "loop_stopped"
        assert refused.headers["x-should-retry"] == "false"
        assert "overnight reviews approve rev_" in refused.json()["error"]["message"]
        story = await served.story("loop")
        assert (story.count("loop_stopped"), story.count("review_requested")) == (1, 1)
        review_id = refused.json()["error"]["message"].split("approve ")[1].split("`")[0]
        assert (await served.ask("something else", headers=headers)).status_code == 200, "only the loop is stopped"
        await Operations(store).decide(review_id, Decision("approve", "ann"))
        assert [(await served.ask(headers=headers)).status_code for _ in range(4)] == [200, 200, 200, 409]


async def test_loop_over_two_processes_is_detected(store_url: str, provider: SpawnedProvider) -> None:
    with open_store(store_url) as one, open_store(store_url) as other:
        routing = routed("guards: {same_call: 6}")
        async with serving(one, provider, routing) as first, serving(other, provider, routing) as second:
            served = [first, second]
            statuses = [(await served[n % 2].ask(headers={"x-job-id": "both"})).status_code for n in range(8)]
    assert statuses == [200] * 6 + [409] * 2


async def test_agent_without_progress_is_stopped(store: Store, provider: SpawnedProvider) -> None:
    """The conversation grows with every turn, so that no two requests are alike; what is said does not."""
    provider.set_rules("rules: [{answer: {tool_calls: [{name: look, arguments: {at: here}}]}}]")
    async with serving(store, provider, routed("guards: {same_call: 0, no_progress_turns: 10}")) as served:

        async def agent(job: str, *, new: bool) -> list[int]:
            messages: list[dict[str, Any]] = [{"role": "user", "content": "find it"}]
            statuses: list[int] = []
            for turn in range(24):
                answer = await served.http.post(
                    "/v1/chat/completions", json={"model": "auto", "messages": messages}, headers={"x-job-id": job}
                )
                statuses.append(answer.status_code)
                if answer.status_code != 200:
                    break
                message = answer.json()["choices"][0]["message"]
                (call,) = message["tool_calls"]
                found = f"nothing{turn:>3}" if new else "nothing..."
                messages += [message, {"role": "tool", "tool_call_id": call["id"], "content": found}]
            return statuses

        assert await agent("honest", new=True) == [200] * 24
        circling = await agent("circling", new=False)
        # The first look, the first "nothing", and ten turns that only repeat them.
        assert circling == [200] * 12 + [409]
        assert "stopped as a loop: the last 10 turns" in await told(
            served, (await served.ledger.job("circling")).job_id
        )


async def test_a_guard_of_zero_is_off(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed("guards: {same_call: 0, no_progress_turns: 0}")) as served:
        assert {(await served.ask(headers={"x-job-id": "poll"})).status_code for _ in range(60)} == {200}


async def test_unattributed_calls_are_no_loop(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, routed("guards: {same_call: 2}")) as served:
        assert {(await served.ask()).status_code for _ in range(6)} == {200}


# ── alarms ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_expensive_job_raises_one_cost_alarm(
    store: Store, provider: SpawnedProvider, caplog: pytest.LogCaptureFixture
) -> None:
    routing = routed(
        "prices: {gpt-5.4-mini: {input_usd_per_mtok: 0, output_usd_per_mtok: 100}}\n"
        "alarms: {cost_factor: 3, least_jobs: 4}\nguards: {same_call: 0, no_progress_turns: 0}"
    )
    async with serving(store, provider, routing) as served, working(served):
        usual = [await start(served, asks, 2) for _ in range(4)]
        for each in usual:
            await rest(served, each, *FINISHED)
        await served.gateway.cost_alerts.poll()
        caplog.set_level(logging.WARNING, "overnight.gateway")
        dear = await start(served, asks, 12)
        cheap = await start(served, asks, 3)
        for each in (dear, cheap):
            assert (await rest(served, each, *FINISHED)).state == "succeeded"
        story = await served.story(dear)
        assert story.count("cost_alarm") == 1
        assert "cost_alarm" not in await served.story(cheap)
        [alarm] = [each.facts for each in await served.events(dear) if each.facts.event == "cost_alarm"]
        assert alarm.detail["jobs"] == 4
        assert alarm.detail["spent_microusd"] > 3 * alarm.detail["usual_microusd"]
        # At the first call that passed it: not before, and not at the end.
        assert 6 <= story[: story.index("cost_alarm")].count("model_called") < 12
        assert sum("costs" in record.message and dear in record.message for record in caplog.records) == 1
        assert "cost alert: it has cost" in await told(served, dear)


async def test_cost_alarm_of_external_jobs_uses_their_task(store: Store, provider: SpawnedProvider) -> None:
    routing = routed("alarms: {cost_factor: 2, least_jobs: 3}\nguards: {same_call: 0, no_progress_turns: 0}")
    async with serving(store, provider, routing) as served:
        for number in range(3):
            await served.ask(headers={"x-job-id": f"usual-{number}", "x-task": "summary"})
            await served.http.post(f"/api/v1/jobs/usual-{number}/complete")
        await served.gateway.cost_alerts.poll()
        for number in range(5):
            await served.ask(f"{number}", headers={"x-job-id": "dear", "x-task": "summary"})
            await served.ask(f"{number}", headers={"x-job-id": "unlike", "x-task": "essay"})
        assert (await served.story("dear")).count("cost_alarm") == 1
        assert "cost_alarm" not in await served.story("unlike")


async def test_agent_limit_does_not_apply_without_an_agent(store: Store, provider: SpawnedProvider) -> None:
    limits = "budgets: {limits: [{scope: agent, max_llm_calls: 1}]}"
    async with serving(store, provider, routed(limits)) as served:
        assert [(await served.ask()).status_code for _ in range(2)] == [200, 200]
        answers = [await served.ask(headers={"x-agent-name": "a"}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 402]
