"""Model calls per second through the gateway, each durable before its answer, against LiteLLM (which records nothing here).

    python bench/gateway.py [--store sqlite] [--connections 1 16] [--delay-ms 0] [--seconds 4] [--runs 5]

One gateway process, 300-byte prompts of 16 jobs, the fixed-answer upstream behind it; plain and streamed. The upstream asked
directly stands beside both. Two figures stand on their own: what a call waits longer than without a gateway (median, one
connection), and the CPU time of a call at 16 connections (3,000 calls/s in one process are 333 µs each).

At the end the calls in the ledger are compared with what the upstream was asked: a call that is missing there fails the run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import load
import peer_litellm
import upstream_mock
from flush_delay import environment
from measure import Workload, compare, figure
from postgres import running

from overnight.store import Statement, open_store

JOBS = 16
GOAL = 20  # times LiteLLM's calls per second, where there is more than one at a time
MOST_CPU_US = 1_000_000 / 3_000
MOST_ADDED_MS = 1.0
COUNT = Statement(
    "count_calls", dict.fromkeys(("sqlite", "postgres"), "SELECT CAST(sum(calls) AS BIGINT) FROM usage_day")
)


@contextmanager
def serving(upstream: str, store_url: str, delay_ms: float) -> Iterator[tuple[str, int]]:
    """Start `overnight gateway` in front of the upstream; the URL of its chat completions, and its pid."""
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as home:
        brain = Path(home) / "brain"
        brain.mkdir()
        (brain / "routing.yaml").write_text("default_model: gpt-5.4-mini\n")
        env = environment(delay_ms, DATABASE_URL=store_url, OVERNIGHT_HOME=home, OVERNIGHT_BRAIN=str(brain))
        env = {key: value for key, value in env.items() if not key.endswith("_API_KEY")}
        command = [sys.executable, "-m", "overnight", "gateway", "--port", "0", "--offline-base-url", f"{upstream}/v1"]
        process = subprocess.Popen(command, env=env, cwd=home, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            port = json.loads(process.stdout.readline())["port"]
            yield f"http://127.0.0.1:{port}/v1/chat/completions", process.pid
        finally:
            process.terminate()
            process.wait()


def drive(options: argparse.Namespace) -> int:
    """One workload: calls of `JOBS` jobs at one address."""
    headers = dict(line.split(": ", 1) for line in options.header)
    body = load.chat_body(stream=options.stream)
    requests = [load.request(options.drive, body, headers | {"x-job-id": f"bench-{job}"}) for job in range(JOBS)]
    result = load.run(
        options.drive,
        requests,
        connections=options.connections[0],
        seconds=options.seconds,
        warm_up=1,
        server_pid=options.server_pid,
    )
    print(json.dumps(result.summary()))
    return 0 if result.clean else 1


def workload(name: str, url: str, connections: int, seconds: float, *more: str) -> Workload:
    command = [sys.executable, __file__, "--drive", url, "--connections", str(connections), "--seconds", str(seconds)]
    return Workload(name, [*command, *more])


def bench(store: str, store_url: str, options: argparse.Namespace) -> None:
    with ExitStack() as stack:
        upstream = stack.enter_context(upstream_mock.running())
        behind_litellm = stack.enter_context(upstream_mock.running())
        url, pid = stack.enter_context(serving(upstream, store_url, options.delay_ms))
        proxy = stack.enter_context(peer_litellm.running(behind_litellm))
        theirs = [f"--header={name}: {value}" for name, value in proxy.headers.items()]
        for form in ("plain", "streamed"):
            flags = ["--stream"] if form == "streamed" else []
            for connections in options.connections:
                title = f"gateway, {store}, {form}, {connections} connection{'s' * (connections > 1)}"
                ours = workload("Overnight", url, connections, options.seconds, f"--server-pid={pid}", *flags)
                peer = workload(
                    "LiteLLM", proxy.url, connections, options.seconds, f"--server-pid={proxy.pid}", *theirs, *flags
                )
                direct = workload(
                    "upstream directly", f"{behind_litellm}/v1/chat/completions", connections, options.seconds, *flags
                )
                compare(title, "calls/s", ours, peer, direct, runs=options.runs, goal=GOAL if connections > 1 else None)
                if connections == 1:
                    key = "p50_ms" if form == "plain" else "first_byte_p50_ms"
                    added = [mine[key] - bare[key] for mine, bare in zip(ours.outputs, direct.outputs, strict=True)]
                    what = "median wait" if form == "plain" else "median wait for the first piece"
                    figure(f"{title}: added {what}", "ms", added, at_most=MOST_ADDED_MS)
                elif form == "plain":
                    cpu = [output["server_cpu_us"] for output in ours.outputs]
                    figure(f"{title}: CPU per call", "µs", cpu, at_most=MOST_CPU_US)
        with urllib.request.urlopen(f"{upstream}/count") as answer:
            asked = int(answer.read())
    with open_store(store_url) as opened:
        [(recorded,)] = opened.read_blocking(COUNT, {})
    # The load generator leaves in mid-call: those calls are in the ledger or, of the last moment, lost.
    if not asked - max(options.connections) * 8 * options.runs <= recorded <= asked:
        raise SystemExit(f"{store}: the upstream was asked {asked:,} times, the ledger has {recorded:,} calls")
    print(f"{store}: {recorded:,} calls in the ledger, {asked:,} asked of the upstream")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["sqlite", "postgres"], nargs="+", default=["sqlite", "postgres"])
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--delay-ms", type=float, default=0, help="how much longer each flush takes")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--drive", metavar="URL", help="be one workload")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--server-pid", type=int)
    options = parser.parse_args()
    if options.drive:
        return drive(options)
    if "sqlite" in options.store:
        with tempfile.TemporaryDirectory(prefix="bench-ledger-") as folder:
            bench("sqlite", os.path.join(folder, "ledger.db"), options)
    if "postgres" in options.store:
        with running(options.delay_ms) as server:
            bench("postgres", server.url, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
