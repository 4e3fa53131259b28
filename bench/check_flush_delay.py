"""Proof that the added flush delay reaches every store we measure: commit latency with 0 and 5 ms, and the difference.

python bench/check_flush_delay.py        exit status 1 if a commit does not become slower by at least the delay
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
from flush_delay import environment
from postgres import running

DELAY_MS = 5.0
COMMITS = 200
TABLE = "CREATE TABLE t (a INTEGER)"
INSERT = "INSERT INTO t VALUES (1)"


def median_ms(commit: Callable[[], object]) -> float:
    """Median latency of one commit, in ms."""
    taken: list[float] = []
    for _ in range(COMMITS):
        began = time.perf_counter()
        commit()
        taken.append((time.perf_counter() - began) * 1e3)
    return statistics.median(taken)


def sqlite(driver: str, path: str) -> float:
    """Runs in a process of its own, one driver in each: two SQLite libraries in one process drop each other's locks."""
    if driver == "apsw":
        import apsw

        run = apsw.Connection(path).execute
    else:
        import sqlite3

        run = sqlite3.connect(path, isolation_level=None).execute
    run("PRAGMA journal_mode=WAL")
    run("PRAGMA synchronous=FULL")
    run(TABLE)
    return median_ms(lambda: run(INSERT))


def sqlite_in_process(driver: str, delay_ms: float) -> float:
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, __file__, driver, str(Path(home) / "t.db")]
        done = subprocess.run(command, env=environment(delay_ms), check=True, capture_output=True, text=True)
    return float(done.stdout)


def postgresql(delay_ms: float) -> float:
    with running(delay_ms) as server, psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(TABLE)
        return median_ms(lambda: connection.execute(INSERT))


def main() -> int:
    stores: dict[str, Callable[[float], float]] = {
        "apsw": lambda delay: sqlite_in_process("apsw", delay),
        "sqlite3 (peers only)": lambda delay: sqlite_in_process("sqlite3", delay),
        "PostgreSQL": postgresql,
    }
    missed = 0
    print(f"{'median commit, ms':<22}{'0 ms':>8}{f'{DELAY_MS:g} ms':>8}{'added':>8}")
    for name, measure in stores.items():
        plain, delayed = measure(0), measure(DELAY_MS)
        reached = delayed - plain >= DELAY_MS * 0.95
        missed += not reached
        print(f"{name:<22}{plain:8.3f}{delayed:8.3f}{delayed - plain:8.3f}  {'' if reached else 'NOT REACHED'}")
    return min(missed, 1)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(sqlite(sys.argv[1], sys.argv[2]))
    else:
        sys.exit(main())
