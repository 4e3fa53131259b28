"""Two gateways on one store: a new attempt waits for the same call of an older attempt."""

import asyncio

import pytest

from overnight.store import Store
from overnight.testing import SpawnedProvider
from serving import Served, serving


@pytest.fixture
def provider(provider: SpawnedProvider) -> SpawnedProvider:
    provider.set_rules("rules: [{answer: 'answer {count}', fault: {delay_ms: 700}}]")
    return provider


async def ask(served: Served, attempt: int) -> tuple[int, str, bool]:
    answer = await served.ask("same", headers={"x-job-id": "n", "x-job-attempt": str(attempt)})
    text = answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else ""
    return answer.status_code, text, answer.headers.get("x-overnight-replayed") == "true"


async def test_new_attempt_receives_the_answer_in_flight_elsewhere(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider) as one, serving(store, provider) as other:
        first = asyncio.create_task(ask(one, 1))
        await one.until("n", "model_called")
        assert await ask(other, 2) == (200, "answer 1", True)
        assert (await first)[0] == 409  # its attempt is over
        assert await ask(one, 3) == (200, "answer 1", True)
        assert provider.stats()["paid_calls"] == 1
        names = await one.story("n")
        assert (names.count("model_called"), names.count("model_succeeded"), "diverged" in names) == (1, 1, False)
