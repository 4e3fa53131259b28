"""The guard against loops beside what is no call of the job's own: replays, and embeddings for the cache."""

from collections.abc import Iterator

import pytest

from caching import SEMANTIC
from overnight.store import Store
from overnight.testing import SpawnedProvider, spawn_scripted_provider
from serving import routed, serving

GUARDED = routed("guards: {same_call: 3}\n")
QUESTIONS = ("why is grass green", "name three rivers", "who wrote the odyssey", "list small primes", "cook rice")


@pytest.fixture(scope="module")
def scripted() -> Iterator[SpawnedProvider]:
    with spawn_scripted_provider() as provider:
        yield provider


@pytest.fixture
def provider(scripted: SpawnedProvider) -> SpawnedProvider:
    scripted.reset()
    scripted.set_rules("rules: [{answer: 'answer {count}'}]")
    return scripted


async def test_what_was_recorded_is_given_again_before_anybody_asks_about_a_loop(
    store: Store, provider: SpawnedProvider
) -> None:
    async with serving(store, provider, GUARDED) as served:
        first = [await served.ask(headers={"x-job-id": "j", "x-job-attempt": "1"}) for _ in range(4)]
        assert [answer.status_code for answer in first] == [200, 200, 200, 409]
        again = [await served.ask(headers={"x-job-id": "j", "x-job-attempt": "2"}) for _ in range(4)]
        assert [answer.status_code for answer in again] == [200, 200, 200, 409]
        assert [answer.json() for answer in again[:3]] == [answer.json() for answer in first[:3]]
        assert provider.stats()["paid_calls"] == 3


async def test_questions_that_are_embedded_for_the_cache_are_no_loop(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, GUARDED + SEMANTIC) as served:
        for question in QUESTIONS:
            assert (await served.ask(question, headers={"x-job-id": "j"})).status_code == 200
        story = await served.story("j")
        assert "loop_stopped" not in story
        assert story.count("model_succeeded") == 2 * len(QUESTIONS)
