"""Effects over HTTP from another process: claim and commit at one caller, and effects per second at 32 callers.

    python bench/effects_http.py [--store sqlite|postgres] [--seconds 5] [--runs 3]

Beside them, in the same turns: a bare durable commit on the same disk or server, and the request that costs a gateway nothing
(`/healthz`). The client is this process; the gateway is another one. TMPDIR chooses the disk.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import postgres
import raw_commits
from measure import figure

CALLERS = 32
GOALS = {"sqlite": 1.0, "postgres": 3.0}
EFFECTS_PER_SECOND = 1000


class Connection:
    """One HTTP/1.1 connection that is kept alive."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def request(self, method: str, path: str, body: Any = None, headers: str = "") -> tuple[int, Any, float]:
        """Status, body and milliseconds."""
        sent = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{headers}"
        message = f"{head}content-length: {len(sent)}\r\n\r\n".encode() + sent
        began = time.perf_counter()
        self._writer.write(message)
        received = await self._reader.readuntil(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in received.lower().split(b"\r\n")[1:] if b": " in line)
        text = await self._reader.readexactly(int(fields[b"content-length"]))
        took = (time.perf_counter() - began) * 1000
        return int(received[9:12]), json.loads(text), took

    def close(self) -> None:
        self._writer.close()


async def effect(connection: Connection, key: str) -> tuple[float, float]:
    """One effect: the milliseconds of its claim and of its commit."""
    wanted = {"tool": "refund", "arguments": {"payment": key, "usd": 40}, "holder": "bench"}
    headers = f"idempotency-key: {key}\r\nx-job-id: bench-{os.getpid()}-{key.rpartition('-')[0]}\r\n"
    status, told, claim_ms = await connection.request("POST", "/api/v1/effects", wanted, headers)
    assert status == 201, told
    report = {"claim_id": told["claim_id"], "provider_id": "re_1", "result": {"id": "re_1"}}
    status, told, commit_ms = await connection.request("POST", f"/api/v1/effects/{told['effect_id']}/commit", report)
    assert status == 200, told
    return claim_ms, commit_ms


async def one_caller(port: int, turn: str, seconds: float) -> tuple[float, float, float]:
    """Medians in milliseconds of claim, commit and a plain request."""
    connection = Connection(port)
    await connection.open()
    for number in range(20):
        await effect(connection, f"warm{turn}-{number}")
    claims, commits, plain, number, until = list[float](), list[float](), list[float](), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        claim_ms, commit_ms = await effect(connection, f"one{turn}-{number}")
        claims.append(claim_ms)
        commits.append(commit_ms)
        plain.append((await connection.request("GET", "/healthz"))[2])
        number += 1
    connection.close()
    return statistics.median(claims), statistics.median(commits), statistics.median(plain)


async def many_callers(port: int, turn: str, seconds: float) -> float:
    """Effects per second. Each caller has a job of its own."""
    until, done = time.monotonic() + seconds, 0

    async def call(caller: int) -> None:
        nonlocal done
        connection, number = Connection(port), 0
        await connection.open()
        while time.monotonic() < until:
            await effect(connection, f"many{turn}c{caller}-{number}")
            number += 1
            done += 1
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(call(caller) for caller in range(CALLERS)))
    return done / (time.perf_counter() - began)


@contextmanager
def gateway(home: Path, url: str) -> Iterator[int]:
    env = os.environ | {"OVERNIGHT_HOME": str(home), "DATABASE_URL": url}
    command = [sys.executable, "-m", "overnight", "gateway", "--port", "0"]
    with (home / "log").open("w") as log:
        running = subprocess.Popen(command, env=env, cwd=home, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert running.stdout is not None
            yield json.loads(running.stdout.readline())["port"]
        finally:
            running.terminate()
            running.wait()


def bare_commit_ms(store: str, home: Path, url: str, seconds: float) -> float:
    """A durable commit of one row: milliseconds."""
    if store == "sqlite":
        path = home / f"raw-{time.monotonic_ns()}.db"
        count, took = raw_commits.sqlite(str(path), 1, seconds)
    else:
        count, took = raw_commits.postgres(url, 1, seconds, "unnest")
    return took * 1000 / count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", choices=list(GOALS), action="append")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    for store in asked.store or GOALS:
        with ExitStack() as stack:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = str(home / "ledger.db")
            if store == "postgres":
                url = stack.enter_context(postgres.running()).dsn
            port = stack.enter_context(gateway(home, url))
            found: dict[str, list[float]] = {}
            for turn in range(asked.runs):
                bare = bare_commit_ms(store, home, url, asked.seconds / 2)
                claim_ms, commit_ms, plain_ms = asyncio.run(one_caller(port, str(turn), asked.seconds))
                rate = asyncio.run(many_callers(port, str(turn), asked.seconds))
                for name, value in (
                    ("claim", claim_ms),
                    ("commit", commit_ms),
                    ("claim over a bare commit", claim_ms / bare),
                    ("commit over a bare commit", commit_ms / bare),
                    ("a bare commit", bare),
                    ("a plain request", plain_ms),
                    ("effects", rate),
                ):
                    found.setdefault(name, []).append(value)
        for name in ("claim", "commit"):
            figure(f"effects over HTTP, {store}, 1 caller: {name}", "ms", found[name], at_most=GOALS[store])
        for name in ("claim over a bare commit", "commit over a bare commit"):
            figure(f"effects over HTTP, {store}, 1 caller: {name}", "×", found[name])
        for name in ("a bare commit", "a plain request"):
            figure(f"effects over HTTP, {store}: {name}", "ms", found[name])
        figure(
            f"effects over HTTP, {store}, {CALLERS} callers", "effects/s", found["effects"], at_least=EFFECTS_PER_SECOND
        )


if __name__ == "__main__":
    main()
