"""`human.ask`: a tool over HTTP whose result is the text of a person, asked once however often it is claimed."""

from typing import Any

import pytest

from overnight.domain import BadInput
from overnight.jobs import Operations
from overnight.reviews import Decision, answers_of, list_reviews
from overnight.store import Store
from serving import Served

ASK = {"tool": "human.ask", "arguments": {"question": "Which template?", "choices": ["blue", "red"]}}
HEADERS = {"idempotency-key": "ask-1"}


async def claim(served: Served, **body: Any) -> Any:
    return await served.http.post("/api/v1/effects", json={**ASK, **body}, headers=HEADERS)


async def test_answer_is_the_result(served: Served, store: Store) -> None:
    waiting = [await claim(served) for _ in range(2)]
    assert [each.status_code for each in waiting] == [202, 202], waiting[0].text
    [review] = await list_reviews(store)
    assert (review.question, list(answers_of(review))) == ("Which template?", ["answer", "reject"])
    operations = Operations(store)
    for wrong in (Decision("approve", "mia"), Decision("answer", "mia", text="green")):
        with pytest.raises(BadInput):
            await operations.decide(review.review_id, wrong)
    await operations.decide(review.review_id, Decision("answer", "mia", text="blue"))
    for _ in range(2):
        answered = await claim(served)
        assert (answered.status_code, answered.json()["verdict"], answered.json()["result"]) == (
            200,
            "committed",
            "blue",
        )


async def test_rejected_question_has_no_result(served: Served, store: Store) -> None:
    assert (await claim(served, arguments={"question": 7})).status_code == 202
    [review] = await list_reviews(store)
    assert "without a text" in review.question
    await Operations(store).decide(review.review_id, Decision("reject", "mia", "ask later"))
    refused = await claim(served, arguments={"question": 7})
    assert (refused.status_code, "ask later" in refused.text) == (409, True)
