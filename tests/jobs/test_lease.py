"""A worker acts only on a valid lease: after a stop, a machine sleep or a clock jump it does not."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import overnight
from job_runs import rest, story, working
from overnight.domain import FINISHED
from overnight.gateway import JobCalls
from overnight.jobs import Operations, Worker, load_job
from overnight.jobs.lease import Clocks, Lease, LeaseLost
from overnight.ledger import Ledger
from overnight.store import Store, open_store
from overnight.testing import SpawnedProvider
from serving import serving

S = 1_000_000


class Time:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.wall, self.up = 1_750_000_000 * S, 500 * S

    def passes(self, seconds: float, *, asleep: bool = False) -> None:
        self.up += round(seconds * S)
        self.wall += 0 if asleep else round(seconds * S)


@pytest.fixture
def time() -> Time:
    return Time()


def a_lease(time: Time) -> tuple[Clocks, Lease]:
    clocks = Clocks(lambda: time.wall, lambda: time.up)
    return clocks, Lease(clocks, 15 * S, clocks.read())


def test_lease_lasts_from_the_acknowledged_renewal(time: Time) -> None:
    clocks, lease = a_lease(time)
    time.passes(14.9)
    sent = clocks.read()
    lease.check()
    time.passes(0.05)
    lease.renewed(sent)  # acknowledged only now; it counts from when it was sent
    time.passes(14.9)
    lease.check()
    time.passes(0.1)
    with pytest.raises(LeaseLost):
        lease.check()


def test_late_acknowledgement_renews_nothing(time: Time) -> None:
    clocks, lease = a_lease(time)
    sent = clocks.read()
    time.passes(19)
    lease.renewed(sent)
    lease.renewed(clocks.read())
    with pytest.raises(LeaseLost):
        lease.check()


@pytest.mark.parametrize(
    ("wall_s", "up_s"), [(15, 0), (0, 15), (20, 20), (-1, 5), (-3600, 1)], ids=["jump", "sleep", "stop", "back", "hour"]
)
def test_larger_clock_difference_or_setback_ends_the_lease(time: Time, wall_s: int, up_s: int) -> None:
    _, lease = a_lease(time)
    time.wall += wall_s * S
    time.up += up_s * S
    assert lease.is_lost()
    time.wall -= wall_s * S
    time.up -= up_s * S
    assert lease.is_lost(), "once lost it stays lost"


def test_small_clock_setback_is_detected(time: Time) -> None:
    clocks, lease = a_lease(time)
    time.passes(5)
    clocks.read()
    time.wall -= 2 * S
    assert lease.is_lost()


# ── a worker whose time jumps between the claim and the call ─────────────────────────────────────────────────────────

arrived: list[str] = []


@overnight.effect(timeout_s=5)
def post(text: str, idempotency_key: str) -> str:
    """A sync effect: between its claim and its call it waits for a thread."""
    arrived.append(idempotency_key)
    return text


@post.status_check
def find_post(text: str, idempotency_key: str) -> Any:
    return overnight.Done(None, text) if idempotency_key in arrived else overnight.NOT_DONE


@overnight.job
async def posts() -> str:
    return await post("hello")


@pytest.mark.parametrize("jump", ["asleep", "wall forward", "wall back"])
async def test_claimed_effect_is_not_called_after_a_clock_jump(store_url: str, time: Time, jump: str) -> None:
    arrived.clear()
    busy = threading.Event()
    with open_store(store_url, lambda: time.wall) as store, ThreadPoolExecutor(1) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        job = await Operations(store).create(posts)
        async with working(store, uptime=lambda: time.up):
            threads.submit(busy.wait)
            try:
                async with asyncio.timeout(10):
                    while "tool_called" not in await story(store, job.job_id):
                        await asyncio.sleep(0.01)
                assert arrived == []
                if jump == "asleep":
                    time.passes(19, asleep=True)
                else:
                    time.wall += 19 * S if jump == "wall forward" else -S
            finally:
                busy.set()
            job = await rest(store, job.job_id)
            names = await story(store, job.job_id)
    assert (job.state, len(arrived)) == ("succeeded", 1)
    assert names.index("worker_lost") < names.index("tool_unknown") < names.index("tool_succeeded")
    assert names.count("tool_called") == 2, "claimed again, since the first claim was known not to be done"


# ── model calls ──────────────────────────────────────────────────────────────────────────────────────────────────────


@overnight.job
async def chats() -> str:
    return (await overnight.chat("hello")).text


class Sleeper:
    """The gateway, on a machine that falls asleep once as soon as it is asked."""

    def __init__(self, calls: JobCalls, time: Time) -> None:
        self._calls, self._time, self._slept = calls, time, False

    async def call(self, request: Any) -> Any:
        if not self._slept:
            self._slept = True
            self._time.passes(19, asleep=True)
        return await self._calls.call(request)

    async def settle_lost(self, job: Any) -> int:
        return await self._calls.settle_lost(job)


async def test_model_is_not_called_on_an_expired_lease(store: Store, time: Time, provider: SpawnedProvider) -> None:
    provider.reset()
    async with serving(store, provider) as served:
        worker = Worker(store, Sleeper(JobCalls(served.gateway), time), uptime=lambda: time.up)
        await worker.start()
        try:
            job = await rest(store, (await Operations(store).create(chats)).job_id)
        finally:
            await worker.stop()
    events = await Ledger(store).events(job.job_id)
    assert job.state == "succeeded"
    assert provider.stats()["paid_calls"] == 1
    calls = [event.facts.call_id for event in events if event.facts.event == "model_called"]
    ends = [event for event in events if event.facts.event in {"model_succeeded", "model_failed", "model_lost"}]
    assert [event.facts.call_id for event in ends] == calls
    assert len(calls) == 2
    never = ends[0].facts
    assert (never.event, never.cost_microusd, never.error and never.error.error_class) == (
        "model_failed",
        0,
        "never_sent",
    )


# ── once for real ────────────────────────────────────────────────────────────────────────────────────────────────────

PROGRAM = """
    import asyncio, sys
    from pathlib import Path
    import overnight
    from overnight.jobs import NoModel, Worker
    from overnight.store import open_store

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

    @overnight.job
    async def posts() -> str:
        return await post("hello")

    async def main():
        with open_store(sys.argv[1]) as store:
            worker = Worker(store, NoModel(), lease_s=1.0)
            await worker.start()
            print("ready", flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
            await worker.stop()

    if __name__ == "__main__":
        asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["def", "async def"])
async def test_a_worker_stopped_between_claim_and_call_does_not_call(
    store: Store, store_url: str, tmp_path: Path, how: str
) -> None:
    """SIGSTOP as the claim is durable, past the lease; another worker does it meanwhile, and then SIGCONT."""
    program = tmp_path / "sender.py"
    program.write_text(textwrap.dedent(PROGRAM.format(how=how)))
    stopped = await started(program, store_url, OVERNIGHT_STOP_AT="effect_claimed")
    job = await Operations(store).create(load_job(f"{program}:posts"))
    await until_stopped(stopped)
    names = await story(store, job.job_id)
    assert names[-1] == "tool_called"
    await asyncio.sleep(1.3)
    other = await started(program, store_url)
    try:
        job = await rest(store, job.job_id, *FINISHED)
        stopped.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.7)
        assert stopped.poll() is None
    finally:
        for process in (stopped, other):
            process.send_signal(signal.SIGCONT)
            await asyncio.to_thread(process.communicate, "", 20)
    assert (job.state, (tmp_path / "sent").read_text().count("\n")) == ("succeeded", 1)
    assert (stopped.returncode, other.returncode) == (0, 0)


async def started(program: Path, store_url: str, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(program), store_url]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=os.environ | environment, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
    return process


async def until_stopped(process: "subprocess.Popen[str]") -> None:
    async with asyncio.timeout(20):
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            await asyncio.sleep(0.02)
