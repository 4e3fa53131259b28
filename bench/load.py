"""A cheap HTTP/1.1 load generator: prepared request bytes, keep-alive connections, one request in flight on each.

    python bench/load.py http://127.0.0.1:8000/v1/chat/completions --connections 16 --seconds 5

Measured: requests that began after the warm-up and ended before the end. Any status but 200, and any connection the
server closed, is counted and makes the exit status 1: a fast error is not a fast answer. Value: 200s per second.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import psutil
import uvloop

PROMPT = "Look through last night's support tickets and say which one a person must read first, and why. "


def chat_body(prompt_bytes: int = 300, *, stream: bool = False, model: str = "gpt-5.4-mini") -> bytes:
    """The JSON of a chat completion request whose one user message has `prompt_bytes` bytes."""
    prompt = (PROMPT * (prompt_bytes // len(PROMPT) + 1))[:prompt_bytes]
    more: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return json.dumps({"model": model, "messages": [{"role": "user", "content": prompt}]} | more).encode()


def request(url: str, body: bytes | None, headers: dict[str, str] | None = None) -> bytes:
    """The bytes of one request: POST with a JSON body, GET without."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = {"host": parts.netloc} | (headers or {})
    if body is not None:
        lines |= {"content-type": "application/json", "content-length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{'GET' if body is None else 'POST'} {target} HTTP/1.1\r\n{head}\r\n".encode() + (body or b"")


@dataclass
class Result:
    """Latencies in seconds of the answers with status 200; `first` is the time to the first byte of their bodies."""

    elapsed: float = 0.0
    latencies: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    dropped: int = 0
    server_cpu: float | None = None

    @property
    def clean(self) -> bool:
        return bool(self.latencies) and set(self.statuses) == {200} and not self.dropped

    def summary(self) -> dict[str, Any]:
        count = len(self.latencies)
        line: dict[str, Any] = {"value": round(count / self.elapsed, 1), "unit": "req/s", "requests": count}
        if count > 1:
            cuts = statistics.quantiles(self.latencies, n=100)
            line |= {"p50_ms": round(cuts[49] * 1e3, 3), "p99_ms": round(cuts[98] * 1e3, 3)}
            line["first_byte_p50_ms"] = round(statistics.median(self.first) * 1e3, 3)
        if self.server_cpu is not None and count:
            line["server_cpu_us"] = round(self.server_cpu / count * 1e6, 1)
        return line | {"statuses": dict(self.statuses), "dropped": self.dropped}


class Client(asyncio.Protocol):
    """One connection that sends the next request as soon as an answer is complete."""

    def __init__(self, requests: Sequence[bytes], offset: int, result: Result, window: list[float]) -> None:
        self.requests, self.next, self.result, self.window = requests, offset, result, window
        self.stopped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.send()

    def send(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.first = 0.0
        payload = self.requests[self.next % len(self.requests)]
        self.next += 1
        self.began = time.perf_counter()
        self.transport.write(payload)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, _body: bytes) -> None:
        if not self.first:
            self.first = time.perf_counter()

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        if self.began >= self.window[0] and now <= self.window[1]:
            status = self.parser.get_status_code()
            self.result.statuses[status] += 1
            if status == 200:
                self.result.latencies.append(now - self.began)
                self.result.first.append((self.first or now) - self.began)
        if now > self.window[1]:
            self.stopped = True
            self.transport.close()
        else:
            self.send()

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self.stopped:
            self.result.dropped += 1


async def drive(
    url: str,
    requests: Sequence[bytes],
    connections: int,
    seconds: float,
    warm_up: float,
    server_pid: int | None,
    spread_s: float = 0,
) -> Result:
    loop = asyncio.get_running_loop()
    began = time.perf_counter() + warm_up
    result, window = Result(elapsed=seconds), [began, began + seconds]
    parts = urlsplit(url)
    clients: list[Client] = []
    for number in range(connections):
        # Each connection starts at another place of the list, so that equal requests do not march in step.
        offset = number * max(1, len(requests) // connections)
        _, client = await loop.create_connection(
            lambda offset=offset: Client(requests, offset, result, window), parts.hostname, parts.port or 80
        )
        clients.append(client)
        if spread_s:
            await asyncio.sleep(spread_s / connections)
    await asyncio.sleep(window[0] - time.perf_counter())
    cpu = server_cpu(server_pid)
    await asyncio.sleep(window[1] - time.perf_counter())
    if cpu is not None:
        result.server_cpu = (server_cpu(server_pid) or 0.0) - cpu
    for client in clients:
        client.stopped = True
        client.transport.abort()
    return result


def server_cpu(pid: int | None) -> float | None:
    """CPU seconds that the server and its present children have used so far."""
    if pid is None:
        return None
    process = psutil.Process(pid)
    spent = [each.cpu_times() for each in [process, *process.children(recursive=True)]]
    return sum(times.user + times.system for times in spent)


def run(
    url: str,
    requests: Sequence[bytes],
    *,
    connections: int = 16,
    seconds: float = 5,
    warm_up: float = 1,
    server_pid: int | None = None,
    spread_s: float = 0,
) -> Result:
    """Send `requests` round and round over `connections` connections; with `server_pid`, also the server's CPU time.

    The connections begin over `spread_s` seconds: answers that take equally long would else march in step for ever.
    """
    return uvloop.run(drive(url, requests, connections, seconds, warm_up, server_pid, spread_s))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--warm-up", type=float, default=1)
    parser.add_argument("--prompt-bytes", type=int, default=300)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--get", action="store_true")
    parser.add_argument("--header", action="append", default=[], metavar="NAME: VALUE")
    parser.add_argument("--server-pid", type=int, help="report the server's CPU time per request")
    options = parser.parse_args()
    headers = dict(line.split(": ", 1) for line in options.header)
    body = None if options.get else chat_body(options.prompt_bytes, stream=options.stream)
    result = run(
        options.url,
        [request(options.url, body, headers)],
        connections=options.connections,
        seconds=options.seconds,
        warm_up=options.warm_up,
        server_pid=options.server_pid,
    )
    print(json.dumps(result.summary()))
    return 0 if result.clean else 1


if __name__ == "__main__":
    sys.exit(main())
