"""The limit for ledger appends: durable commits of 500-byte rows into one plain table with one index, nothing else.

    python bench/raw_commits.py --store sqlite --batch 32
    python bench/raw_commits.py --store postgres --dsn ... --batch 1

`--batch` rows per commit stand for as many concurrent jobs sharing one group commit. Value: rows per second.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import apsw
import psycopg

TABLE = "CREATE TABLE raw_events (job_id {text} NOT NULL, seq BIGINT NOT NULL, body {bytes} NOT NULL)"
INDEX = "CREATE INDEX raw_events_job ON raw_events (job_id, seq)"
BODY = bytes(range(250)) * 2
JOBS = 64

Row = tuple[str, int, bytes]


def rows(start: int, count: int) -> list[Row]:
    """`count` rows that go round the jobs, each job's `seq` rising."""
    return [(f"job_{n % JOBS:032x}", n // JOBS, BODY) for n in range(start, start + count)]


def timed(commit: Callable[[list[Row]], object], batch: int, seconds: float) -> tuple[int, float]:
    """Commit batches until the time is over; rows committed and seconds taken. The first commit is not counted."""
    commit(rows(0, batch))
    done, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        commit(rows(done + batch, batch))
        done += batch
    return done, elapsed


def sqlite(path: str, batch: int, seconds: float) -> tuple[int, float]:
    connection = apsw.Connection(path)
    for statement in (
        "PRAGMA journal_mode=WAL",
        "PRAGMA synchronous=FULL",
        TABLE.format(text="TEXT", bytes="BLOB"),
        INDEX,
    ):
        connection.execute(statement)

    def commit(batch_rows: list[Row]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO raw_events VALUES (?, ?, ?)", batch_rows)
        connection.execute("COMMIT")

    return timed(commit, batch, seconds)


def postgres(dsn: str, batch: int, seconds: float, insert: str) -> tuple[int, float]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS raw_events")
        connection.execute(TABLE.format(text="TEXT", bytes="BYTEA"))
        connection.execute(INDEX)
        cursor = connection.cursor(binary=True)

        def pipelined(batch_rows: list[Row]) -> None:
            # Under autocommit psycopg sends this as one pipeline with one Sync: one transaction, one round trip.
            cursor.executemany("INSERT INTO raw_events VALUES (%b, %b, %b)", batch_rows)

        def unnested(batch_rows: list[Row]) -> None:
            columns = [list(column) for column in zip(*batch_rows, strict=True)]
            cursor.execute(
                "INSERT INTO raw_events SELECT * FROM unnest(%b::text[], %b::bigint[], %b::bytea[])", columns
            )

        return timed({"executemany": pipelined, "unnest": unnested}[insert], batch, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["sqlite", "postgres"], required=True)
    parser.add_argument("--dsn", help="of a running PostgreSQL")
    parser.add_argument("--insert", choices=["executemany", "unnest"], default="executemany", help="PostgreSQL only")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args()
    if options.store == "sqlite":
        with tempfile.TemporaryDirectory() as home:
            done, elapsed = sqlite(str(Path(home) / "raw.db"), options.batch, options.seconds)
    else:
        done, elapsed = postgres(options.dsn, options.batch, options.seconds, options.insert)
    print(json.dumps({"value": done / elapsed, "unit": "rows/s", "commits": done // options.batch}))


if __name__ == "__main__":
    main()
