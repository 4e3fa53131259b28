"""Parked jobs: what they cost a worker in memory, and how soon they wake.

    python bench/parked.py [--store sqlite] [--jobs 1000 4000 10000] [--wakes 300] [--runs 3]

* memory: one `overnight worker` runs and parks 1,000, then 4,000, then 10,000 jobs that wait for a person; its resident
  memory at each, and the slope in bytes per parked job. A second worker, started where all are parked already, is shown.
* wake: with all of them parked, this process decides reviews one by one; from before the decision to the job's next event,
  and to the first step after the approval. Timers: from the moment a sleep is due to its `timer_fired`.
* up: from starting `overnight up` to the first 200 of /healthz.
"""

import argparse
import asyncio
import gc
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import parked_jobs
import postgres
import psutil
import uvloop
from measure import figure

from overnight.jobs import Decision, JobFunction, Operations
from overnight.ledger import LEDGER_SQL, Ledger
from overnight.reviews import list_reviews
from overnight.store import Store, open_store

HERE = Path(__file__).parent
AT_ONCE = 256
SETTLE_S = 2.0
SLEEP_S = 3.0
MOST_BYTES_PER_JOB = (
    500  # our reading of "nothing": one idle task with its frames and its history takes several thousand
)
MOST_WAKE_MS = 100
MOST_UP_S = 3
NOWHERE = "http://127.0.0.1:9/v1"  # no job here calls a model; a worker told of a provider starts none of its own


@contextmanager
def store_url(store: str) -> Iterator[tuple[str, str]]:
    """A home and the URL of a fresh store."""
    with tempfile.TemporaryDirectory() as home:
        if store == "sqlite":
            yield home, str(Path(home) / "ledger.db")
        else:
            with postgres.running() as server:
                yield home, server.url


def environment(home: str, url: str) -> dict[str, str]:
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"OVERNIGHT_HOME": home, "OVERNIGHT_DATABASE_URL": url, "PYTHONPATH": paths}


@contextmanager
def worker(home: str, url: str) -> Iterator[psutil.Process]:
    """An `overnight worker` process that is ready."""
    line = [sys.executable, "-m", "overnight", "worker", "--jobs", "parked_jobs", "--offline-base-url", NOWHERE]
    process = subprocess.Popen(line, env=environment(home, url), cwd=home, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit("the worker did not start")
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def create(store: Store, function: JobFunction[..., bool], arguments: Sequence[float]) -> list[str]:
    operations, made = Operations(store), list[str]()
    for start in range(0, len(arguments), AT_ONCE):
        rows = [operations.create(function, (each,)) for each in arguments[start : start + AT_ONCE]]
        made += [job.job_id for job in await asyncio.gather(*rows)]
    return made


async def in_state(store: Store, state: str, count: int) -> None:
    """Return when `count` jobs are in that state."""
    deadline = time.monotonic() + 180
    while dict(await store.read(LEDGER_SQL["count_job_states"], {"tenant_id": ""})).get(state, 0) < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"the jobs did not become {state}")
        await asyncio.sleep(0.1)


def slope(counts: Sequence[int], sizes: Sequence[float]) -> float:
    return statistics.linear_regression(counts, sizes).slope


async def memory(store: Store, process: psutil.Process, counts: Sequence[int]) -> list[int]:
    """Park up to each count in turn; the worker's resident bytes when it has come to rest."""
    sizes: list[int] = []
    for before, count in zip([0, *counts], counts, strict=False):
        await create(store, parked_jobs.asks, range(before, count))
        await in_state(store, "parked", count)
        await asyncio.sleep(SETTLE_S)
        sizes.append(process.memory_info().rss)
    return sizes


async def decided_wakes(store: Store, wakes: int) -> tuple[list[float], list[float]]:
    """ms from before a decision to the job's next event after it, and to the step that follows the approval."""
    operations, ledger = Operations(store), Ledger(store)
    asked: list[tuple[str, int]] = []
    for review in random.Random(wakes).sample(await list_reviews(store, most=20_000), wakes):
        began = time.time_ns() // 1000
        await operations.decide(review.review_id, Decision("approve", "bench"))
        asked.append((review.job_id, began))
        await asyncio.sleep(random.uniform(0.01, 0.04))
    await in_state(store, "succeeded", wakes)
    following: list[float] = []
    stepped: list[float] = []
    for job_id, began in asked:
        events = await ledger.events(job_id)
        names = [event.facts.event for event in events]
        following.append((events[names.index("review_decided") + 1].at - began) / 1000)
        stepped.append((events[names.index("step_committed")].at - began) / 1000)
    return following, stepped


async def timer_wakes(store: Store, wakes: int, already: int) -> list[float]:
    """ms from the moment a parked sleep is due to its `timer_fired`."""
    made = await create(store, parked_jobs.sleeps, [SLEEP_S + number * 0.02 for number in range(wakes)])
    await in_state(store, "succeeded", already + wakes)
    late: list[float] = []
    for job_id in made:
        events = {event.facts.event: event for event in await Ledger(store).events(job_id)}
        if "parked" not in events:
            raise SystemExit(f"{job_id} slept without parking: that is not the wake we measure")
        late.append((events["timer_fired"].at - events["timer_set"].facts.detail["due_at"]) / 1000)
    return late


def p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def up_seconds(home: str, url: str) -> float:
    """From starting `overnight up` to the first 200 of /healthz."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "overnight", "up", "--port", str(port)]
    began = time.perf_counter()
    process = subprocess.Popen(line, env=environment(home, url), cwd=home, stdout=subprocess.DEVNULL)
    try:
        while time.perf_counter() - began < 30:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1) as answer:
                    if answer.status == 200:
                        return time.perf_counter() - began
            except (urllib.error.URLError, OSError):
                time.sleep(0.01)
        raise SystemExit("overnight up did not answer within 30 s")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


async def one_run(name: str, counts: Sequence[int], wakes: int) -> tuple[float, float, float, float]:
    with store_url(name) as (home, url), open_store(url) as store:
        with worker(home, url) as process:
            sizes = await memory(store, process, counts)
            decided, stepped = await decided_wakes(store, wakes)
            timers = await timer_wakes(store, wakes, wakes)
        per_job = slope(counts, sizes)
        with worker(home, url) as process:
            await asyncio.sleep(SETTLE_S)
            fresh = process.memory_info().rss
    shown = ", ".join(f"{count:,}: {size / 1e6:.1f} MB" for count, size in zip(counts, sizes, strict=True))
    print(f"{name}: parked {shown}; {per_job:.0f} bytes per job; a worker started afterwards {fresh / 1e6:.1f} MB")
    for what, values in (("decided, next event", decided), ("decided, next step", stepped), ("timer", timers)):
        print(f"{name}: {what}: p50 {statistics.median(values):.1f} ms  p99 {p99(values):.1f}  max {max(values):.1f}")
    return per_job, p99(decided), p99(stepped), p99(timers)


async def bench(name: str, counts: Sequence[int], wakes: int, runs: int) -> None:
    results = []
    for _ in range(runs):
        results.append(await one_run(name, counts, wakes))
        gc.collect()
    memory_slope, decided, stepped, timers = zip(*results, strict=True)
    most = max(counts)
    figure(f"memory per parked job, {name}, up to {most:,}", "bytes", memory_slope, at_most=MOST_BYTES_PER_JOB)
    figure(f"wake p99 by decision, next event, {name}, {most:,} parked", "ms", decided, at_most=MOST_WAKE_MS)
    figure(f"wake p99 by decision, next step, {name}, {most:,} parked", "ms", stepped, at_most=MOST_WAKE_MS)
    figure(f"wake p99 by timer, {name}, {most:,} parked", "ms", timers, at_most=MOST_WAKE_MS)
    ups = []
    for _ in range(runs):
        with store_url(name) as (home, url):
            ups.append(up_seconds(home, url))
    figure(f"overnight up to /healthz, {name}", "s", ups, at_most=MOST_UP_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["sqlite", "postgres"], nargs="+", default=["sqlite", "postgres"])
    parser.add_argument("--jobs", type=int, nargs="+", default=[1000, 4000, 10_000])
    parser.add_argument("--wakes", type=int, default=300)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    for store in options.store:
        uvloop.run(bench(store, options.jobs, options.wakes, options.runs))


if __name__ == "__main__":
    main()
