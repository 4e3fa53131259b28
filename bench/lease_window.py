"""The time between the last check of a lease and the first statement of the call that it guards.

    python bench/lease_window.py --runs 3

A process that is stopped in there goes on with a call on a lease that it may have lost: nothing can be done about that, so it is
to be short. A real worker runs effects, sync and async; the worker's own clock tells when it was read last in the same thread.
Prints one line of JSON a run.
"""

import argparse
import asyncio
import json
import tempfile
import threading
import time
from pathlib import Path

import overnight
from overnight.jobs import NoModel, Operations, Worker
from overnight.jobs.lease import uptime_us
from overnight.ledger import Ledger
from overnight.store import open_store

_read = threading.local()
_windows: dict[str, list[int]] = {"sync": [], "async": []}


def _uptime() -> int:
    found = uptime_us()
    _read.at = time.perf_counter_ns()
    return found


@overnight.effect
def in_a_thread(number: int) -> int:
    _windows["sync"].append(time.perf_counter_ns() - _read.at)
    return number


@overnight.effect
async def in_the_loop(number: int) -> int:
    _windows["async"].append(time.perf_counter_ns() - _read.at)
    return number


@overnight.job
async def acts(count: int) -> None:
    for start in range(0, count, 20):
        numbers = range(start, start + 20)
        await asyncio.gather(*map(in_a_thread, numbers), *map(in_the_loop, numbers))


async def run(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder, open_store(str(Path(folder) / "ledger.db")) as store:
        worker = Worker(store, NoModel(), uptime=_uptime)
        await worker.start()
        job = await Operations(store).create(acts, (count,))
        while (await Ledger(store).job(job.job_id)).state != "succeeded":
            await asyncio.sleep(0.05)
        await worker.stop()


def figures(kind: str) -> dict[str, object]:
    found = sorted(_windows[kind])
    at = {"median": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}
    shown = {
        f"{name}_us": round(found[min(len(found) - 1, int(part * len(found)))] / 1000, 1) for name, part in at.items()
    }
    above = sum(each > 1_000_000 for each in found)
    return {"bench": "lease_window", "effect": kind, "calls": len(found), **shown, "above_1_ms": above}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args()
    for _ in range(options.runs):
        for found in _windows.values():
            found.clear()
        asyncio.run(run(options.calls))
        for kind in _windows:
            print(json.dumps(figures(kind)), flush=True)


if __name__ == "__main__":
    main()
