"""A reader process that remembers every event: `python -m tests.crash.tail DATABASE_URL FILE`.

What another process can read is acknowledged. Each line of the file is an event as it was first seen: job, seq, and the hash of
its whole row. It ends with its standard input, after a last look.
"""

import hashlib
import select
import sys
from collections import defaultdict
from pathlib import Path
from typing import TextIO

from .rows import EVENT_COLUMNS, Row, Rows

PAUSE_S = 0.03
LAST_LOOK = "last look"


def digest(row: Row) -> str:
    """The hash of an event's row, every column of it."""
    return hashlib.sha256(repr(row).encode()).hexdigest()


def look(rows: Rows, seen: dict[str, int], out: TextIO) -> None:
    """Write what is new since the last look."""
    for job_id, last_seq in rows.ask("SELECT job_id, last_seq FROM job"):
        if last_seq <= seen[job_id]:
            continue
        fresh = rows.ask(
            f"SELECT {EVENT_COLUMNS} FROM event WHERE job_id = ? AND seq > ? ORDER BY seq", job_id, seen[job_id]
        )
        for row in fresh:
            out.write(f"{job_id} {row[0]} {digest(row)}\n")
            seen[job_id] = row[0]
    out.flush()


def main() -> None:
    url, file = sys.argv[1:3]
    rows, seen = Rows(url), defaultdict[str, int](int)
    with Path(file).open("w") as out:
        print("ready", flush=True)
        while True:
            look(rows, seen, out)
            if select.select([sys.stdin], [], [], PAUSE_S)[0] and not sys.stdin.buffer.read(1):
                break
        out.write(f"{LAST_LOOK}\n")
        look(rows, seen, out)


if __name__ == "__main__":
    main()
