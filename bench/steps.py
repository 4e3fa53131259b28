"""Durable steps per second, ours against LangGraph: jobs of ten steps in one process, on both stores.

    python bench/steps.py [--store sqlite] [--jobs 32] [--delay-ms 5] [--seconds 2] [--runs 5]

At 1 and 32 jobs at a time, with flushes as they are and 5 ms longer. Raw commits of the same batching stand beside both. With
one job, nobody who flushes once per step can be faster than they are, so their own ratio to LangGraph is reported as the limit.
"""

import argparse
import sys
from pathlib import Path

import our_steps
import peer_langgraph
from flush_delay import environment
from measure import Workload, compare, ratio
from postgres import running

HERE = Path(__file__).parent
GOALS = {"sqlite": 10, "postgres": 8}


def bench(store: str, jobs: int, delay_ms: float, seconds: float, runs: int, dsn: str | None, url: str | None) -> None:
    # SQLite flushes in the client's process; PostgreSQL's server was started with its own delay.
    env = environment(delay_ms if store == "sqlite" else 0)
    raw = [sys.executable, str(HERE / "raw_commits.py"), "--store", store, "--batch", str(jobs)]
    raw += ["--seconds", str(seconds), *(["--dsn", dsn] if dsn else [])]
    name = f"steps, {store}, {jobs} job{'s' * (jobs > 1)}, +{delay_ms:g} ms"
    ours = Workload("Overnight", our_steps.command(sys.executable, jobs, seconds, url), env)
    langgraph = Workload("LangGraph", peer_langgraph.command(store, jobs, seconds, dsn), env)
    limit = Workload("raw commits", raw, env)
    compare(name, "steps/s", ours, langgraph, limit, runs=runs, goal=GOALS[store])
    if jobs == 1:
        ratio(f"{name}: the limit, raw commits", "commits/s", limit, langgraph)
    if jobs == 1 and delay_ms and max(ours.values) * delay_ms > 1000:
        raise SystemExit(
            f"{max(ours.values):.0f} steps/s at {delay_ms} ms per flush: steps were not durable one by one"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=list(GOALS), nargs="+", default=list(GOALS))
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--delay-ms", type=float, nargs="+", default=[0, 5])
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    for delay_ms in options.delay_ms:
        for jobs in options.jobs:
            if "sqlite" in options.store:
                bench("sqlite", jobs, delay_ms, options.seconds, options.runs, None, None)
            if "postgres" in options.store:
                with running(delay_ms) as server:
                    bench("postgres", jobs, delay_ms, options.seconds, options.runs, server.dsn, server.url)


if __name__ == "__main__":
    main()
