"""Retries of failed jobs: the answers they keep, and the boundaries they re-run."""

import asyncio
from collections import Counter
from typing import Any

import pytest

import overnight
from failing_jobs import again, broken, calls, clear, gated, gates, order, run, send, work
from job_runs import overnight_decision, rest, story, working
from overnight.domain import FINISHED
from overnight.jobs import Decision, Operations
from overnight.ledger import Ledger
from overnight.reviews import list_reviews
from overnight.store import Store


@pytest.fixture(autouse=True)
def cleared() -> None:
    clear()


# ── which failures are asked afresh ──────────────────────────────────────────────────────────────────────────────────


@overnight.job
async def mails(names: list[str]) -> list[str]:
    """What could be prepared is sent: who sends what depends on what failed."""
    found = await asyncio.gather(*(work(name) for name in names), return_exceptions=True)
    return list(await asyncio.gather(*(send(name) for name in found if isinstance(name, str))))


async def test_handled_failure_is_kept(store: Store) -> None:
    """It went on by branches; were the failure asked afresh, every later mail would go out in the place of another."""
    broken.update(["b", "send d"])
    job = await run(store, mails, ["a", "b", "c", "d", "e"])
    assert job.state == "failed"
    job = await again(store, job, "b", "send d")
    assert job.result == b'["sent a","sent c","sent d","sent e"]'
    assert calls["b"] == 1
    assert {calls[f"send {name}"] for name in "acde"} == {1}


@overnight.job
async def workers(names: list[str]) -> list[str]:
    """Two workers take the next name each; one that fails leaves the others their share."""
    line, sent = list(names), list[str]()

    async def takes() -> None:
        while line:
            sent.append(await send(await work(line.pop(0))))

    for error in await asyncio.gather(takes(), takes(), return_exceptions=True):
        if error is not None:
            raise error
    return sorted(sent)


@pytest.mark.parametrize("lost", ["a", "b", "c", "f"])
async def test_parallel_branches_keep_their_results(store: Store, lost: str) -> None:
    broken.add(lost)
    job = await run(store, workers, list("abcdef"))
    assert job.state == "failed"
    job = await again(store, job, lost)
    assert job.result == b'["sent a","sent b","sent c","sent d","sent e","sent f"]'
    assert {calls[f"send {name}"] for name in "abcdef"} == {1}
    assert {calls[name] for name in "abcdef"} == {1, 2}


# ── when the code comes elsewhere ────────────────────────────────────────────────────────────────────────────────────


@overnight.job
async def one_after_the_other(names: list[str]) -> list[str]:
    """Nobody begins before the last one has ended, be it well or badly; what each does depends on how the others ended."""
    room, log = asyncio.Semaphore(1), list[str]()

    async def alone(name: str) -> str:
        async with room:
            await work(name)
            log.append(name)
            await work("after " + "-".join(log))
            return await send(name)

    results = await asyncio.gather(*(alone(name) for name in names), return_exceptions=True)
    if errors := [each for each in results if isinstance(each, BaseException)]:
        raise errors[0]
    return [str(each) for each in results]


async def test_changed_requests_re_run_and_effects_are_kept(store: Store) -> None:
    broken.add("a")
    job = await run(store, one_after_the_other, ["a", "b", "c"])
    assert job.state == "failed"
    assert (calls["after b"], calls["after b-c"]) == (1, 1)
    job = await again(store, job, "a")
    assert (job.state, job.result) == ("succeeded", b'["sent a","sent b","sent c"]')
    assert [calls[name] for name in ("b", "c", "after a", "after a-b", "after a-b-c")] == [1, 1, 1, 1, 1]
    assert {calls[f"send {name}"] for name in "abc"} == {1}
    kept = [event.facts for event in await Ledger(store).events(job.job_id) if event.facts.event == "boundary_kept"]
    assert Counter((facts.kind, facts.name) for facts in kept) == {("step", "work"): 2, ("effect", "send"): 2}


@overnight.job
async def may_detour() -> str:
    """An effect that stands one boundary later when it is come to by the way around."""
    if "detour" in broken:
        await work("on the way")
    sent = await send("letter")
    await work("end")
    return sent


async def test_effect_at_another_position_is_found(store: Store) -> None:
    """The code was changed before the retry: the history diverges up to the failure, so this needs a failure before it."""
    broken.update(["first", "detour"])
    job = await run(store, detours)
    assert job.state == "failed"
    job = await again(store, job, "first", "detour")
    assert (job.state, job.result) == ("succeeded", b'"sent letter"')
    assert calls["send letter"] == 1
    kept = next(each for each in await Ledger(store).events(job.job_id) if each.facts.event == "boundary_kept")
    assert (kept.path, kept.ordinal) == ("/1", 0)
    assert (kept.facts.detail or {})["was"] == {"path": "/1", "ordinal": 1}


@overnight.job
async def detours() -> str:
    _, sent = await asyncio.gather(work("first"), may_detour.function(), return_exceptions=True)
    if isinstance(_, BaseException):
        raise _
    return str(sent)


@overnight.job
async def writes(draft: str) -> str:
    async def letter() -> str:
        return await send("changed" if "changed" in broken else draft)

    failed, sent = await asyncio.gather(work("first"), letter(), return_exceptions=True)
    if isinstance(failed, BaseException):
        raise failed
    return str(sent)


async def test_effect_with_changed_arguments_parks_the_job(store: Store) -> None:
    broken.add("first")
    job = await run(store, writes, "draft")
    assert (job.state, calls["send draft"]) == ("failed", 1)
    broken.add("changed")
    job = await again(store, job, "first")
    assert (job.state, [wait["for"] for wait in job.waits]) == ("parked", ["divergence"])
    assert "other arguments" in job.waits[0]["why"]
    assert calls["send changed"] == 0
    job = await again(store, job, "changed")
    assert (job.state, job.result) == ("succeeded", b'"sent draft"')
    assert calls["send draft"] == 1


# ── questions and time limits ────────────────────────────────────────────────────────────────────────────────────────


@overnight.job
async def asks() -> list[Any]:
    return list(await asyncio.gather(work("first"), ask()))


async def ask() -> bool:
    return (await overnight.approval("go on?")).approved


@pytest.mark.parametrize("when", ["before", "after"])
async def test_open_review_is_kept(store: Store, when: str) -> None:
    """Be it decided before the retry or after."""
    broken.add("first")
    job = await run(store, asks)
    assert job.state == "failed"
    (review,) = await list_reviews(store)
    if when == "before":
        await Operations(store).decide(review.review_id, overnight_decision(answer="approve"))
    job = await again(store, job, "first")
    if when == "after":
        assert [wait["review_id"] for wait in job.waits] == [review.review_id]
        await Operations(store).decide(review.review_id, overnight_decision(answer="approve"))
        async with working(store):
            job = await rest(store, job.job_id, *FINISHED)
    assert (job.state, job.result) == ("succeeded", b'["first",true]')
    assert (await story(store, job.job_id)).count("review_requested") == 1


@overnight.step
async def slow_work(name: str) -> str:
    await asyncio.sleep(0.05)
    return await work(name)


@overnight.job
async def limited() -> str:
    async with overnight.timeout(0.3):
        return await slow_work("first")


async def test_time_limit_restarts(store: Store) -> None:
    broken.add("first")
    job = await run(store, limited)
    assert job.state == "failed"
    await asyncio.sleep(0.35)
    job = await again(store, job, "first")
    assert (job.state, job.result) == ("succeeded", b'"first"')


# ── the retry of a step ──────────────────────────────────────────────────────────────────────────────────────────────


@overnight.step(retry=overnight.Retry(attempts=2, backoff_s=0.001))
async def in_parallel() -> list[str]:
    async def slow() -> str:
        try:
            await gated("slow")
        finally:
            order.append("stopped")
        return await send("slow")

    async def quick() -> str:
        order.append("begun")
        if order.count("begun") == 1:
            raise ValueError("at first")
        gates["slow"].set()
        return "quick"

    return list(await asyncio.gather(slow(), quick()))


@overnight.job
async def parallel() -> list[str]:
    return await in_parallel()


async def test_branches_of_a_failed_step_stop_before_its_retry(store: Store) -> None:
    gates["slow"] = asyncio.Event()
    job = await run(store, parallel)
    assert (job.state, job.result) == ("succeeded", b'["sent slow","quick"]')
    assert order == ["begun", "stopped", "begun", "stopped"]
    answers = [event for event in await Ledger(store).events(job.job_id) if event.facts.event == "tool_succeeded"]
    assert len(answers) == calls["send slow"] == 1


# ── news that come while the job runs ────────────────────────────────────────────────────────────────────────────────


@overnight.effect
async def blind(idempotency_key: str) -> str:
    raise ConnectionError("cut off")


@overnight.step
async def told(said: list[str]) -> list[str]:
    return said


@overnight.job
async def races_a_decision() -> list[str]:
    said: list[str] = []

    async def pays() -> None:
        said.append(await blind())

    async def works() -> None:
        await gated("work")
        said.append("worked")

    await asyncio.gather(pays(), works())
    await told(list(said))
    await gated("end")
    return said


async def test_decided_effect_is_delivered_in_order(store: Store) -> None:
    """The decision is recorded before the step's commit; so it comes first, now and in every replay."""
    gates.update(work=asyncio.Event(), end=asyncio.Event())
    operations, ledger = Operations(store), Ledger(store)
    async with working(store):
        job = await operations.create(races_a_decision)
        async with asyncio.timeout(10):
            while not (reviews := await list_reviews(store)) or "step_started" not in await story(store, job.job_id):
                await asyncio.sleep(0.01)
        await operations.decide(reviews[0].review_id, Decision("done", "ann", result=b'"paid"'))
        gates["work"].set()
        async with asyncio.timeout(10):
            while (await story(store, job.job_id)).count("step_committed") < 2:
                await asyncio.sleep(0.01)
    gates["end"].set()
    async with working(store):
        job = await rest(store, job.job_id, *FINISHED, "parked")
    assert (job.state, job.result) == ("succeeded", b'["paid","worked"]')
    events = [(event.facts.event, event.path) for event in await ledger.events(job.job_id)]
    assert events.count(("tool_succeeded", "/0")) == 1
