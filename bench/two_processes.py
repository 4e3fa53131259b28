"""What a call costs with one gateway process and with two on the same store: CPU time, and calls per second of all together.

    python bench/two_processes.py [--store sqlite postgres] [--seconds 4] [--runs 5]

Each process has 8 connections and 16 jobs of its own. On a machine of two cores the load generators and the upstream want their
part of them, so the calls per second of two processes are a lower bound of what they could do.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import upstream_mock
from gateway import serving, workload
from measure import figure
from postgres import running


def together(name: str, gateways: list[tuple[str, int]], seconds: float) -> tuple[float, float]:
    """Calls per second of all, and CPU microseconds per call, under load at the same time."""
    loads = [
        workload(f"{name} {at}", url, 8, seconds, f"--server-pid={pid}", f"--jobs={name}-{at}")
        for at, (url, pid) in enumerate(gateways)
    ]
    with ThreadPoolExecutor(len(loads)) as pool:
        list(pool.map(lambda each: each.run(), loads))
    outputs = [each.outputs[-1] for each in loads]
    calls = sum(each["requests"] for each in outputs)
    cpu_us = sum(each["server_cpu_us"] * each["requests"] for each in outputs) / calls
    return sum(each.values[-1] for each in loads), cpu_us


@contextmanager
def store(kind: str) -> Iterator[str]:
    with ExitStack() as stack:
        if kind == "postgres":
            yield stack.enter_context(running(0)).url
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-ledger-"))
            yield os.path.join(folder, "ledger.db")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["sqlite", "postgres"], nargs="+", default=["sqlite", "postgres"])
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    for kind in options.store:
        with ExitStack() as stack:
            upstream = stack.enter_context(upstream_mock.running())
            url = stack.enter_context(store(kind))
            gateways = [stack.enter_context(serving(upstream, url, 0)) for _ in range(2)]
            turns = [
                (together("one", gateways[:1], options.seconds), together("two", gateways, options.seconds))
                for _ in range(options.runs)
            ]
        for at, count in enumerate(("one process", "two processes")):
            figure(f"gateway, {kind}, {count}: CPU per call", "µs", [turn[at][1] for turn in turns])
            figure(f"gateway, {kind}, {count}: calls per second", "calls/s", [turn[at][0] for turn in turns])
    return 0


if __name__ == "__main__":
    sys.exit(main())
