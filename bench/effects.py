"""Effects in process: claim, call and commit of effects that do nothing, by jobs of one worker.

    python bench/effects.py                                  32 jobs at a time, SQLite in a temporary folder
    python bench/effects.py --jobs 1 --rules 20              one caller, 20 rules that match nothing
    python bench/effects.py --url postgresql://…             a running PostgreSQL

Value: committed effects per second. Each is two transactions (the claim, the commit) with its two events; effects of jobs that
run at the same time share flushes. The effects of the last job are read back. Prints one line of JSON a run.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

import overnight
from overnight.brain import ToolPolicy
from overnight.domain.globs import Names
from overnight.domain.tools import ToolConditions, ToolRule, ValueCondition
from overnight.jobs import NoModel, Operations, Worker
from overnight.ledger import Ledger
from overnight.store import Store, open_store

EFFECTS = 20


@overnight.effect
async def refund(payment: str, usd: int) -> str:
    return f"{payment}: {usd}"


@overnight.job
async def refunds(first: int) -> None:
    for number in range(first, first + EFFECTS):
        began = time.perf_counter()
        await refund(f"pay_{number}", 40)
        latencies.append(time.perf_counter() - began)


latencies: list[float] = []


def rules(count: int) -> ToolPolicy | None:
    """Rules whose conditions are evaluated and not met."""
    large = ValueCondition(("usd",), "gt", 100)
    conditions = ToolConditions(tool=Names(("refund",)), arguments=(large,))
    return (
        ToolPolicy({}, [ToolRule(name=f"r{n}", do="approve", when=conditions) for n in range(count)]) if count else None
    )


async def measure(url: str, jobs: int, seconds: float, count: int) -> dict[str, Any]:
    latencies.clear()
    policy = rules(count)
    with open_store(url) as store:
        worker = Worker(store, NoModel(), tool_rules=lambda: policy)
        await worker.start()
        operations, done = Operations(store), 0
        last = ""

        async def lane(until: float) -> None:
            nonlocal done, last
            while time.perf_counter() < until:
                made = await operations.create(refunds, (done,))
                if not await worker.run_now(made.job_id):
                    async for _ in Ledger(store).follow(made.job_id, every_s=0.001):
                        continue
                done, last = done + EFFECTS, made.job_id

        await lane(time.perf_counter() + 0.2)
        latencies.clear()
        done, began, cpu = 0, time.perf_counter(), time.process_time()
        await asyncio.gather(*(lane(began + seconds) for _ in range(jobs)))
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        await worker.stop()
        await read_back(store, last)
    return {
        "bench": "effects",
        "jobs": jobs,
        "rules": count,
        "effects_per_s": round(done / took),
        "median_ms": round(statistics.median(latencies) * 1000, 2),
        "cpu_us": round(cpu / done * 1e6),
    }


async def read_back(store: Store, job_id: str) -> None:
    names = [event.facts.event for event in await Ledger(store).events(job_id)]
    if names.count("tool_called") != EFFECTS or names.count("tool_succeeded") != EFFECTS:
        raise SystemExit(f"{job_id} has not {EFFECTS} committed effects")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rules", type=int, nargs="+", default=[0, 20])
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--url")
    options = parser.parse_args()
    for jobs in options.jobs:
        for count in options.rules:
            for _ in range(options.runs):
                with tempfile.TemporaryDirectory() as folder:
                    url = options.url or str(Path(folder) / "ledger.db")
                    print(json.dumps(uvloop.run(measure(url, jobs, options.seconds, count))), flush=True)


if __name__ == "__main__":
    main()
