"""How long a running stream pauses while the store is locked or stands still: this checkout, and another one.

    python bench/pauses.py [/tmp/before/src] [--runs 3] [--hold-s 2]

A stream with a piece every 40 ms runs through the gateway, and beside it a plain call begins every 50 ms, so that there is always
something to write. In the middle another process takes SQLite's write lock or file lock, locks a PostgreSQL table, or stops the
PostgreSQL server. Figure: the longest time between two pieces. Without trouble it stands beside them.
"""

import argparse
import asyncio
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import apsw
import load
import psutil
import psycopg
import upstream_mock
from checkouts import MINE, checkout, store
from measure import figure

MOST_MS = 100
CHUNKS, BETWEEN_MS = 84, 40
TROUBLES = {
    "sqlite": ("nothing", "write lock", "file lock"),
    "postgres": ("nothing", "locked job", "locked event", "stopped server"),
}


@contextmanager
def trouble(kind: str, url: str) -> Iterator[None]:
    with ExitStack() as stack:
        if kind == "write lock":
            connection = stack.enter_context(closing(apsw.Connection(url)))
            connection.set_busy_timeout(5_000)
            connection.execute("BEGIN IMMEDIATE")
        elif kind == "file lock":
            file = os.open(f"{url}.lock", os.O_RDWR)
            stack.callback(os.close, file)
            fcntl.flock(file, fcntl.LOCK_EX)
        elif kind.startswith("locked"):
            held = stack.enter_context(psycopg.connect(url))
            held.execute(f"LOCK TABLE {kind.split()[1]} IN ACCESS EXCLUSIVE MODE".encode())
        elif kind == "stopped server":
            with psycopg.connect(url) as asked:
                server = psutil.Process(asked.info.backend_pid).parent()
            assert server is not None
            family = [server, *server.children(recursive=True)]
            stack.callback(lambda: [each.send_signal(signal.SIGCONT) for each in family if each.is_running()])
            for each in family:
                if each.is_running():
                    each.send_signal(signal.SIGSTOP)
        yield


async def longest_gap_ms(url: str, number: int) -> float:
    """Of one stream from its first piece to its end."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    headers = {"x-job-id": f"stream-{number}", "connection": "close"}
    writer.write(load.request(url, load.chat_body(stream=True), headers))
    gap, last, pieces = 0.0, 0.0, 0
    while pieces < CHUNKS - 2:  # the last ones wait for the settlement
        line = await reader.readline()
        if line.startswith(b"data:"):
            now = time.perf_counter()
            gap = max(gap, now - last) if pieces else 0.0
            last, pieces = now, pieces + 1
        elif not line:
            raise SystemExit(f"the stream ended after {pieces} pieces")
    writer.close()
    return gap * 1e3


async def others(url: str) -> None:
    """A call every 50 ms; how it ends is not looked at."""
    parts = urlsplit(url)
    tasks: set[asyncio.Task[None]] = set()

    async def call(number: int) -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(load.request(url, load.chat_body(), {"x-job-id": f"other-{number % 8}", "connection": "close"}))
        await reader.read()
        writer.close()

    try:
        for number in range(1_000_000):
            tasks.add(asyncio.create_task(call(number)))
            await asyncio.sleep(0.05)
    finally:
        for task in tasks:
            task.cancel()


async def measured(url: str, store_url: str, kind: str, hold_s: float, number: int) -> float:
    beside = asyncio.create_task(others(url))
    await asyncio.sleep(1)
    stream = asyncio.create_task(longest_gap_ms(url, number))
    await asyncio.sleep(0.4)

    def hold() -> None:
        with trouble(kind, store_url):
            time.sleep(hold_s)

    await asyncio.to_thread(hold)
    gap = await stream
    beside.cancel()
    await asyncio.sleep(1)
    return gap


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, nargs="?", help="the src folder of another version")
    parser.add_argument("--store", choices=list(TROUBLES), nargs="+", default=list(TROUBLES))
    parser.add_argument("--hold-s", type=float, default=2)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    sources = {"this checkout": MINE} | ({str(options.other): options.other} if options.other else {})
    for kind in options.store:
        with ExitStack() as stack:
            upstream = stack.enter_context(upstream_mock.running(chunks=CHUNKS, between_ms=BETWEEN_MS))
            served = {}
            for name, source in sources.items():
                url = stack.enter_context(store(kind))
                served[name] = (stack.enter_context(checkout(source, upstream, url))[0], url)
            for each in TROUBLES[kind]:
                gaps: dict[str, list[float]] = {name: [] for name in served}
                for turn in range(options.runs):
                    for name, (gateway, url) in served.items():
                        gaps[name].append(asyncio.run(measured(gateway, url, each, options.hold_s, turn)))
                for name, values in gaps.items():
                    most = MOST_MS if name == "this checkout" else None
                    figure(f"longest pause of a stream, {kind}, {each}, {name}", "ms", values, at_most=most)
    return 0


if __name__ == "__main__":
    sys.exit(main())
