"""Our side of the append benchmark: writers that each await the append of one 500-byte event after the other to their own job.

    python bench/our_appends.py --writers 16 [--url postgresql://…]

Value: durable events per second. Every job is read back: its count of events and the size of the last one.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from overnight.domain import Event, new_id
from overnight.jobs import CreateJob
from overnight.ledger import Append, Ledger, NewJob
from overnight.store import open_store

BYTES = 500
FILLING = "x" * (BYTES - len(msgspec.json.encode(Event("tool_called", detail={"text": ""}))))


def event() -> Event:
    """Facts whose JSON has BYTES bytes, as the rows of raw_commits have."""
    return Event("tool_called", detail={"text": FILLING})


async def measure(url: str, writers: int, seconds: float) -> dict[str, Any]:
    with open_store(url) as store:
        job_ids = [new_id("job") for _ in range(writers)]
        for job_id in job_ids:
            await store.commit(CreateJob(NewJob(job_id, "default", "foreign", "appends", state="running")))

        async def writer(job_id: str, until: float) -> int:
            seq = 0
            while time.perf_counter() < until:
                seq = await store.commit(Append(job_id, event()))
            return seq - 1  # the first event says that the job was created

        warm = await asyncio.gather(*(writer(job_id, time.perf_counter() + 0.2) for job_id in job_ids))
        began, cpu = time.perf_counter(), time.process_time()
        written = await asyncio.gather(*(writer(job_id, began + seconds) for job_id in job_ids))
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        for job_id, count in zip(job_ids, written, strict=True):
            stored = await Ledger(store).events(job_id)
            if len(stored) != count + 1 or len(msgspec.json.encode(stored[-1].facts)) != BYTES:
                raise SystemExit(f"{job_id}: {len(stored)} events are stored, {count} were acknowledged")
    appended = sum(written) - sum(warm)
    return {"value": appended / took, "unit": "events/s", "cpu_us": cpu / appended * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of a running PostgreSQL")
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.url or str(Path(folder) / "ledger.db")
        print(json.dumps(uvloop.run(measure(url, options.writers, options.seconds))))


if __name__ == "__main__":
    main()
