"""External jobs without a call: shown as idle, then ended as failed by any gateway, once; a further call reopens them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from command_line import Shell
from overnight.domain import Event
from overnight.keys import Keys, NewKey
from overnight.ledger import JOB, lifecycle, locked_job
from overnight.store import Store, Unit, open_store
from overnight.store.store import wall_clock_us
from overnight.story import build_timeline, load_job_tree
from overnight.testing import SpawnedProvider
from serving import ROUTING, Served, serving

HOUR_US = 3_600_000_000


class Clock:
    """A wall clock that tests move ahead."""

    def __init__(self, ahead_us: int = 0) -> None:
        self.ahead_us = ahead_us

    def __call__(self) -> int:
        return wall_clock_us() + self.ahead_us


@asynccontextmanager
async def gateways(
    store_url: str, provider: SpawnedProvider, clock: Clock, count: int = 1, routing: str = ROUTING
) -> AsyncIterator[list[Served]]:
    """Gateways with a store of their own each, without a worker. Each looks for abandoned jobs when it has started."""
    async with AsyncExitStack() as stack:
        found: list[Served] = []
        for _ in range(count):
            store = stack.enter_context(open_store(store_url, clock))
            found.append(await stack.enter_async_context(serving(store, provider, routing)))
        yield found


async def ends(served: Served, job: str) -> list[Any]:
    return [each.facts for each in await served.events(job) if each.facts.event in {"completed", "failed"}]


async def public(served: Served, job: str) -> dict[str, Any]:
    return (await served.http.get(f"/api/v1/jobs/{job}")).json()


async def test_gateways_without_a_worker_end_an_abandoned_job_once(store_url: str, provider: SpawnedProvider) -> None:
    clock = Clock()
    async with gateways(store_url, provider, clock) as (served,):
        assert (await served.ask(headers={"x-job-id": "j"})).status_code == 200
    clock.ahead_us += 23 * HOUR_US
    async with gateways(store_url, provider, clock) as (served,):
        await asyncio.sleep(1.3)
        assert (await public(served, "j"))["state"] == "running"
    clock.ahead_us += 2 * HOUR_US
    async with gateways(store_url, provider, clock, count=3) as each:
        await each[0].until("j", "failed")
        await asyncio.sleep(0.4)
        (end,) = await ends(each[0], "j")
        job = await public(each[0], "j")
        assert (job["state"], job["error"]["class"], job["idle"]) == ("failed", "abandoned", None)
        assert (end.detail["idle"], end.detail["last_outcome"]["event"]) == (True, "model_succeeded")
        assert (await each[0].ask("again", headers={"x-job-id": "j"})).status_code == 200
        job = await public(each[0], "j")
        assert (job["state"], job["error"], job["finished_at"]) == ("running", None, None)


async def test_abandoned_job_fails_with_the_class_of_its_last_failure(
    store_url: str, provider: SpawnedProvider
) -> None:
    clock = Clock()
    routing = ROUTING + "limits: {external_abandoned_hours: 2}\n"
    async with gateways(store_url, provider, clock, routing=routing) as (served,):
        assert (await served.ask(headers={"x-job-id": "j"})).status_code == 200
    stop = "budgets: {max_llm_calls_per_job: 1}\n"
    async with gateways(store_url, provider, clock, routing=routing + stop) as (served,):
        assert (await served.ask("two", headers={"x-job-id": "j"})).status_code == 402
    clock.ahead_us += 3 * HOUR_US
    async with gateways(store_url, provider, clock, routing=routing) as (served,):
        await served.until("j", "failed")
        job = await public(served, "j")
        assert (job["state"], job["error"]["class"]) == ("failed", "budget_stopped")


async def test_api_and_commands_show_an_idle_job_alike(
    store_url: str, provider: SpawnedProvider, tmp_path: Path
) -> None:
    clock = Clock(-2 * HOUR_US)
    async with gateways(store_url, provider, clock) as (served,):
        job_id = (await served.ask(headers={"x-job-id": "j"})).headers["x-job-id"]
        assert (await public(served, "j"))["idle"] is None
        clock.ahead_us = 0
        job = await public(served, "j")
        assert (job["state"], job["idle"]["last_outcome"]["event"]) == ("running", "model_succeeded")
        assert job["idle"]["since"] == job["idle"]["last_outcome"]["at"]
        listed = (await served.http.get("/api/v1/jobs")).json()["jobs"][0]
        assert listed["idle"] == job["idle"]
    run = Shell(tmp_path, provider.base_url, store_url)
    assert run.json("jobs")[0]["idle"] == job["idle"]
    explained = run.json("explain", job_id)
    assert explained["job"]["idle"] == job["idle"]
    assert explained["next"][0]["commands"] == [f"overnight cancel {job_id}"]
    for command in (("jobs",), ("explain", job_id)):
        shown = " ".join(run(*command, COLUMNS="400").split())
        assert "idle for 2 h" in shown
        assert "last outcome: model_succeeded" in shown


class OldIdleEnd:
    """The end of an idle job as earlier versions wrote it."""

    def __init__(self, job_id: str, detail: dict[str, Any] | None) -> None:
        self.job_id, self.detail = job_id, detail

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> None:
        event = Event("completed", decision={"why": "no call for 30 minutes"}, detail=self.detail)
        lifecycle.finish(unit, locked_job(unit, self.job_id), "succeeded", event)


@pytest.mark.parametrize("detail", [None, {"idle": True}])
async def test_call_key_reopens_a_job_that_an_earlier_version_closed_as_idle(
    store: Store, provider: SpawnedProvider, detail: dict[str, Any] | None
) -> None:
    async with serving(store, provider, hosts=None) as served:
        _, secret = await Keys(store).create("default", NewKey(name="caller", scopes=("call",)), "ann")
        headers = {"authorization": f"Bearer {secret}", "x-job-id": "j"}
        job = await served.ask(headers=headers)
        await store.commit(OldIdleEnd(job.headers["x-job-id"], detail))
        story = build_timeline(await load_job_tree(served.ledger, await served.ledger.job("j")), store.clock())
        assert (story.lines[-1].text, story.lines[-1].why) == ("succeeded", "no call for 30 minutes")
        assert (await served.ask("again", headers=headers)).status_code == 200


async def test_parent_learns_that_its_child_was_abandoned(store_url: str, provider: SpawnedProvider) -> None:
    clock = Clock()
    async with gateways(store_url, provider, clock) as (served,):
        assert (await served.ask(headers={"x-job-id": "parent"})).status_code == 200
        assert (await served.ask(headers={"x-job-id": "child", "x-parent-job-id": "parent"})).status_code == 200
    clock.ahead_us += 20 * HOUR_US
    async with gateways(store_url, provider, clock) as (served,):
        assert (await served.ask(headers={"x-job-id": "parent"})).status_code == 200
    clock.ahead_us += 5 * HOUR_US
    async with gateways(store_url, provider, clock, count=2) as (served, _):
        events = await served.until("parent", "child_finished")
        (end,) = [each.facts for each in events if each.facts.event == "child_finished"]
        assert ((end.detail or {})["state"], end.error.error_class) == ("failed", "abandoned")
        assert (await public(served, "parent"))["state"] == "running"
