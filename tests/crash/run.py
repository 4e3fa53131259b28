"""`python -m tests.crash.run --kills 200 --seed 7 --store both`: run a storm; exit code 1 on a violation.

Every process is real, every kill is SIGKILL, and what is checked is what others saw: the provider's own count, the record of
the outside world, and a reader that remembers each event. The last line is JSON.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .evidence import Evidence
from .fleet import ROOT
from .invariants import broken
from .points import PASSED_BY, points_in_source
from .report import dump, figures, table
from .storm import Storm, Terms


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URL of a throw-away PostgreSQL."""
    sys.path.insert(0, str(ROOT / "bench"))
    from postgres import running

    with running(max_connections="200") as server:
        host = dict(part.split("=", 1) for part in server.dsn.split())["host"]
        yield f"postgresql://postgres@/postgres?host={host}"


def storm_on(database_url: str, folder: Path, terms: Terms) -> tuple[dict[str, Any], str, Path | None]:
    """One storm: its figures, its table, and where everything about a violation was written."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    storm = Storm(database_url, folder, terms)
    try:
        asyncio.run(storm.run())
        evidence = Evidence(storm)
        wrong = broken(evidence)
        facts = figures(storm, evidence, wrong, time.monotonic() - began)
        written = dump(storm, evidence, wrong, facts) if wrong else None
        return facts, table(facts, storm, wrong), written
    finally:
        storm.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.run", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="per store")
    parser.add_argument("--stops", type=int, default=8, help="workers stopped past their lease, per store")
    parser.add_argument("--seed", type=int, default=None, help="repeats the same choices; timing differs all the same")
    parser.add_argument("--store", choices=("sqlite", "postgres", "both"), default="both")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where ledgers and logs go (default: a temporary one)"
    )
    options = parser.parse_args()
    unknown = points_in_source() ^ PASSED_BY.keys()
    if unknown:
        print(
            f"tests/crash/points.py and the source disagree about the crash points {sorted(unknown)}", file=sys.stderr
        )
        return 1
    seed = random.SystemRandom().randrange(10_000) if options.seed is None else options.seed
    folder = options.folder or Path(tempfile.mkdtemp(prefix="overnight-crash-"))
    stores = ("sqlite", "postgres") if options.store == "both" else (options.store,)
    results: list[dict[str, Any]] = []
    for name in stores:
        terms = Terms(options.kills, seed, stops=options.stops)
        place = folder / name
        with contextlib.nullcontext(str(place / "ledger.db")) if name == "sqlite" else postgres() as url:
            facts, shown, written = storm_on(url, place, terms)
        results.append(facts)
        print(shown, flush=True)
        if written is not None:
            print(f"\nbroken with seed {seed}; the jobs and their events are in {written}", flush=True)
    print(json.dumps({"seed": seed, "stores": results, "violations": sum(facts["violations"] for facts in results)}))
    return 1 if any(facts["violations"] for facts in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
