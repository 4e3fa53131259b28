"""The way out of an unknown outcome: status check, repetition under the same key, person; and results that come late."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

import overnight
from job_runs import overnight_decision, rest, run, story, timeline, working
from overnight.domain import BadInput, Event
from overnight.jobs import Operations
from overnight.ledger import Ledger
from overnight.reviews import list_reviews
from overnight.store import Store

arrived: list[str] = []
mood: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def clean() -> None:
    arrived.clear()
    mood.clear()


async def events(store: Store, job_id: str, name: str) -> list[Event]:
    return [each.facts for each in await Ledger(store).events(job_id) if each.facts.event == name]


# ── repetition under the same key ────────────────────────────────────────────────────────────────────────────────────


def vendor(key: str) -> str:
    """A provider that does each key once, and whose first answers get lost."""
    arrived.append(key)
    if len(arrived) <= mood.get("lost", 1):
        raise TimeoutError("no answer")
    return f"re_{arrived.index(key) + 1}"


@overnight.effect(repeat_safe=True)
async def refund(idempotency_key: str) -> str:
    return vendor(idempotency_key)


@overnight.effect(repeat_safe=True, key_lifetime_s=0.05)
async def short_memory(idempotency_key: str) -> str:
    await asyncio.sleep(0.1)
    return vendor(idempotency_key)


@overnight.effect(repeat_safe=True)
async def checked(idempotency_key: str) -> str:
    return vendor(idempotency_key)


@checked.status_check
async def status(idempotency_key: str) -> Any:
    return mood["status"]


@overnight.job
async def repeats() -> str:
    return await refund()


@overnight.job
async def forgets() -> str:
    return await short_memory()


@overnight.job
async def checks() -> str:
    return await checked()


async def test_repeated_key_settles_an_unknown_outcome(store: Store) -> None:
    job = await run(store, repeats)
    assert (job.state, job.result) == ("succeeded", b'"re_1"')
    assert len(set(arrived)) == 1
    assert len(arrived) == 2
    names = [name for name in await story(store, job.job_id) if name.startswith("tool")]
    assert names == ["tool_called", "tool_unknown", "tool_called", "tool_succeeded"]
    repeated = (await events(store, job.job_id, "tool_called"))[1]
    assert "repeated under the same key" in (repeated.decision or {})["why"]


async def test_forgotten_key_asks_a_person(store: Store) -> None:
    job = await run(store, forgets)
    assert (job.state, job.waits[0]["for"]) == ("parked", "quarantine")
    assert len(arrived) == 1


async def test_status_check_comes_before_the_repetition(store: Store) -> None:
    mood["status"] = overnight.Done("re_7", "found")
    job = await run(store, checks)
    assert (job.result, len(arrived)) == (b'"found"', 1)


@pytest.mark.parametrize("said", [overnight.CANNOT_TELL, None])
async def test_status_check_that_cannot_tell_leads_to_the_repetition(store: Store, said: object) -> None:
    mood["status"] = said
    job = await run(store, checks)
    assert (job.result, len(arrived)) == (b'"re_1"', 2)


def test_repeat_safe_requires_the_key() -> None:
    with pytest.raises(BadInput, match="idempotency_key"):

        @overnight.effect(repeat_safe=True)
        async def keyless() -> None: ...


@overnight.effect
async def unchecked(idempotency_key: str) -> str:
    return vendor(idempotency_key)


@unchecked.status_check
async def forgets_to_return(idempotency_key: str) -> None: ...


@overnight.job
async def asks() -> str:
    return await unchecked()


async def test_status_check_without_a_return_value_repeats_nothing(store: Store) -> None:
    job = await run(store, asks)
    assert (job.state, job.waits[0]["for"]) == ("parked", "quarantine")
    assert len(arrived) == 1


# ── late results ─────────────────────────────────────────────────────────────────────────────────────────────────────


@overnight.effect(timeout_s=0.1)
def slow() -> overnight.Done:
    arrived.append("slow")
    mood["go"].wait(10)
    return overnight.Done("re_9", "late")


@overnight.job
async def waits_in_vain() -> str:
    return await slow()


async def test_late_result_of_a_thread_commits_and_ends_the_question(store: Store) -> None:
    """No time limit ends a thread: what it did after all is recorded, and nobody has to find it out."""
    mood["go"] = threading.Event()
    job = await Operations(store).create(waits_in_vain)
    async with working(store):
        job = await rest(store, job.job_id, "parked")
        review_id = job.waits[0]["review_id"]
        mood["go"].set()
        job = await rest(store, job.job_id, "succeeded")
    assert (job.result, arrived) == (b'"late"', ["slow"])
    assert [each.review_id for each in await list_reviews(store, state="superseded")] == [review_id]
    done = (await events(store, job.job_id, "tool_succeeded"))[0]
    assert done.detail is not None
    assert (done.detail["source"], done.detail["provider_id"]) == ("executed", "re_9")


@overnight.effect
async def transfer(idempotency_key: str) -> overnight.Done:
    arrived.append(idempotency_key)
    number = len(arrived)
    if number == 1:
        await mood["go"].wait()
    return overnight.Done(f"tx_{number}", number)


@transfer.status_check
async def not_seen(idempotency_key: str) -> Any:
    return overnight.NOT_DONE


@overnight.job
async def transfers() -> int:
    return await transfer()


async def test_two_executions_are_reported_as_a_duplicate(store: Store) -> None:
    """The first worker loses its job during the call, and another one is told that nothing was done; both did it."""
    mood["go"] = asyncio.Event()
    job = await Operations(store).create(transfers)
    async with working(store, worker_id="first"):
        async with asyncio.timeout(10):
            while not arrived:
                await asyncio.sleep(0.01)
        await Operations(store).expire_leases("first")
        async with working(store, worker_id="second", root=job.job_id):
            job = await rest(store, job.job_id, "succeeded")
        mood["go"].set()
        async with asyncio.timeout(10):
            while not await list_reviews(store):
                await asyncio.sleep(0.01)
    assert (job.result, len(arrived)) == (b"2", 2)
    duplicate = (await events(store, job.job_id, "tool_duplicated"))[0]
    assert duplicate.detail is not None
    assert duplicate.detail["provider_ids"] == ["tx_2", "tx_1"]
    assert "reported done twice: tx_2 and tx_1" in await timeline(store, job.job_id)
    review = (await list_reviews(store))[0]
    assert (review.kind, msgspec.json.decode(review.detail)["provider_ids"]) == ("duplicate", ["tx_2", "tx_1"])
    await Operations(store).decide(review.review_id, overnight_decision("ack"))


# ── a suspended external program ─────────────────────────────────────────────────────────────────────────────────────

PROGRAM = """
    import sys
    from pathlib import Path
    import overnight
    from overnight.jobs import ExternalJob
    from overnight.jobs import lease
    from overnight.store import open_store

    lease.FRESH_US = 300_000
    sent = Path(__file__).with_name("sent")

    @overnight.effect
    {how} post(text: str, idempotency_key: str) -> str:
        with sent.open("a") as file:
            file.write(idempotency_key + "\\n")
        return text

    @post.status_check
    def found(text: str, idempotency_key: str):
        known = sent.exists() and idempotency_key in sent.read_text()
        return overnight.Done(None, text) if known else overnight.NOT_DONE

    if __name__ == "__main__":
        with open_store(sys.argv[1]) as store, ExternalJob(store, "nightly", "default", "nightly", ""):
            post.run("hello")
"""


@pytest.mark.parametrize("how", ["def", "async def"])
async def test_suspended_program_does_not_call_for_a_newer_attempt(
    store: Store, store_url: str, tmp_path: Path, how: str
) -> None:
    """SIGSTOP as the claim is durable; the program is started again and does it; then SIGCONT."""
    path = tmp_path / "sender.py"
    path.write_text(textwrap.dedent(PROGRAM.format(how=how)))

    def start(**environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, str(path), store_url], env=os.environ | environment, stderr=subprocess.PIPE, text=True
        )

    stopped = start(OVERNIGHT_STOP_AT="effect_claimed")
    async with asyncio.timeout(20):
        while Path(f"/proc/{stopped.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            await asyncio.sleep(0.02)
    again = start()
    _, errors = await asyncio.to_thread(again.communicate, None, 20)
    assert again.returncode == 0, errors
    await asyncio.sleep(0.3)
    stopped.send_signal(signal.SIGCONT)
    _, errors = await asyncio.to_thread(stopped.communicate, None, 20)
    assert "attempt 1" in errors
    assert (tmp_path / "sent").read_text().count("\n") == 1
