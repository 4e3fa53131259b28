"""Durable jobs through the public interface, on both stores."""

import asyncio
from typing import Any

import pytest

import overnight
from endless_job import endless
from job_runs import overnight_decision, rest, run, story, working
from overnight.domain import FINISHED
from overnight.jobs import NoModel, Operations, Worker
from overnight.ledger import Ledger
from overnight.store import Store

done: list[Any] = []


@pytest.fixture(autouse=True)
def clean() -> None:
    done.clear()


@overnight.step
async def double(number: int) -> int:
    done.append(number)
    return number * 2


@overnight.job
async def adds(count: int) -> int:
    return sum([await double(number) for number in range(count)])


async def test_a_job_runs_its_steps_once(store: Store) -> None:
    job = await run(store, adds, 4)
    assert (job.state, job.result) == ("succeeded", b"12")
    assert done == [0, 1, 2, 3]
    events = await story(store, job.job_id)
    assert events[0] == "created"
    assert events.count("step_committed") == 4
    assert events[-1] == "completed"


@overnight.job
async def branches(count: int) -> list[int]:
    return list(await asyncio.gather(*(double(number) for number in range(count))))


async def test_parallel_branches_keep_their_answers(store: Store) -> None:
    job = await run(store, branches, 20)
    assert job.result == b"[0,2,4,6,8,10,12,14,16,18,20,22,24,26,28,30,32,34,36,38]"
    paths = {event.path for event in await Ledger(store).events(job.job_id) if event.path is not None}
    assert paths == {f"/{n}" for n in range(20)}


@overnight.job
async def asks(question: str) -> list[Any]:
    first = await double(21)
    answer = await overnight.approval(question, amount=5)
    return [first, answer.approved, answer.by, await double(1)]


async def test_approval_parks_and_continues_without_repetition(store: Store) -> None:
    operations = Operations(store)
    job = await run(store, asks, "send it?")
    assert job.state == "parked"
    assert [wait["for"] for wait in job.waits] == ["approval"]
    review_id = job.waits[0]["review_id"]
    await operations.decide(review_id, overnight_decision(answer="approve"))
    async with working(store):
        job = await rest(store, job.job_id, "succeeded", "failed")
    assert job.result == b'[42,true,"ann",2]'
    assert done == [21, 1]


@overnight.job
async def asks_in_branches() -> list[Any]:
    async def ask(number: int) -> Any:
        before = await double(number)
        answer = await overnight.approval(f"question {number}")
        return [before, answer.approved, await double(number + 10)]

    return list(await asyncio.gather(*(ask(number) for number in range(3)), double(7), return_exceptions=True))


async def test_job_parks_inside_gather(store: Store) -> None:
    operations = Operations(store)
    job = await operations.create(asks_in_branches)
    async with working(store):
        parked = await rest(store, job.job_id)
        assert parked.state == "parked"
        assert len(parked.waits) == 3
        for wait in parked.waits:
            await operations.decide(wait["review_id"], overnight_decision(answer="approve"))
        finished = await rest(store, job.job_id, *FINISHED)
    assert finished.result == b"[[0,true,20],[2,true,22],[4,true,24],14]"
    assert sorted(done) == [0, 1, 2, 7, 10, 11, 12]


@overnight.job
async def cleans_up() -> str:
    try:
        await double(1)
        await overnight.approval("go on?")
    except BaseException:
        done.append("caught")
        await double(99)
        raise
    finally:
        await double(100)
    return "ended"


async def test_eviction_writes_nothing_from_finally_blocks(store: Store) -> None:
    job = await run(store, cleans_up)
    assert job.state == "parked"
    assert 99 not in done
    assert 100 not in done
    assert (await story(store, job.job_id)).count("step_committed") == 1


@overnight.job
async def sleeps(seconds: float) -> float:
    before = overnight.now()
    await overnight.sleep(seconds)
    return (overnight.now() - before).total_seconds()


async def test_a_long_sleep_parks_and_wakes(store: Store) -> None:
    job = await Operations(store).create(sleeps, (1.6,))
    async with working(store):
        parked = await rest(store, job.job_id)
        assert parked.state == "parked"
        assert parked.wake_at is not None
        finished = await rest(store, job.job_id, *FINISHED)
    assert float(finished.result or b"0") >= 1.6


@overnight.job
async def gives_up() -> str:
    try:
        async with overnight.timeout(0.05):
            await double(1)
            await overnight.approval("anyone?")
    except TimeoutError:
        await double(2)
        return "gave up"
    return "approved"


async def test_a_timeout_is_a_recorded_outcome(store: Store) -> None:
    job = await run(store, gives_up)
    assert job.result == b'"gave up"'
    assert "timer_fired" in await story(store, job.job_id)


@overnight.job
async def values() -> list[Any]:
    drawn = [overnight.random(), overnight.uuid(), str(overnight.now())]
    await overnight.approval("keep?")
    return drawn


async def test_values_are_the_same_after_a_recovery(store: Store) -> None:
    job = await run(store, values)
    recorded = [e.content for e in await Ledger(store).events(job.job_id) if e.facts.event == "value_recorded"]
    await Operations(store).decide(job.waits[0]["review_id"], overnight_decision(answer="approve"))
    async with working(store):
        job = await rest(store, job.job_id, *FINISHED)
    assert recorded[0] is not None
    assert recorded[0] in (job.result or b"")
    assert recorded[1] in (job.result or b"")


@overnight.job
async def child(number: int) -> int:
    return await double(number) + 1


@overnight.job
async def parent() -> list[int]:
    return [await child(1), *await asyncio.gather(child(2), child(3))]


async def test_child_jobs_run_and_return_results(store: Store) -> None:
    job = await run(store, parent)
    for _ in range(50):
        if job.state != "parked":
            break
        async with working(store):
            job = await rest(store, job.job_id, *FINISHED)
    assert job.result == b"[3,5,7]"
    assert len(await Ledger(store).children(job.job_id)) == 3


@overnight.step
async def fragile(name: str) -> str:
    done.append(name)
    if done.count(name) < 3:
        raise ValueError(f"{name} is not ready")
    return name


@overnight.job
async def retried() -> str:
    await double(5)
    return await fragile("x")


async def test_a_failed_job_retries_only_what_failed(store: Store) -> None:
    operations = Operations(store)
    job = await run(store, retried)
    assert job.state == "failed"
    assert "ValueError" in (job.error or "")
    for _ in range(2):
        await operations.resume(job.job_id, "ann")
        async with working(store):
            job = await rest(store, job.job_id)
    assert (job.state, job.attempt) == ("succeeded", 3)
    assert done.count(5) == 1
    assert done.count("x") == 3


@overnight.step(retry=overnight.Retry(attempts=4, backoff_s=0.01))
async def patient(name: str) -> str:
    return await fragile(name)


@overnight.job
async def caught() -> str:
    try:
        await fragile("never")
    except overnight.StepFailed:
        await double(8)
    return await patient("y")


async def test_steps_are_retried_and_failures_can_be_caught(store: Store) -> None:
    job = await run(store, caught)
    assert job.result == b'"y"'


version = ["one"]


@overnight.step
async def one() -> int:
    return 1


@overnight.step
async def two() -> int:
    return 2


@overnight.job
async def changes() -> int:
    total = await (one() if version[0] == "one" else two())
    await overnight.approval("ok?")
    return total


async def test_changed_code_parks_with_a_diff_and_resumes_when_fixed(store: Store) -> None:
    operations = Operations(store)
    version[0] = "one"
    job = await run(store, changes)
    await operations.decide(job.waits[0]["review_id"], overnight_decision(answer="approve"))
    version[0] = "two"
    async with working(store):
        job = await rest(store, job.job_id, "parked", *FINISHED)
    assert job.state == "parked"
    assert job.waits[0]["for"] == "divergence"
    assert job.waits[0]["changed"]["name"] == {"recorded": "one", "asked": "two"}
    version[0] = "one"
    await operations.resume(job.job_id, "ann")
    async with working(store):
        job = await rest(store, job.job_id, *FINISHED)
    assert job.result == b"1"


@overnight.job
async def shorter() -> int:
    total = await one()
    if version[0] == "one":
        total += await two()
    if version[0] != "two":
        await overnight.approval("ok?")
    return total


async def test_code_that_ends_before_its_history_diverges(store: Store) -> None:
    version[0] = "one"
    job = await run(store, shorter)
    version[0] = "two"
    await Operations(store).resume(job.job_id, "ann")
    async with working(store):
        job = await rest(store, job.job_id)
    assert job.state == "parked"
    assert job.waits[0]["for"] == "divergence"


async def test_cancel_stops_running_and_parked_jobs(store: Store) -> None:
    operations = Operations(store)
    running = await operations.create(endless)
    parked = await operations.create(asks, ("?",))
    async with working(store):
        await rest(store, parked.job_id, "parked")
        await rest(store, running.job_id, "running")
        assert await operations.cancel(parked.job_id, "ann") == "cancelled"
        assert await operations.cancel(running.job_id, "ann") in {"running", "cancelled"}
        assert (await rest(store, running.job_id, *FINISHED)).state == "cancelled"


async def test_a_lost_worker_is_recovered_and_fenced(store: Store) -> None:
    operations = Operations(store)
    job = await operations.create(asks, ("?",))
    first = Worker(store, NoModel(), worker_id="one")
    await first.start()
    try:
        await rest(store, job.job_id, "parked")
    finally:
        await first.stop()
    other = await operations.create(endless)
    lost = Worker(store, NoModel(), worker_id="lost")
    await lost.start()
    await rest(store, other.job_id, "running")
    await asyncio.sleep(0.1)
    assert await operations.expire_leases("lost") == 1
    async with working(store, worker_id="second"):
        async with asyncio.timeout(10):
            while "worker_lost" not in await story(store, other.job_id):
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        row = await Ledger(store).job(other.job_id)
        assert row.lease_owner == "second"
        assert row.lease_epoch == 2
    await lost.stop()


@overnight.job
async def unserializable() -> Any:
    return object()


async def test_result_without_json_form_fails_with_its_path(store: Store) -> None:
    job = await run(store, unserializable)
    assert job.state == "failed"
    assert "the result of job unserializable" in (job.error or "")


@overnight.step
async def outer(number: int) -> int:
    inner = await double(number)
    answer = await overnight.approval("inside of a step?")
    return inner + int(answer.approved)


@overnight.job
async def nested() -> int:
    return await outer(4) + await double(1)


async def test_step_that_parks_continues_inside(store: Store) -> None:
    job = await run(store, nested)
    assert (job.state, job.waits[0]["for"]) == ("parked", "approval")
    await Operations(store).decide(job.waits[0]["review_id"], overnight_decision(answer="approve"))
    async with working(store):
        job = await rest(store, job.job_id, *FINISHED, "parked")
    assert job.result == b"11"
    assert done == [4, 1]


tries = {"left": 0}


@overnight.step(retry=overnight.Retry(attempts=3, backoff_s=0.01))
async def stubborn() -> int:
    inner = await double(3)
    await overnight.approval("first ask")
    done.append("tried")
    if done.count("tried") < tries["left"]:
        raise ValueError("again")
    return inner


@overnight.job
async def stubbornly() -> int:
    return await stubborn()


async def test_retried_step_re_runs_after_a_recovery(store: Store) -> None:
    tries["left"] = 3
    operations = Operations(store)
    job = await run(store, stubbornly)
    async with working(store):
        for _ in range(3):
            job = await rest(store, job.job_id)
            assert job.state == "parked"
            await operations.decide(job.waits[0]["review_id"], overnight_decision(answer="approve"))
            async with asyncio.timeout(10):
                while (job := await Ledger(store).job(job.job_id)).state in {"queued", "running"}:
                    await asyncio.sleep(0.01)
    assert (job.state, job.result) == ("succeeded", b"6")
    assert done.count(3) == 3


@overnight.job
async def fails_in_a_branch() -> str:
    await asyncio.gather(fragile("caught"), return_exceptions=True)
    await double(6)
    return await fragile("last")


async def test_retry_keeps_handled_failures(store: Store) -> None:
    operations = Operations(store)
    job = await run(store, fails_in_a_branch)
    for _ in range(2):
        assert job.state == "failed"
        await operations.resume(job.job_id, "ann")
        async with working(store):
            job = await rest(store, job.job_id)
    assert job.result == b'"last"'
    assert done.count("caught") == 1
    assert done.count(6) == 1


@overnight.job
async def weak_child() -> str:
    return await fragile("child")


@overnight.job
async def strong_parent() -> str:
    return await weak_child()


async def test_failed_child_is_retried_with_its_parent(store: Store) -> None:
    operations = Operations(store)
    job = await run(store, strong_parent)
    async with working(store):
        job = await rest(store, job.job_id, *FINISHED)
        for _ in range(2):
            assert job.state == "failed"
            await operations.resume(job.job_id, "ann")
            job = await rest(store, job.job_id, *FINISHED)
    assert job.result == b'"child"'


async def test_silently_evicted_job_is_taken_again(store: Store) -> None:
    operations = Operations(store)
    async with working(store) as worker:
        job = await operations.create(endless)
        await rest(store, job.job_id, "running")
        async with asyncio.timeout(5):
            while (execution := worker._running.get(job.job_id, (None, None))[0]) is None:
                await asyncio.sleep(0.01)
        execution.state.evict()  # what a failing store does to it
        async with asyncio.timeout(10):
            while "worker_lost" not in await story(store, job.job_id):
                await asyncio.sleep(0.05)


@overnight.job
async def late_question() -> list[Any]:
    async def early() -> bool:
        return (await overnight.approval("early")).approved

    async def late() -> bool:
        await slow_gate()
        return (await overnight.approval("late")).approved

    return list(await asyncio.gather(early(), late()))


@overnight.step
async def slow_gate() -> None:
    while "open" not in done:
        await asyncio.sleep(0.01)


async def test_decisions_reach_branches_in_any_order(store: Store) -> None:
    operations = Operations(store)
    job = await operations.create(late_question)
    async with working(store):
        async with asyncio.timeout(10):
            while "review_requested" not in await story(store, job.job_id):
                await asyncio.sleep(0.01)
        events = await Ledger(store).events(job.job_id)
        review = next(e.facts.detail for e in events if e.facts.event == "review_requested")
        assert review is not None
        await operations.decide(review["review_id"], overnight_decision(answer="approve"))
        done.append("open")
        job = await rest(store, job.job_id)
        assert job.state == "parked"
        await operations.decide(job.waits[0]["review_id"], overnight_decision(answer="reject"))
        job = await rest(store, job.job_id, *FINISHED)
    assert job.result == b"[true,false]"


async def test_dead_local_process_is_detected_at_once(store_url: str, store: Store) -> None:
    import subprocess
    import sys

    code = f"""
import asyncio, sys
sys.path[:0] = {sys.path!r}
from endless_job import endless
from job_runs import story
from overnight.jobs import NoModel, Operations, Worker
from overnight.store import open_store
async def main():
    store = open_store({store_url!r})
    job = await Operations(store).create(endless)
    await Worker(store, NoModel(), worker_id="killed").start()
    while "step_committed" not in await story(store, job.job_id):
        await asyncio.sleep(0.01)
    print(job.job_id, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    job_id = process.stdout.readline().strip()
    process.kill()
    process.wait()
    async with working(store):
        async with asyncio.timeout(8):  # the lease itself would hold for 15 s
            while "replay_ended" not in await story(store, job_id):
                await asyncio.sleep(0.05)


@overnight.job
async def spread(*numbers: int) -> int:
    return sum([await double(number) for number in numbers])


async def test_job_accepts_variable_arguments(store: Store) -> None:
    job = await run(store, spread, 1, 2, 3)
    assert job.result == b"12"


@overnight.job
async def catches_late() -> str:
    try:
        await fragile("late")
    except overnight.StepFailed as failed:
        caught = failed.error_class
    await overnight.approval("look")
    return caught


async def test_failure_is_equal_live_and_replayed(store: Store) -> None:
    job = await run(store, catches_late)
    await Operations(store).decide(job.waits[0]["review_id"], overnight_decision(answer="approve"))
    async with working(store):
        job = await rest(store, job.job_id)
    assert job.result == b'"ValueError"'


async def test_worker_for_one_job_ignores_others(store: Store) -> None:
    other = await Operations(store).create(adds, (1,))
    mine = await Operations(store).create(parent)
    async with working(store, root=mine.job_id):
        assert (await rest(store, mine.job_id, *FINISHED)).result == b"[3,5,7]"
    assert (await Ledger(store).job(other.job_id)).state == "queued"


async def test_wrong_argument_types_are_rejected_before_a_write(store: Store) -> None:
    from overnight.domain import BadInput

    with pytest.raises(BadInput, match="job adds, argument count"):
        await Operations(store).create(adds, ("three",))
    assert await Ledger(store).jobs() == []


async def test_the_end_of_an_old_attempt_does_not_end_the_new_one(store: Store) -> None:
    from overnight.jobs import BeginAttempt, Complete, CreateJob
    from overnight.ledger import NewJob

    new = NewJob("job_" + "1" * 32, "default", "foreign", "agent", external_id="c-1", state="running")
    job, _ = await store.commit(CreateJob(new))
    await store.commit(BeginAttempt(job.job_id))
    await store.commit(Complete(job.job_id, attempt=1))
    assert (await Ledger(store).job(job.job_id)).state == "running"
    await store.commit(Complete(job.job_id, attempt=2))
    assert (await Ledger(store).job(job.job_id)).state == "succeeded"
