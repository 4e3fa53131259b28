"""A recovered job takes the same turns as before: what fired, what came in time, what came too late."""

import asyncio
from pathlib import Path
from typing import Any

import overnight
from overnight.app import open_app
from overnight.jobs import JobFunction, Operations
from overnight.settings import Settings
from overnight.store import Store
from overnight.testing import spawn_scripted_provider
from test_jobs import overnight_decision, rest, working


async def park_and_recover(store: Store, function: JobFunction[..., Any], *args: Any) -> Any:
    """Run until the job parks on its approval, then go on in another worker; the finished job."""
    operations = Operations(store)
    job = await operations.create(function, args)
    async with working(store):
        parked = await rest(store, job.job_id)
    assert [wait["for"] for wait in parked.waits] == ["approval"]
    async with working(store):
        await operations.decide(parked.waits[0]["review_id"], overnight_decision(approved=True))
        return await rest(store, job.job_id, "succeeded", "failed", "parked")


@overnight.effect
async def slow_post(pause_s: float, idempotency_key: str) -> str:
    await asyncio.sleep(pause_s)
    return "posted"


@overnight.job
async def too_late() -> str:
    try:
        async with overnight.timeout(0.05):
            await slow_post(0.2)
        said = "in time"
    except TimeoutError:
        said = "too late"
    await overnight.approval(f"it came {said}")
    return said


async def test_an_answer_that_came_after_the_timeout_stays_too_late(store: Store) -> None:
    job = await park_and_recover(store, too_late)
    assert (job.state, job.result, job.waits) == ("succeeded", b'"too late"', [])


@overnight.job
async def races(count: int) -> list[str]:
    said: list[str] = []
    for number in range(count):
        try:
            async with overnight.timeout(0.02):
                await slow_post(0.0185 + 0.00005 * (number % 20))
            said.append("in time")
        except TimeoutError:
            said.append("too late")
    await overnight.approval("".join(each[0] for each in said))
    return said


async def test_a_race_with_a_timeout_has_one_winner(store: Store) -> None:
    job = await park_and_recover(store, races, 60)
    assert (job.state, job.waits) == ("succeeded", [])


@overnight.job
async def long_answers(count: int) -> list[int]:
    texts = [(await overnight.chat(f"at length, {number}")).text for number in range(count)]
    await overnight.approval("read it?")
    return [len(text) for text in texts]


async def test_answers_too_long_to_stand_in_the_log_are_replayed(store_url: str, tmp_path: Path) -> None:
    rules = "rules: [{answer: {text: 'lorem ipsum', repeat_words: 20000}}]"
    (tmp_path / "brain").mkdir()
    (tmp_path / "brain" / "routing.yaml").write_text("limits: {default_max_output_tokens: 50000}")
    settings = Settings(tmp_path, store_url, tmp_path / "brain")
    with spawn_scripted_provider(rules) as provider:
        async with open_app(settings, offline_base_url=provider.base_url) as app:
            operations = Operations(app.store)
            job = await operations.create(long_answers, (4,))
            async with app.working():
                parked = await rest(app.store, job.job_id)
            await operations.decide(parked.waits[0]["review_id"], overnight_decision(approved=True))
            async with app.working():
                job = await rest(app.store, job.job_id)
        assert (job.state, job.result, job.waits) == ("succeeded", b"[119999,119999,119999,119999]", [])
        assert provider.stats()["paid_calls"] == 4
