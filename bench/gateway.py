"""Model calls per second through the gateway, each durable before its answer, beside its peers (which record nothing here).

    python bench/gateway.py [--store sqlite] [--peers litellm portkey tensorzero] [--delay-ms 0] [--seconds 4] [--runs 5]

One gateway process, prompts of 16 jobs, the fixed-answer upstream behind it; plain with prompts of 300 bytes and of 32 KB,
and streamed. The upstream asked directly stands beside all. Figures that stand on their own: calls per second, what a call
waits longer than without a gateway (median, one connection), the slowest in a hundred, and the CPU time of a call.

At the end the calls in the ledger are compared with what the upstream was asked: a call that is missing there fails the run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import load
import peer_litellm
import peer_portkey
import peer_tensorzero
import upstream_mock
from flush_delay import environment
from measure import Workload, compare, figure, ratio
from postgres import running

from overnight.store import Statement, open_store

JOBS = 16
PEERS = {
    "litellm": ("LiteLLM", peer_litellm.running),
    "portkey": ("Portkey", peer_portkey.running),
    "tensorzero": ("TensorZero", peer_tensorzero.running),
}
NO_STREAMS = {"portkey"}  # its release for Node.js answers every streamed request with an error of its own (1.15.2)
MOST_ADDED_MS = 0.6
MOST_ADDED_STREAM_MS = 3.0
MOST_STREAM_CPU_US = 2_000
MOST_P99_MS = 10


@dataclass(frozen=True)
class Form:
    """One shape of request: what of it is asked, over how many connections, and the calls per second wanted."""

    name: str
    prompt_bytes: int = 300
    stream: bool = False
    connections: tuple[int, ...] = (1, 16)
    least: float | None = None


FORMS = (
    Form("plain, 300 bytes", least=3_000),
    Form("plain, 32 KB", 32_000, connections=(16,), least=1_200),
    Form("streamed", stream=True),
)
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
    body = load.chat_body(options.prompt_bytes, stream=options.stream, model=options.model)
    requests = [
        load.request(options.drive, body, headers | {"x-job-id": f"{options.jobs}-{job}"}) for job in range(JOBS)
    ]
    result = load.run(
        options.drive,
        requests,
        connections=options.connections[0],
        seconds=options.seconds,
        warm_up=1,
        server_pid=options.server_pid,
        spread_s=options.spread_s,
    )
    print(json.dumps(result.summary()))
    return 0 if result.clean else 1


def workload(name: str, url: str, connections: int, seconds: float, *more: str) -> Workload:
    command = [sys.executable, __file__, "--drive", url, "--connections", str(connections), "--seconds", str(seconds)]
    return Workload(name, [*command, *more])


def bench(store: str, store_url: str, options: argparse.Namespace) -> None:
    with ExitStack() as stack:
        upstream = stack.enter_context(upstream_mock.running())
        behind_peers = stack.enter_context(upstream_mock.running())
        ours = stack.enter_context(serving(upstream, store_url, options.delay_ms))
        proxies = {name: stack.enter_context(PEERS[name][1](behind_peers)) for name in options.peers}
        for form in FORMS:
            if form.name.split(",")[0] not in options.forms:
                continue
            for connections in form.connections:
                measured(f"gateway, {store}, {form.name}", form, connections, ours, proxies, behind_peers, options)
        asked = upstream_mock.count(upstream)
    with open_store(store_url) as opened:
        [(recorded,)] = opened.read_blocking(COUNT, {})
    # The load generator leaves in mid-call: those calls are in the ledger or, of the last moment, lost.
    if not asked - 16 * 8 * options.runs <= recorded <= asked:
        raise SystemExit(f"{store}: the upstream was asked {asked:,} times, the ledger has {recorded:,} calls")
    print(f"{store}: {recorded:,} calls in the ledger, {asked:,} asked of the upstream")


def measured(
    title: str,
    form: Form,
    connections: int,
    ours: tuple[str, int],
    proxies: dict[str, Any],
    behind_peers: str,
    options: argparse.Namespace,
) -> None:
    """One form at one number of connections: us, the peers and the bare upstream in turn."""
    title = f"{title}, {connections} connection{'s' * (connections > 1)}"
    flags = [f"--prompt-bytes={form.prompt_bytes}", *(["--stream"] if form.stream else [])]
    url, pid = ours
    mine = workload("Overnight", url, connections, options.seconds, f"--server-pid={pid}", *flags)
    theirs = {
        name: workload(
            PEERS[name][0],
            proxy.url,
            connections,
            options.seconds,
            f"--server-pid={proxy.pid}",
            f"--model={proxy.model}",
            *(f"--header={key}: {value}" for key, value in proxy.headers.items()),
            *flags,
        )
        for name, proxy in proxies.items()
        if not (form.stream and name in NO_STREAMS)
    }
    direct = workload("upstream directly", f"{behind_peers}/v1/chat/completions", connections, options.seconds, *flags)
    first, *others = [*theirs.values(), direct]
    compare(title, "calls/s", mine, first, *others, runs=options.runs)
    for other in others:
        ratio(title, "calls/s", mine, other)
    if connections > 1 and form.least is not None:
        figure(f"{title}: calls per second", "calls/s", mine.values, at_least=form.least)
    if connections > 1:
        cpu = [output["server_cpu_us"] for output in mine.outputs]
        figure(f"{title}: CPU per call", "µs", cpu, at_most=MOST_STREAM_CPU_US if form.stream else None)
    if connections > 1 and form.prompt_bytes == 300 and not form.stream:
        figure(f"{title}: slowest in a hundred", "ms", [one["p99_ms"] for one in mine.outputs], at_most=MOST_P99_MS)
    if connections == 1 or form.stream:
        key = "first_byte_p50_ms" if form.stream else "p50_ms"
        added = [one[key] - bare[key] for one, bare in zip(mine.outputs, direct.outputs, strict=True)]
        what = "median wait for the first piece" if form.stream else "median wait"
        figure(f"{title}: added {what}", "ms", added, at_most=MOST_ADDED_STREAM_MS if form.stream else MOST_ADDED_MS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["sqlite", "postgres"], nargs="+", default=["sqlite", "postgres"])
    parser.add_argument("--peers", choices=[*PEERS], nargs="+", default=["litellm", "portkey", "tensorzero"])
    parser.add_argument("--forms", choices=["plain", "streamed"], nargs="+", default=["plain", "streamed"])
    parser.add_argument("--connections", type=int, nargs="+", default=[16], help=argparse.SUPPRESS)
    parser.add_argument("--prompt-bytes", type=int, default=300, help=argparse.SUPPRESS)
    parser.add_argument("--spread-s", type=float, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--jobs", default="bench", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="gpt-5.4-mini", help=argparse.SUPPRESS)
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
