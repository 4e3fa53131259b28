"""Verdicts on effects of unknown outcome persist: rejections, and early negative status checks."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

import overnight
from job_runs import overnight_decision, rest, story, working
from overnight.jobs import JobParked, Operations
from overnight.reviews import list_reviews
from overnight.settings import Settings
from overnight.store import Store

done: list[str] = []
world: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def clean() -> None:
    done.clear()
    world.clear()


@overnight.effect
async def send(to: str) -> str:
    done.append(to)
    raise ConnectionError("cut after DATA")


@overnight.step
async def long_step() -> None:
    while "go" not in world:
        await asyncio.sleep(0.01)


@overnight.job
async def sends_while_busy() -> str:
    try:
        await asyncio.gather(send("ann"), long_step())
    except overnight.EffectFailed as failed:
        return failed.error_class
    return "sent"


async def test_rejection_reaches_a_running_job(store: Store) -> None:
    operations = Operations(store)
    job = await operations.create(sends_while_busy)
    async with working(store):
        async with asyncio.timeout(10):
            while "review_requested" not in await story(store, job.job_id):
                await asyncio.sleep(0.01)
        review = (await list_reviews(store))[0]
        await operations.decide(review.review_id, overnight_decision(answer="reject"))
        world["go"] = True
        job = await rest(store, job.job_id)
    assert (job.state, job.result) == ("succeeded", b'"rejected"')
    assert done == ["ann"]


@overnight.job
async def sends_once() -> str:
    return await send("bob")


async def test_retry_of_a_job_repeats_a_rejected_effect(store: Store) -> None:
    operations = Operations(store)
    job = await operations.create(sends_once)
    async with working(store):
        job = await rest(store, job.job_id)
        await operations.decide(job.waits[0]["review_id"], overnight_decision(answer="reject"))
        job = await rest(store, job.job_id, "failed")
        assert done == ["bob"]
        await operations.resume(job.job_id, "ann")
        await rest(store, job.job_id, "parked")
    assert done == ["bob", "bob"]


async def test_rejection_holds_for_a_restarted_external_program(store: Store, store_url: str) -> None:
    settings = Settings(Path(), store_url, Path("no-brain"))
    with pytest.raises(JobParked), overnight.attach("nightly", settings=settings):
        await send("cem")
    review = (await list_reviews(store))[0]
    await Operations(store).decide(review.review_id, overnight_decision(answer="reject", note="wrong customer"))
    for _ in range(2):
        with (
            overnight.attach("nightly", settings=settings),
            pytest.raises(overnight.EffectFailed, match="wrong customer"),
        ):
            await send("cem")
    assert done == ["cem"]


@overnight.effect(timeout_s=0.5, settle_after_s=0.4)
async def slow_mail(idempotency_key: str) -> str:
    """The mail is handed over late, answered never, and in the mailbox only a moment later."""
    world["handed_over_at"] = time.monotonic() + 0.4
    done.append(idempotency_key)
    await asyncio.sleep(60)
    return "sent"


@slow_mail.status_check
async def look(idempotency_key: str) -> Any:
    arrived = time.monotonic() > world["handed_over_at"] + 0.3
    return overnight.Done("m-1") if arrived else overnight.NOT_DONE


@overnight.job
async def mails() -> Any:
    return await slow_mail()


async def test_settle_time_starts_when_the_outcome_became_unknown(store: Store) -> None:
    """Counted from the claim, a call that was made late would have no time to arrive."""
    job = await Operations(store).create(mails)
    async with working(store):
        job = await rest(store, job.job_id)
    assert job.state == "succeeded"
    assert len(done) == 1
