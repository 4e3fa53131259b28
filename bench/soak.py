"""Does the gateway's memory stay flat? Hundreds of thousands of calls, its resident set looked at all along.

    python bench/soak.py [--calls 500000] [--store sqlite]

One gateway process, 16 connections, each call a job of its own: what is kept per job shows here. The slope is that of a line
through the second half (the first fills caches that are bounded), in bytes per call; noise is the residual of that line.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack

import psutil
import upstream_mock
from gateway import serving
from measure import figure

MOST_BYTES = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500_000)
    parser.add_argument("--runs", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-ledger-"))
        upstream = stack.enter_context(upstream_mock.running())
        url, pid = stack.enter_context(serving(upstream, os.path.join(folder, "ledger.db"), 0))
        points = watched(url, pid, upstream, options.calls)
    second = points[len(points) // 2 :]
    slope, at = statistics.linear_regression([calls for calls, _ in second], [size for _, size in second])
    noise = statistics.pstdev(size - (slope * calls + at) for calls, size in second)
    print(
        f"{points[-1][0]:,} calls; resident {points[0][1] / 1e6:.1f} MB at the start, {points[-1][1] / 1e6:.1f} at the end,"
    )
    print(
        f"noise {noise / 1e6:.2f} MB, growth over the second half {slope * (second[-1][0] - second[0][0]) / 1e6:.2f} MB"
    )
    figure("gateway memory: slope over the second half", "bytes/call", [slope], at_most=MOST_BYTES)
    return 0


def watched(url: str, pid: int, upstream: str, most: int) -> list[tuple[int, int]]:
    """(calls made, bytes resident) every two seconds until `most` calls were made."""
    points: list[tuple[int, int]] = []
    stop = threading.Event()

    def drive() -> None:
        for _ in itertools.count():
            command = [sys.executable, "load.py", url, "--connections", "16", "--seconds", "20", "--warm-up", "0"]
            subprocess.run(
                command, cwd=os.path.dirname(os.path.abspath(__file__)), stdout=subprocess.DEVNULL, check=True
            )
            if stop.is_set():
                return

    driver = threading.Thread(target=drive)
    driver.start()
    process = psutil.Process(pid)
    while not points or points[-1][0] < most:
        time.sleep(2)
        points.append((upstream_mock.count(upstream), process.memory_info().rss))
        if sys.stderr.isatty():
            print(f"\r{points[-1][0]:>9,} calls  {points[-1][1] / 1e6:7.1f} MB", end="", file=sys.stderr)
    stop.set()
    driver.join()
    return points


if __name__ == "__main__":
    sys.exit(main())
