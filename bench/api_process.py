"""How long a running stream pauses while the events of a large job are loaded: with an `api` process, and without one.

    python bench/api_process.py [--runs 5] [--events 7500]

A stream with a piece every 40 ms runs through the gateway. In the middle of it all events of the job are read, by four clients at
once. Figure: the longest time between two pieces. Without requests it stands beside them.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import upstream_mock
from measure import figure
from pauses import BETWEEN_MS, CHUNKS, longest_gap_ms

from overnight.domain import Event, new_id
from overnight.ledger import Append, NewJob, open_job
from overnight.store import Unit, open_store

MOST_MS = 20 + BETWEEN_MS
"""The gap between two pieces without any pause, and the pause allowed on top of it."""


class Fill:
    """A job with many events."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id

    def locks(self) -> list[Any]:
        from overnight.ledger import JOB

        return [(JOB, self.job_id)]

    def decide(self, unit: Unit) -> None:
        open_job(unit, NewJob(self.job_id, "default", "python", "large", state="running"))


def fill(path: str, count: int) -> str:
    job_id = new_id("job")
    with open_store(path) as store:

        async def write() -> None:
            await store.commit(Fill(job_id))
            events = (Append(job_id, Event("value_recorded", name=f"value {number}")) for number in range(count))
            await asyncio.gather(*(store.commit(each) for each in events))

        asyncio.run(write())
    return job_id


@contextmanager
def process(home: str, *words: str) -> Iterator[dict[str, Any]]:
    env = os.environ | {"OVERNIGHT_HOME": home}
    running = subprocess.Popen([sys.executable, "-m", "overnight", *words], env=env, cwd=home, stdout=-1, text=True)
    try:
        assert running.stdout is not None
        yield json.loads(running.stdout.readline())
    finally:
        running.terminate()
        running.wait()


async def gap_ms(port: int, job_id: str, number: int, clients: int) -> float:
    stream = asyncio.create_task(longest_gap_ms(f"http://127.0.0.1:{port}/v1/chat/completions", number))
    await asyncio.sleep(0.5)

    def load() -> None:
        after = 0
        while True:
            with urlopen(f"http://127.0.0.1:{port}/api/v1/jobs/{job_id}/events?after={after}&limit=1000") as answer:
                events = json.loads(answer.read())["events"]
            if not events:
                return
            after = events[-1]["seq"]

    began = time.perf_counter()
    await asyncio.gather(*(asyncio.to_thread(load) for _ in range(clients)))
    if time.perf_counter() - began > CHUNKS * BETWEEN_MS / 1000 - 1:
        print("the requests took longer than the stream", file=sys.stderr)
    return await stream


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--events", type=int, default=7500)
    options = parser.parse_args()
    for kind in ("with an api process", "without one"):
        with ExitStack() as stack:
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-api-"))
            job_id = fill(str(Path(home) / "ledger.db"), options.events)
            upstream = stack.enter_context(upstream_mock.running(chunks=CHUNKS, between_ms=BETWEEN_MS))
            offline = ("--offline-base-url", f"{upstream}/v1")
            more: tuple[str, ...] = ()
            if kind.startswith("with an"):
                socket = f"{home}/api.sock"
                stack.enter_context(process(home, "api", "--socket", socket, *offline))
                more = ("--api-socket", socket)
            port = stack.enter_context(process(home, "gateway", "--port", "0", *more, *offline))["port"]
            for clients in (0, 4):
                gaps = [asyncio.run(gap_ms(port, job_id, run, clients)) for run in range(options.runs)]
                most = MOST_MS if more and clients else None
                title = f"longest gap of a stream with a piece every {BETWEEN_MS} ms, {clients} readers, {kind}"
                figure(title, "ms", gaps, at_most=most)
    return 0


if __name__ == "__main__":
    sys.exit(main())
