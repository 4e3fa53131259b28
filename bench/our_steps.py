"""Our side of the step benchmark: jobs of ten steps, J at a time, whole lives (created, leased, run, finished) in one process.

    python bench/our_steps.py --concurrency 32                  SQLite in a temporary folder
    python bench/our_steps.py --url postgresql://…              a running PostgreSQL

Value: steps per second of finished jobs. The steps do nothing: this is the cost of durability and nothing else. Every job
that ended is read back: a figure without durable steps behind it is not printed.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

import overnight
from overnight.jobs import NoModel, Operations, Worker
from overnight.ledger import Ledger
from overnight.store import open_store

STEPS = 10


def command(python: str, concurrency: int, seconds: float, url: str | None = None) -> list[str]:
    """The command line of one run, for `measure.Workload`."""
    line = [python, __file__, "--concurrency", str(concurrency), "--seconds", str(seconds)]
    return [*line, "--url", url] if url else line


@overnight.step
async def one(state: int) -> int:
    return state + 1


@overnight.job
async def ten(state: int) -> int:
    for _ in range(STEPS):
        state = await one(state)
    return state


async def measure(url: str, concurrency: int, seconds: float) -> dict[str, Any]:
    with open_store(url) as store:
        worker = Worker(store, NoModel())
        await worker.start()
        operations, finished = Operations(store), list[str]()

        async def job() -> None:
            made = await operations.create(ten, (0,))
            if not await worker.run_now(made.job_id):
                await ended(store, made.job_id)  # the worker's own poll was faster
            finished.append(made.job_id)

        async def lane(until: float) -> None:
            while time.perf_counter() < until:
                await job()

        await job()
        finished.clear()
        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(lane(began + seconds) for _ in range(concurrency)))
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        await worker.stop()
        await read_back(store, finished)
    steps = len(finished) * STEPS
    return {"value": steps / took, "unit": "steps/s", "jobs": len(finished), "cpu_us": cpu / steps * 1e6}


async def ended(store: Any, job_id: str) -> None:
    async for _ in Ledger(store).follow(job_id, every_s=0.001):
        continue


async def read_back(store: Any, job_ids: list[str]) -> None:
    """Every job's result, and of each twentieth job every step."""
    ledger = Ledger(store)
    for number, job_id in enumerate(job_ids):
        job = await ledger.job(job_id)
        if (job.state, job.result) != ("succeeded", b"%d" % STEPS):
            raise SystemExit(f"{job_id} was not stored: {job.state} {job.result}")
        if number % 20 == 0:
            committed = [each for each in await ledger.events(job_id) if each.facts.event == "step_committed"]
            if [each.content for each in committed] != [b"%d" % (n + 1) for n in range(STEPS)]:
                raise SystemExit(f"{job_id} has other steps than it ran: {committed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of a running PostgreSQL")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.url or str(Path(folder) / "ledger.db")
        print(json.dumps(uvloop.run(measure(url, options.concurrency, options.seconds))))


if __name__ == "__main__":
    main()
