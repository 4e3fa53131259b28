"""A recovered job receives its answers in the recorded order: timers, events and time limits."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import overnight
from job_runs import overnight_decision, rest, story, working
from overnight.app import open_app
from overnight.domain import new_id
from overnight.jobs import CreateJob, Decision, JobFunction, Operations
from overnight.jobs.replay.delivery_order import DeliveryOrder
from overnight.ledger import NewJob
from overnight.reviews import list_reviews
from overnight.settings import Settings
from overnight.store import Store, open_store
from overnight.testing import spawn_scripted_provider


async def park_and_recover(store: Store, function: JobFunction[..., Any], *args: Any) -> Any:
    """Run until the job parks on its approval, then go on in another worker; the finished job."""
    operations = Operations(store)
    job = await operations.create(function, args)
    async with working(store):
        parked = await rest(store, job.job_id)
    assert [wait["for"] for wait in parked.waits] == ["approval"]
    async with working(store):
        await operations.decide(parked.waits[0]["review_id"], overnight_decision(answer="approve"))
        return await rest(store, job.job_id, "succeeded", "failed", "parked")


async def no_news() -> None:
    """Nothing came from outside."""


async def turns_of_the_loop(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_slow_answer_keeps_its_turn() -> None:
    """An effect's answer comes a few turns of the loop after the step's that was committed with it, whenever that is."""

    async def take(order: DeliveryOrder, seq: int, given: list[int]) -> None:
        await order.enqueue(seq)
        given.append(seq)

    for pause in range(25):
        given: list[int] = []
        order = DeliveryOrder(asyncio.ensure_future, no_news, lambda: None)
        async with asyncio.TaskGroup() as branches:
            for seq, turns_before in ((1, 0), (3, pause), (2, 3)):
                await turns_of_the_loop(turns_before)
                branches.create_task(take(order, seq, given))
        assert given[-2:] == [2, 3], pause


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


async def test_answer_after_a_timeout_stays_late(store: Store) -> None:
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


async def test_race_with_a_timeout_has_one_recorded_winner(store: Store) -> None:
    job = await park_and_recover(store, races, 60)
    assert (job.state, job.waits) == ("succeeded", [])


@overnight.job
async def long_answers(count: int) -> list[int]:
    texts = [(await overnight.chat(f"at length, {number}")).text for number in range(count)]
    await overnight.approval("read it?")
    return [len(text) for text in texts]


async def test_large_answers_are_replayed(store_url: str, tmp_path: Path) -> None:
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
            await operations.decide(parked.waits[0]["review_id"], overnight_decision(answer="approve"))
            async with app.working():
                job = await rest(app.store, job.job_id)
        assert (job.state, job.result, job.waits) == ("succeeded", b"[119999,119999,119999,119999]", [])
        assert provider.stats()["paid_calls"] == 4


@overnight.step
async def tick(number: int) -> int:
    await asyncio.sleep(0.001)
    return number


async def ticks(count: int) -> int:
    return sum([await tick(number) for number in range(count)])


@overnight.job
async def works_while_it_waits(count: int) -> int:
    _, total = await asyncio.gather(overnight.approval("go on?"), ticks(count))
    return total


@contextlib.contextmanager
def busy_database(url: str) -> Iterator[None]:
    """Another process' writer, which keeps commits of this one waiting."""
    stop = threading.Event()

    def write() -> None:
        with open_store(url) as other:
            while not stop.is_set():
                other.commit_blocking(CreateJob(NewJob(new_id("job"), "default", "foreign", "noise")))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


async def test_job_does_not_park_between_two_boundaries(store: Store, store_url: str) -> None:
    with busy_database(store_url):
        job = await park_and_recover(store, works_while_it_waits, 20)
    assert (job.state, job.result) == ("succeeded", b"190")
    events = await story(store, job.job_id)
    assert events[: events.index("parked")].count("step_committed") == 20


delivered: list[str] = []


@overnight.effect
async def hang(idempotency_key: str) -> str:
    """Done at once, acknowledged never."""
    delivered.append(idempotency_key)
    await asyncio.sleep(3600)
    return "acknowledged"


@overnight.effect
async def hang_blind(idempotency_key: str) -> str:
    return await hang.function(idempotency_key)


@hang.status_check
def find(idempotency_key: str) -> object:
    return overnight.Done("m-1", "found") if idempotency_key in delivered else overnight.NOT_DONE


@overnight.job
async def gives_up_on(blind: bool) -> str:
    try:
        async with overnight.timeout(0.05):
            await (hang_blind() if blind else hang())
    except TimeoutError:
        await tick(1)
    await overnight.approval("go on?")
    return "ended"


async def lose_after_a_step(store: Store, job_id: str) -> None:
    """Work until the step is committed, then leave as a lost worker leaves: whatever was under way has no end."""
    async with working(store), asyncio.timeout(10):
        while "step_committed" not in await story(store, job_id):
            await asyncio.sleep(0.01)


async def test_effect_of_a_cancelled_branch_is_settled_in_recovery(store: Store) -> None:
    job = await Operations(store).create(gives_up_on, (False,))
    await lose_after_a_step(store, job.job_id)
    async with working(store):
        parked = await rest(store, job.job_id)
    assert [wait["for"] for wait in parked.waits] == ["approval"]
    assert (await story(store, job.job_id)).count("tool_succeeded") == 1


async def test_unknown_interrupted_effect_requests_a_review(store: Store) -> None:
    job = await Operations(store).create(gives_up_on, (True,))
    await lose_after_a_step(store, job.job_id)
    async with working(store):
        await rest(store, job.job_id)
        reviews = {review.kind: review for review in await list_reviews(store)}
        decision = Decision("done", "ann", provider_id="m-1", result=b'"found"')
        await Operations(store).decide(reviews["approval"].review_id, overnight_decision(answer="approve"))
        job = await rest(store, job.job_id, "succeeded", "failed")
    assert (job.state, job.result) == ("succeeded", b'"ended"')
    await Operations(store).decide(reviews["quarantine"].review_id, decision)
    assert (await story(store, job.job_id))[-2:] == ["review_decided", "tool_succeeded"]
