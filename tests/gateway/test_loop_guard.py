"""The loop guard ignores replays and the embeddings of the cache."""

import asyncio
import gc
import tracemalloc
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from caching import SEMANTIC
from overnight.brain import Brain
from overnight.domain import Attribution, Event
from overnight.gateway.admission import loop_guard as looping
from overnight.gateway.admission.attempt_result import AttemptResult
from overnight.gateway.admission.loop_guard import LoopGuard
from overnight.gateway.identity import Subject
from overnight.jobs import Decision, Operations
from overnight.reviews import list_reviews
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from overnight.wire_formats import CHAT
from serving import routed, serving
from store_locks import unwritable

GUARDED = routed("guards: {same_call: 3}\n")
QUESTIONS = ("why is grass green", "name three rivers", "who wrote the odyssey", "list small primes", "cook rice")


@pytest.fixture
def provider(provider: SpawnedProvider) -> SpawnedProvider:
    provider.set_rules("rules: [{answer: 'answer {count}'}]")
    return provider


async def test_replay_precedes_the_loop_guard(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, GUARDED) as served:
        first = [await served.ask(headers={"x-job-id": "j", "x-job-attempt": "1"}) for _ in range(4)]
        assert [answer.status_code for answer in first] == [200, 200, 200, 409]
        again = [await served.ask(headers={"x-job-id": "j", "x-job-attempt": "2"}) for _ in range(4)]
        assert [answer.status_code for answer in again] == [200, 200, 200, 409]
        assert [answer.json() for answer in again[:3]] == [answer.json() for answer in first[:3]]
        assert provider.stats()["paid_calls"] == 3


async def test_cache_embeddings_are_no_loop(store: Store, provider: SpawnedProvider) -> None:
    async with serving(store, provider, GUARDED + SEMANTIC) as served:
        for question in QUESTIONS:
            assert (await served.ask(question, headers={"x-job-id": "j"})).status_code == 200
        story = await served.story("j")
        assert "loop_stopped" not in story
        assert story.count("model_succeeded") == 2 * len(QUESTIONS)


class Meeting:
    """A barrier after the read of the reviews of a job.

    It replaces the read of the guard: no lock can stop one gateway between its read and its write while another one writes
    to the same job.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.looked = asyncio.Barrier(count)
        monkeypatch.setattr(looping, "list_reviews", self.list_reviews)

    async def list_reviews(self, store: Store, **filters: Any) -> Any:
        found = await list_reviews(store, **filters)
        await self.looked.wait()
        return found


@pytest.mark.parametrize("apart", [False, True])
async def test_two_gateways_request_one_review_per_loop(store_url: str, provider: SpawnedProvider, apart: bool) -> None:
    """Both have read that there is no review before either can write one."""
    with ExitStack() as stack:
        stores = [stack.enter_context(open_store(store_url)) for _ in range(1 + apart)]
        async with serving(stores[0], provider, GUARDED) as one, serving(stores[-1], provider, GUARDED) as other:
            headers = {"x-job-id": "j"}
            assert [(await served.ask(headers=headers)).status_code for served in (one, other, one)] == [200] * 3
            lock = unwritable(store_url, "job")
            await asyncio.to_thread(lock.__enter__)
            try:
                asking = [asyncio.create_task(served.ask(headers=headers)) for served in (one, other)]
                async with asyncio.timeout(20):
                    while sum(store.writer.waiting for store in stores) < 2:
                        await asyncio.sleep(0.01)
            finally:
                await asyncio.to_thread(lock.__exit__, None, None, None)
            refused = await asyncio.gather(*asking)
            assert [answer.json()["error"]["code"] for answer in refused] == ["loop_stopped"] * 2
            assert refused[0].json() == refused[1].json(), "both name the same review"
            story = await one.story("j")
            assert (story.count("loop_stopped"), story.count("review_requested")) == (1, 1)
            assert len(await list_reviews(stores[0])) == 1


async def test_decided_loop_review_is_not_requested_again(
    store: Store, provider: SpawnedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One gateway reads that there is no review. Then another requests one, and a person approves it."""
    async with serving(store, provider, GUARDED) as one, serving(store, provider, GUARDED) as other:
        headers = {"x-job-id": "j"}
        assert [(await served.ask(headers=headers)).status_code for served in (one, other, one)] == [200] * 3
        meeting = Meeting(monkeypatch, 2)
        slow = asyncio.create_task(other.ask(headers=headers))
        while meeting.looked.n_waiting == 0:
            await asyncio.sleep(0.01)
        monkeypatch.undo()
        assert (await one.ask(headers=headers)).status_code == 409
        [review] = await list_reviews(store)
        await Operations(store).decide(review.review_id, Decision("approve", "ann"))
        await meeting.looked.wait()
        assert (await slow).status_code == 200
        assert (await other.story("j")).count("review_requested") == 1


def subject(job: str, asks: int) -> Subject:
    return Subject(Attribution(), job, (job,), True, "x", fingerprint=f"{asks:064x}")


def test_loop_guard_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looping, "MAX_REMEMBERED", 20_000)
    with open_store(str(tmp_path / "ledger.db")) as store:
        bounded(store)


def bounded(store: Store) -> None:
    routing = GUARDED.replace("same_call: 3", "same_call: 3, no_progress_turns: 8")
    guard = LoopGuard(store, Brain.from_files({"routing.yaml": routing.encode()}).routing.guards)
    spent = AttemptResult("c", Event("model_succeeded"), "m", (1, 0, 1), 1, b"{}")
    request = CHAT.read(b'{"messages": [{"role": "user", "content": "x"}]}')
    busy, looping_one = subject("busy", 0), subject("circles", 0)
    gc.collect()
    tracemalloc.start()
    try:
        for job in range(300):
            for each in range(256):
                asking = subject(f"job_{job:032x}", job << 16 | each)
                guard.request_admitted(asking)
                if each < 64:
                    length = AttemptResult("c", spent.event, "m", (1, 0, each), 1, b"{}")
                    guard.request_answered(asking, request, length)
            guard.request_admitted(busy)
            guard.request_admitted(looping_one)
            guard.request_answered(looping_one, request, spent)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 8_000_000, f"{held:,} bytes"
    assert guard.suspects(busy)
    assert guard.suspects(looping_one)
    assert guard.suspects(subject(f"job_{299:032x}", 299 << 16 | 7)), "of late jobs all is known"
    assert not guard.suspects(subject(f"job_{299:032x}", 7))
    assert not guard.suspects(subject(f"job_{0:032x}", 7)), "the quietest is forgotten"
