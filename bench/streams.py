"""What open streams cost: memory of 1,000 that say nothing for a while, and CPU and the first piece of streams that do.

    python bench/streams.py [--streams 1000]

One gateway process on SQLite; the upstream waits five seconds between the pieces of an answer, so all streams are open and idle
at once. Memory is the resident set of the gateway with them, less that of the same gateway before them (after a warm-up of the
same kind, so that what Python keeps once is not counted as the streams').

Then 16 streams at the pace of a model: a piece of text every 20 ms, the first after as long. What a client waits longer for its
first piece than without a gateway, and the CPU time of a stream. (`gateway.py` has streams without a pace.)
"""

import argparse
import asyncio
import os
import resource
import sys
import tempfile
from urllib.parse import urlsplit

import load
import psutil
import upstream_mock
from gateway import MOST_ADDED_STREAM_MS, MOST_STREAM_CPU_US, serving, workload
from measure import figure

MOST_MB = 100
PACE_MS = 20


async def hold(url: str, count: int, prefix: str, pid: int) -> float:
    """Open `count` streams, each a job of its own; megabytes resident once all have their first piece. Then read to the end."""
    parts = urlsplit(url)

    async def opened(number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        body = load.chat_body(stream=True)
        writer.write(load.request(url, body, {"x-job-id": f"{prefix}-{number}", "connection": "close"}))
        while b"data:" not in await reader.readline():
            pass
        return reader, writer

    streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    for start in range(0, count, 50):
        streams += await asyncio.gather(*(opened(number) for number in range(start, min(start + 50, count))))
    resident = psutil.Process(pid).memory_info().rss / 1e6
    for reader, writer in streams:
        text = await reader.read()
        assert b"[DONE]" in text, text[-300:]
        writer.close()
    return resident


def at_a_pace(runs: int) -> None:
    """16 streams, each with a piece every `PACE_MS` milliseconds."""
    added: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-ledger-") as folder:
        paced = upstream_mock.running(latency_ms=PACE_MS, between_ms=PACE_MS)
        with paced as upstream, serving(upstream, os.path.join(folder, "ledger.db"), 0) as (url, pid):
            flags = ("--stream", "--spread-s=0.44")  # the length of an answer
            mine = workload("Overnight", url, 16, 4, f"--server-pid={pid}", *flags)
            direct = workload("upstream directly", f"{upstream}/v1/chat/completions", 16, 4, *flags)
            for _ in range(runs):
                mine.run()
                direct.run()
                added.append(mine.outputs[-1]["first_byte_p50_ms"] - direct.outputs[-1]["first_byte_p50_ms"])
    title = f"16 streams, a piece every {PACE_MS} ms"
    figure(f"{title}: added median wait for the first piece", "ms", added, at_most=MOST_ADDED_STREAM_MS)
    cpu = [output["server_cpu_us"] for output in mine.outputs]
    figure(f"{title}: CPU per stream", "µs", cpu, at_most=MOST_STREAM_CPU_US)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    grown: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-ledger-") as folder:
        slow = upstream_mock.running(chunks=3, between_ms=5_000)
        with slow as upstream, serving(upstream, os.path.join(folder, "ledger.db"), 0) as (url, pid):
            asyncio.run(hold(url, 50, "warm", pid))
            for turn in range(options.runs):
                before = psutil.Process(pid).memory_info().rss / 1e6
                grown.append(asyncio.run(hold(url, options.streams, f"turn-{turn}", pid)) - before)
    # Later turns reuse what the first one made the process keep, so the first is the honest one.
    figure(f"{options.streams:,} idle streams: memory, first time", "MB", grown[:1], at_most=MOST_MB)
    figure(f"{options.streams:,} idle streams: memory, again", "MB", grown[1:] or grown, at_most=MOST_MB)
    at_a_pace(options.runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
