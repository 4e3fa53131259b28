"""Ledger appends against raw commits with the same batching: 16 writers, 500-byte events, both stores.

    python bench/appends.py [--writers 16] [--delay-ms 0 5] [--seconds 2] [--runs 5]

The raw side commits as many rows at once as there are writers, into one plain table, with no job rows, no locks and nothing
decided. On PostgreSQL it does so in two ways: `executemany` (one statement per row, pipelined) and one `unnest`.
"""

import argparse
import sys
from pathlib import Path

from flush_delay import environment
from measure import Workload, compare, ratio
from postgres import running

HERE = Path(__file__).parent
GOAL = 0.5


def ours(writers: int, seconds: float, env: dict[str, str], url: str | None = None) -> Workload:
    line = [sys.executable, str(HERE / "our_appends.py"), "--writers", str(writers), "--seconds", str(seconds)]
    return Workload("Overnight", [*line, "--url", url] if url else line, env)


def raw(name: str, writers: int, seconds: float, env: dict[str, str], *more: str) -> Workload:
    line = [sys.executable, str(HERE / "raw_commits.py"), "--batch", str(writers), "--seconds", str(seconds), *more]
    return Workload(name, line, env)


def sqlite(writers: int, delay_ms: float, seconds: float, runs: int) -> None:
    env = environment(delay_ms)
    against = raw("raw commits", writers, seconds, env, "--store", "sqlite")
    name = f"appends, sqlite, {writers} writers, +{delay_ms:g} ms"
    compare(name, "events/s", ours(writers, seconds, env), against, runs=runs, goal=GOAL)


def postgres(writers: int, delay_ms: float, seconds: float, runs: int) -> None:
    env = environment()
    with running(delay_ms) as server:
        more = ("--store", "postgres", "--dsn", server.dsn)
        mine = ours(writers, seconds, env, server.url)
        plain = raw("raw commits, executemany", writers, seconds, env, *more)
        sets = raw("raw commits, unnest", writers, seconds, env, *more, "--insert", "unnest")
        name = f"appends, postgres, {writers} writers, +{delay_ms:g} ms"
        compare(name, "events/s", mine, plain, sets, runs=runs, goal=GOAL)
        ratio(name, "events/s", mine, sets, GOAL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["sqlite", "postgres"], nargs="+", default=["sqlite", "postgres"])
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--delay-ms", type=float, nargs="+", default=[0, 5])
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    for delay_ms in options.delay_ms:
        for store in options.store:
            {"sqlite": sqlite, "postgres": postgres}[store](options.writers, delay_ms, options.seconds, options.runs)


if __name__ == "__main__":
    main()
