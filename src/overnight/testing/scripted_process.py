"""Start the scripted provider in a separate process, and read its counters."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any
from urllib.parse import quote

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
CONTROL_TIMEOUT_S = 30.0


class ScriptedProviderError(RuntimeError):
    """The provider did not start, or rejected a command. Invalid rules are reported with one line per problem."""


class SpawnedProvider:
    """A running provider, for synchronous code. `base_url` is the base URL of OpenAI clients, ending in /v1."""

    def __init__(self, process: subprocess.Popen[bytes], host: str, port: int) -> None:
        self.process = process
        self.host = host
        self.port = port
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self.base_url = f"{self.url}/v1"

    def stats(self) -> dict[str, Any]:
        """Counters since the start or the last reset: paid_calls, paid_calls_by_model, requests, errors_by_status,
        in_flight, calls_forgotten, and the number of calls per rule.
        """
        return self._ask("GET", "/_scripted/stats")

    def calls(self) -> list[dict[str, Any]]:
        """Distinct paid requests, oldest first: fingerprint (SHA-256 of model and messages), model, last_user, paid.

        `paid` above 1 means that the same call was paid again. The last 10,000 are kept.
        """
        return self._ask("GET", "/_scripted/calls")

    def reset(self) -> None:
        """Reset all counters and rules."""
        self._ask("POST", "/_scripted/reset")

    def set_rules(self, rules: Path | str, *, prepend: bool = False) -> None:
        """Replace the rules, or insert these before them. A Path is a file, a str is YAML text.

        Raises:
            ScriptedProviderError: the rules are invalid; it lists all problems, and the old rules stay.
        """
        text, source = (rules.read_text(encoding="utf-8"), str(rules)) if isinstance(rules, Path) else (rules, "rules")
        mode = "prepend" if prepend else "replace"
        self._ask("POST", f"/_scripted/rules?mode={mode}&source={quote(source)}", text.encode())

    def kill(self) -> None:
        """Kill the process with SIGKILL, like a crash."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stop the process. Idempotent."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process.stdout.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        # http.client takes as long to import as the rest of this package, and job code may never need it.
        from http.client import HTTPConnection

        connection = HTTPConnection(self.host, self.port, timeout=CONTROL_TIMEOUT_S)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            content = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status != 200:
            raise ScriptedProviderError(content["error"]["message"])
        return content


class ScriptedProvider:
    """A running provider, for asynchronous code. Same methods as SpawnedProvider."""

    def __init__(self, spawned: SpawnedProvider) -> None:
        self.spawned = spawned
        self.process = spawned.process
        self.url = spawned.url
        self.base_url = spawned.base_url

    async def stats(self) -> dict[str, Any]:
        return await asyncio.to_thread(self.spawned.stats)

    async def calls(self) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self.spawned.calls)

    async def reset(self) -> None:
        await asyncio.to_thread(self.spawned.reset)

    async def set_rules(self, rules: Path | str, *, prepend: bool = False) -> None:
        await asyncio.to_thread(self.spawned.set_rules, rules, prepend=prepend)

    async def kill(self) -> None:
        await asyncio.to_thread(self.spawned.kill)


@contextlib.contextmanager
def spawn_scripted_provider(
    rules: Path | str | None = None, *, host: str = "127.0.0.1", port: int = 0, count_file: Path | None = None
) -> Generator[SpawnedProvider]:
    """Run a provider during a `with` block. It also ends when this process ends for any reason.

    Args:
        rules: a Path is a file, a str is YAML text; None: every answer is an echo.
        host: the address to listen on.
        port: 0 selects a free port.
        count_file: keeps the count of paid calls across kills.

    Raises:
        ScriptedProviderError: the rules are invalid, or the provider did not start.
    """
    process = _launch(host, port, count_file)
    try:
        spawned = _connected(process, host, rules)
    except BaseException:
        process.kill()
        process.wait()
        raise
    try:
        yield spawned
    finally:
        spawned.stop()


@contextlib.asynccontextmanager
async def start_scripted_provider(
    rules: Path | str | None = None, *, host: str = "127.0.0.1", port: int = 0, count_file: Path | None = None
) -> AsyncGenerator[ScriptedProvider]:
    """As `spawn_scripted_provider`, for asynchronous code."""
    stack = contextlib.ExitStack()
    spawning = spawn_scripted_provider(rules, host=host, port=port, count_file=count_file)
    entering = asyncio.ensure_future(asyncio.to_thread(stack.enter_context, spawning))
    try:
        # Shielded: if cancelled during the start, the thread still completes, and the process must be stopped.
        yield ScriptedProvider(await asyncio.shield(entering))
    finally:
        await asyncio.wait([entering])
        await asyncio.to_thread(stack.close)


def _launch(host: str, port: int, count_file: Path | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "overnight.testing.scripted_provider", "--until-stdin-closes"]
    command += ["--host", host, "--port", str(port)]
    if count_file is not None:
        command += ["--count-file", str(count_file)]
    # Stdin instead of PR_SET_PDEATHSIG, whose signal is sent when the starting *thread* ends.
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - our own module


def _connected(process: subprocess.Popen[bytes], host: str, rules: Path | str | None) -> SpawnedProvider:
    assert process.stdout is not None
    watchdog = threading.Timer(START_TIMEOUT_S, process.kill)
    watchdog.start()
    line = process.stdout.readline()
    watchdog.cancel()
    if not line:
        status = process.wait()
        raise ScriptedProviderError(
            f"the scripted provider ended with status {status} before it listened; see its stderr"
            f" (status -9: it was killed after {START_TIMEOUT_S:.0f} s)"
        )
    spawned = SpawnedProvider(process, host, json.loads(line)["port"])
    if rules is not None:
        spawned.set_rules(rules)
    return spawned
