"""Effects: executed once, never blindly repeated, decided by people if the outcome is unknown."""

import asyncio
from typing import Any

import pytest

import overnight
from job_runs import rest, run, story, working
from overnight.domain import BadInput
from overnight.effects import effect_key
from overnight.jobs import Decision, Operations
from overnight.ledger import Ledger
from overnight.store import Store

sent: list[tuple[str, str]] = []
mood = {"value": "fine"}


@pytest.fixture(autouse=True)
def clean() -> None:
    sent.clear()
    mood.clear()
    mood["value"] = "fine"


class Refused(Exception):
    pass


@overnight.effect(not_done=(Refused,), timeout_s=0.2)
async def send(to: str, body: str, idempotency_key: str) -> str:
    if mood["value"] == "refuses":
        raise Refused("mailbox full")
    sent.append((to, idempotency_key))
    if mood["value"] == "breaks":
        raise ConnectionError("cut after DATA")
    if mood["value"] == "hangs":
        await asyncio.sleep(60)
    return f"sent {body} to {to}"


@overnight.effect(timeout_s=0.2)
def post(text: str, idempotency_key: str) -> str:
    """A sync effect with a status check."""
    if mood["value"] == "breaks before":
        mood["value"] = "fine"
        raise ConnectionError("cut before the server had it")
    sent.append((text, idempotency_key))
    if mood["value"] == "breaks after":
        raise ConnectionError("cut after the server had it")
    return "posted"


@post.status_check
def find_post(idempotency_key: str, text: str) -> Any:
    if mood.get("check") == "blind":
        return overnight.CANNOT_TELL
    return overnight.Done("post-1", "found") if (text, idempotency_key) in sent else overnight.NOT_DONE


@overnight.job
async def sends(names: list[str]) -> list[str]:
    return list(await asyncio.gather(*(send(name, "hello") for name in names)))


async def test_effects_run_once_with_distinct_keys(store: Store) -> None:
    job = await run(store, sends, ["a", "b", "a"])
    assert job.state == "succeeded"
    assert [to for to, _ in sorted(sent)] == ["a", "a", "b"]
    assert len({key for _, key in sent}) == 3
    events = await story(store, job.job_id)
    assert events.count("tool_called") == events.count("tool_succeeded") == 3


async def test_known_failure_fails_and_a_retry_succeeds(store: Store) -> None:
    mood["value"] = "refuses"
    job = await run(store, sends, ["a"])
    assert (job.state, sent) == ("failed", [])
    mood["value"] = "fine"
    await Operations(store).resume(job.job_id, "ann")
    async with working(store):
        job = await rest(store, job.job_id)
    assert job.state == "succeeded"
    assert len(sent) == 1


@pytest.mark.parametrize("trouble", ["breaks", "hangs"])
async def test_unknown_outcome_without_status_check_parks(store: Store, trouble: str) -> None:
    operations = Operations(store)
    mood["value"] = trouble
    job = await run(store, sends, ["a"])
    assert job.state == "parked"
    assert job.waits[0]["for"] == "quarantine"
    review_id = job.waits[0]["review_id"]
    mood["value"] = "fine"
    await operations.resume(job.job_id, "ann")  # resuming does not answer the question
    async with working(store):
        job = await rest(store, job.job_id)
        assert (job.state, job.waits[0]["review_id"]) == ("parked", review_id)
        with pytest.raises(BadInput, match="`done`"):
            await operations.decide(review_id, Decision("approve", "ann"))
        await operations.decide(review_id, Decision("done", "ann", provider_id="m-1", result=b'"as ann saw"'))
        job = await rest(store, job.job_id, "succeeded", "failed")
    assert job.result == b'["as ann saw"]'
    assert len(sent) == 1


async def test_second_unknown_outcome_requests_a_second_review(store: Store) -> None:
    operations = Operations(store)
    mood["value"] = "breaks"
    job = await run(store, sends, ["a"])
    first = job.waits[0]["review_id"]
    await operations.decide(first, Decision("not_done", "ann"))
    async with working(store):
        job = await rest(store, job.job_id)
    assert job.state == "parked"
    assert job.waits[0]["review_id"] != first
    assert len(sent) == 2


async def test_decision_not_done_repeats_the_effect(store: Store) -> None:
    mood["value"] = "breaks"
    job = await run(store, sends, ["a"])
    mood["value"] = "fine"
    await Operations(store).decide(job.waits[0]["review_id"], Decision("not_done", "ann"))
    async with working(store):
        job = await rest(store, job.job_id)
    assert job.state == "succeeded"
    assert len(sent) == 2
    assert len({key for _, key in sent}) == 1


async def test_rejection_raises_in_the_code(store: Store) -> None:
    mood["value"] = "breaks"
    job = await run(store, sends, ["a"])
    await Operations(store).decide(job.waits[0]["review_id"], Decision("reject", "ann", note="wrong customer"))
    async with working(store):
        job = await rest(store, job.job_id)
    assert job.state == "failed"
    assert "wrong customer" in (job.error or "")


async def test_a_decision_reaches_a_running_job(store: Store) -> None:
    operations = Operations(store)
    mood["value"] = "breaks"
    job = await operations.create(busy)
    async with working(store):
        ledger = Ledger(store)
        async with asyncio.timeout(10):
            while "review_requested" not in await story(store, job.job_id):
                await asyncio.sleep(0.01)
        review = next(e for e in await ledger.events(job.job_id) if e.facts.event == "review_requested")
        mood["value"] = "fine"
        assert review.facts.detail is not None
        assert (await ledger.job(job.job_id)).state == "running"
        await operations.decide(review.facts.detail["review_id"], Decision("done", "ann", result=b'"ok"'))
        mood["go"] = "on"
        job = await rest(store, job.job_id)
    assert job.result == b'"ok"'


@overnight.step
async def slow() -> None:
    while "go" not in mood:
        await asyncio.sleep(0.01)


@overnight.job
async def busy() -> str:
    answer, _ = await asyncio.gather(send("a", "hello"), slow())
    return answer


@overnight.job
async def posts(text: str) -> str:
    return await post(text)


@pytest.mark.parametrize(("trouble", "result"), [("breaks after", b'"found"'), ("breaks before", b'"posted"')])
async def test_status_check_settles_an_unknown_outcome(store: Store, trouble: str, result: bytes) -> None:
    mood["value"] = trouble
    job = await run(store, posts, "news")
    assert (job.state, job.result) == ("succeeded", result)
    assert len(sent) == 1
    assert "tool_unknown" in await story(store, job.job_id)


async def test_inconclusive_status_check_parks(store: Store) -> None:
    mood["value"], mood["check"] = "breaks after", "blind"
    job = await run(store, posts, "news")
    assert job.state == "parked"


@overnight.step
async def draft() -> str:
    return "draft " + mood["value"]


@overnight.job
async def redrafts() -> str:
    text = mood["value"]
    return await send("a", text)


async def test_the_same_effect_with_other_arguments_parks(store: Store) -> None:
    """An effect that has begun under other arguments is not done under new ones."""
    mood["value"] = "breaks"
    job = await run(store, redrafts)
    assert job.waits[0]["for"] == "quarantine"
    mood["value"] = "fine"
    await Operations(store).resume(job.job_id, "ann")
    async with working(store):
        job = await rest(store, job.job_id)
    assert job.state == "parked"
    assert job.waits[0]["for"] == "divergence"
    assert len(sent) == 1


def test_effect_key_is_stable_across_attempts() -> None:
    key = effect_key("t", "triage", "#3", "job_1", "send", "job_1:#3:0")
    assert key.startswith("t|triage|#3|job_1|")
    assert key != effect_key("t", "triage", "#3", "job_1", "send", "job_1:#3:1")
    assert key != effect_key("u", "triage", "#3", "job_1", "send", "job_1:#3:0")
