"""Our side of the step benchmark: jobs of ten steps, J at a time, whole lives (created, leased, run, finished) in one process."""

import argparse
import asyncio
import json
import resource
import tempfile
import time
from pathlib import Path

import uvloop

import overnight
from overnight.jobs import NoModel, Operations, Worker
from overnight.ledger import Ledger
from overnight.store import open_store

STEPS = 10


@overnight.step
async def one(state: int) -> int:
    return state + 1


@overnight.job
async def ten(state: int) -> int:
    for _ in range(STEPS):
        state = await one(state)
    return state


async def measure(url: str, concurrency: int, seconds: float) -> dict[str, float]:
    """Steps per second of finished jobs; every job is read back."""
    with open_store(url) as store:
        worker = Worker(store, NoModel())
        await worker.start()
        operations, finished = Operations(store), []
        until = time.perf_counter() + seconds

        async def lane() -> None:
            while time.perf_counter() < until:
                job = await operations.create(ten, (0,))
                await worker.run_now(job.job_id)
                finished.append(job.job_id)

        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(lane() for _ in range(concurrency)))
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        await worker.stop()
        ledger = Ledger(store)
        for job_id in finished[:: max(1, len(finished) // 50)]:
            job = await ledger.job(job_id)
            assert (job.state, job.result) == ("succeeded", b"10"), job
    steps = len(finished) * STEPS
    return {
        "value": steps / took,
        "cpu_us": cpu / steps * 1e6,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--dsn", default="")
    options.add_argument("--concurrency", type=int, default=1)
    options.add_argument("--seconds", type=float, default=3)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(
            json.dumps(uvloop.run(measure(given.dsn or str(Path(folder) / "l.db"), given.concurrency, given.seconds)))
        )
