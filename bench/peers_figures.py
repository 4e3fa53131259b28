"""The peers against their limits, before we stand beside them.

    python bench/peers_figures.py durable        LangGraph against raw commits, at 1 and 32 jobs, flushes +0 and +5 ms
    python bench/peers_figures.py gateway        LiteLLM against the upstream asked directly, at 1 and 16 connections

One JSON line for each comparison. With 32 jobs the limit commits 32 rows at once, as a group commit may.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import peer_langgraph
import peer_litellm
import postgres
import upstream_mock
from flush_delay import environment
from measure import Workload, compare

HERE = Path(__file__).parent


@contextmanager
def stores(delay_ms: float) -> Iterator[dict[str, str | None]]:
    """Store name to DSN; SQLite gets its delay from the environment of the process that writes."""
    with postgres.running(delay_ms) as server:
        yield {"sqlite": None, "postgres": server.dsn}


def durable(seconds: float, runs: int) -> None:
    for delay_ms in (0, 5):
        with stores(delay_ms) as dsns:
            for store, dsn in dsns.items():
                env = environment(delay_ms if store == "sqlite" else 0)
                for jobs in (1, 32):
                    raw = [sys.executable, str(HERE / "raw_commits.py"), "--store", store]
                    raw += ["--batch", str(jobs), "--seconds", str(seconds), *(["--dsn", dsn] if dsn else [])]
                    compare(
                        f"langgraph {store}, {jobs} jobs, +{delay_ms} ms",
                        "nodes/s",
                        Workload("LangGraph", peer_langgraph.command(store, jobs, seconds, dsn), env),
                        Workload("raw commits", raw, env),
                        runs=runs,
                    )


def gateway(seconds: float, runs: int) -> None:
    with ExitStack() as stack:
        upstream = stack.enter_context(upstream_mock.running())
        proxy = stack.enter_context(peer_litellm.running(upstream))
        headers = [f"--header={name}: {value}" for name, value in proxy.headers.items()]
        for connections in (1, 16):
            loader = [sys.executable, str(HERE / "load.py"), f"--connections={connections}", f"--seconds={seconds}"]
            compare(
                f"litellm, {connections} connections",
                "req/s",
                Workload("LiteLLM", [*loader, proxy.url, *headers, f"--server-pid={proxy.pid}"]),
                Workload("upstream directly", [*loader, f"{upstream}/v1/chat/completions"]),
                runs=runs,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["durable", "gateway"])
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    {"durable": durable, "gateway": gateway}[options.what](options.seconds, options.runs)
