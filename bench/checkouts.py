"""Two versions of the gateway side by side: calls per second on each store, in turns, and their ratio.

    git worktree add /tmp/before COMMIT
    python bench/checkouts.py /tmp/before/src [--store sqlite postgres] [--connections 16] [--seconds 4] [--runs 9]

Both run with this environment's libraries, each with a store of its own behind one upstream. Ours is the checkout of this file.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import upstream_mock
from gateway import serving, workload
from measure import compare
from postgres import running

MINE = Path(__file__).parent.parent / "src"


@contextmanager
def checkout(source: Path, upstream: str, store_url: str) -> Iterator[tuple[str, int]]:
    """A gateway that runs the code in `source`; its URL and pid."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(source)
    try:
        with serving(upstream, store_url, 0) as started:
            yield started
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


@contextmanager
def store(kind: str) -> Iterator[str]:
    """The URL of a new store."""
    with ExitStack() as stack:
        if kind == "postgres":
            yield stack.enter_context(running(0)).url
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-ledger-"))
            yield os.path.join(folder, "ledger.db")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the src folder of the other version")
    parser.add_argument("--store", choices=["sqlite", "postgres"], nargs="+", default=["sqlite", "postgres"])
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    flags = ["--stream"] if options.stream else []
    for kind in options.store:
        with ExitStack() as stack:
            upstream = stack.enter_context(upstream_mock.running())
            ours, theirs = (
                stack.enter_context(checkout(source, upstream, stack.enter_context(store(kind))))
                for source in (MINE, options.other)
            )
            for connections in options.connections:
                loads = [
                    workload(name, url, connections, options.seconds, f"--server-pid={pid}", *flags)
                    for name, (url, pid) in (("this checkout", ours), (str(options.other), theirs))
                ]
                title = f"gateway, {kind}, {connections} connections{', streamed' * options.stream}"
                compare(title, "calls/s", *loads, runs=options.runs, goal=0.95)
    return 0


if __name__ == "__main__":
    sys.exit(main())
