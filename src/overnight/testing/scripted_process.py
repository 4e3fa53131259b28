"""Starts the scripted provider in a separate process, and reads its counters."""

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
    """The provider did not start, or rejected a command (invalid rules: one line per problem)."""


class SpawnedProvider:
    """A running provider, for synchronous code. `base_url` is what an OpenAI client wants (it ends in /v1)."""

    def __init__(self, process: subprocess.Popen[bytes], host: str, port: int) -> None:
        self.process = process
        self.host = host
        self.port = port
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self.base_url = f"{self.url}/v1"

    def stats(self) -> dict[str, Any]:
        """Counters since the start or the last reset: paid_calls, paid_calls_by_model, requests, errors_by_status,
        in_flight, calls_forgotten, and per rule how many calls it took."""
        return self._ask("GET", "/_scripted/stats")

    def calls(self) -> list[dict[str, Any]]:
        """Distinct paid requests, oldest first: fingerprint (sha256 of model and messages), model, last_user, paid.
        `paid` above 1 means that the same call was paid again. The last 10,000 are kept."""
        return self._ask("GET", "/_scripted/calls")

    def reset(self) -> None:
        """Reset all counters and rules."""
        self._ask("POST", "/_scripted/reset")

    def set_rules(self, rules: Path | str, *, prepend: bool = False) -> None:
        """Replace the rules, or put these before them. A Path is a file, a str is YAML text.
        Raises ScriptedProviderError with every problem in them; the old rules then stay."""
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
        # http.client costs as much to import as the rest of this room, and job code may never ask.
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
    """A running provider, for async code; as SpawnedProvider, with async methods."""

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
    """A provider for the length of a `with` block; it also ends when this process dies, however it dies.

    `rules`: a Path is a file, a str is YAML text, None answers every call with an echo. `port` 0 takes a free one.
    With `count_file` the paid calls survive a kill and are counted on. Raises ScriptedProviderError.
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
    """`spawn_scripted_provider` for async code."""
    stack = contextlib.ExitStack()
    spawning = spawn_scripted_provider(rules, host=host, port=port, count_file=count_file)
    entering = asyncio.ensure_future(asyncio.to_thread(stack.enter_context, spawning))
    try:
        # Shielded: cancelled while it starts, the thread still finishes, and the process must then be ended.
        yield ScriptedProvider(await asyncio.shield(entering))
    finally:
        await asyncio.wait([entering])
        await asyncio.to_thread(stack.close)


def _launch(host: str, port: int, count_file: Path | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "overnight.testing.scripted_provider", "--until-stdin-closes"]
    command += ["--host", host, "--port", str(port)]
    if count_file is not None:
        command += ["--count-file", str(count_file)]
    # It watches its stdin rather than PR_SET_PDEATHSIG: that signal comes when the *thread* that started it ends.
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
            f"the scripted provider ended with status {status} before it listened; its stderr says why "
            f"(status -9: it was killed, by us after {START_TIMEOUT_S:.0f} s)"
        )
    spawned = SpawnedProvider(process, host, json.loads(line)["port"])
    if rules is not None:
        spawned.set_rules(rules)
    return spawned
