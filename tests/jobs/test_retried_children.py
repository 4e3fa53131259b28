"""Child jobs when their failed parent is retried."""

import asyncio

import pytest

import overnight
from failing_jobs import again, broken, calls, clear, gated, gates, run, send, work
from job_runs import rest, story, working
from overnight.domain import FINISHED
from overnight.jobs import Operations
from overnight.ledger import JobRow, Ledger
from overnight.store import Store


@pytest.fixture(autouse=True)
def cleared() -> None:
    clear()


@overnight.job
async def child(name: str) -> str:
    await send(name)
    if name in gates:
        await asyncio.wait_for(gated(name), 10)
    return await work(name)


@overnight.job
async def grandparent(name: str) -> str:
    return await parent(name)


@overnight.job
async def parent(name: str) -> str:
    failed, got = await asyncio.gather(work("first"), child(name), return_exceptions=True)
    for each in (failed, got):
        if isinstance(each, BaseException):
            raise each
    return str(got)


async def family(store: Store, job: JobRow) -> dict[str, JobRow]:
    """All jobs below this one by name; each name once."""
    found: dict[str, JobRow] = {}
    for each in await Ledger(store).children(job.job_id):
        assert each.name not in found, f"a second {each.name} was started"
        found |= {each.name: each} | await family(store, each)
    return found


async def test_failed_children_keep_their_results(store: Store) -> None:
    broken.add("x")
    job = await run(store, grandparent, "x")
    assert job.state == "failed"
    assert {each.state for each in (await family(store, job)).values()} == {"failed"}
    job = await again(store, job, "x")
    assert (job.state, job.result) == ("succeeded", b'"x"')
    assert {name: (each.state, each.attempt) for name, each in (await family(store, job)).items()} == {
        "parent": ("succeeded", 2),
        "child": ("succeeded", 2),
    }
    assert (calls["send x"], calls["x"]) == (1, 2)


@overnight.job
async def impatient(name: str) -> str:
    """It does not wait for its child when something else fails."""
    _, got = await asyncio.gather(work("first"), child(name))
    return got


@pytest.mark.parametrize("ends", ["before the retry", "after the retry", "badly before the retry"])
async def test_child_outliving_its_parent_answers_the_retry(store: Store, ends: str) -> None:
    broken.add("first")
    gates["x"] = asyncio.Event()
    operations = Operations(store)
    async with working(store):
        job = await operations.create(impatient, ("x",))
        job = await rest(store, job.job_id, "failed")
        if ends == "badly before the retry":
            broken.add("x")
        if ends != "after the retry":
            gates["x"].set()
            below = (await family(store, job))["child"]
            await rest(store, below.job_id, *FINISHED)
        broken.clear()
        await operations.resume(job.job_id, "ann")
        if ends == "after the retry":
            job = await rest(store, job.job_id, "parked")
            gates["x"].set()
        job = await rest(store, job.job_id, *FINISHED)
    assert (job.state, job.result) == ("succeeded", b'"x"')
    assert (await family(store, job))["child"].state == "succeeded"
    assert calls["send x"] == 1
    assert (await story(store, job.job_id)).count("child_finished") == 1


async def test_manually_retried_child_is_awaited(store: Store) -> None:
    broken.add("x")
    job = await run(store, parent, "x")
    below = (await family(store, job))["child"]
    await again(store, below, "x")
    job = await again(store, job)
    assert (job.state, job.result) == ("succeeded", b'"x"')
    assert (await family(store, job))["child"].attempt == 2
    assert (calls["send x"], calls["x"]) == (1, 2)


async def test_cancelled_child_is_replaced(store: Store) -> None:
    gates["x"] = asyncio.Event()
    operations = Operations(store)
    async with working(store):
        job = await operations.create(parent, ("x",))
        await rest(store, job.job_id, "parked")
        first = (await family(store, job))["child"]
        await operations.cancel(first.job_id, "ann")
        job = await rest(store, job.job_id, *FINISHED)
        assert job.state == "failed"
        gates["x"].set()
        await operations.resume(job.job_id, "ann")
        job = await rest(store, job.job_id, *FINISHED)
    assert (job.state, job.result) == ("succeeded", b'"x"')
    states = {each.job_id: each.state for each in await Ledger(store).children(job.job_id)}
    assert states.pop(first.job_id) == "cancelled"
    assert list(states.values()) == ["succeeded"]
