"""`overnight.ask`: the job parks until a person answers with a text, which is replayed."""

from typing import Any

import pytest

import overnight
from job_runs import rest, run, story, working
from overnight.domain import BadInput
from overnight.jobs import Operations
from overnight.ledger import Ledger
from overnight.reviews import Decision, list_reviews
from overnight.store import Store


@overnight.job
async def asks() -> list[Any]:
    first = await overnight.ask("Which template?", choices=["blue", "red"])
    second = await overnight.ask("Which name?", expires_s=3600)
    return [first.text, first.by, first.note, second.text]


@overnight.job
async def asks_wrongly(field: str) -> str:
    arguments: dict[str, Any] = {
        "question": "Which?",
        field: {"question": " ", "choices": ["a", "a"], "expires_s": 0}[field],
    }
    return (await overnight.ask(**arguments)).text


async def pending(store: Store) -> Any:
    [review] = await list_reviews(store)
    return review


async def test_answer_is_the_text_and_is_replayed(store: Store) -> None:
    job = await run(store, asks)
    assert job.state == "parked"
    operations, review = Operations(store), await pending(store)
    with pytest.raises(BadInput, match="blue"):
        await operations.decide(review.review_id, Decision("answer", "mia", text="green"))
    with pytest.raises(BadInput, match="answer"):
        await operations.decide(review.review_id, Decision("approve", "mia"))
    await operations.decide(review.review_id, Decision("answer", "mia", "as always", text="blue"))
    async with working(store):
        job = await rest(store, job.job_id, "parked")
        second = await pending(store)
        assert second.expires_at is not None
        await operations.decide(second.review_id, Decision("answer", "link:ops", text="Größe <b>\nzwei"))
        job = await rest(store, job.job_id, "succeeded")
    assert job.result == '["blue","mia","as always","Größe <b>\\nzwei"]'.encode()
    assert (await story(store, job.job_id)).count("review_requested") == 2
    [text, _] = [
        each.content for each in await Ledger(store).events(job.job_id) if each.facts.event == "review_decided"
    ]
    assert text == b'{"text":"blue"}', "it is content, which can be erased"


@pytest.mark.parametrize("field", ["question", "choices", "expires_s"])
async def test_invalid_questions_fail(store: Store, field: str) -> None:
    job = await run(store, asks_wrongly, field)
    assert job.state == "failed"
    assert "ask(" in (job.error or "")


async def test_approval_may_use_any_names_for_its_facts(store: Store) -> None:
    job = await run(store, approves)
    await Operations(store).decide((await pending(store)).review_id, Decision("approve", "mia"))
    async with working(store):
        assert (await rest(store, job.job_id, "succeeded")).result == b"true"


@overnight.job
async def approves() -> bool:
    return (await overnight.approval("Go on?", answers=["a", "b"], choices=3)).approved
