"""A process tree. Children hold the read end of a pipe of their parent, so that none outlives a killed parent."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 10.0
STEADY_S = 10.0
STOP_WITHIN_S = 10.0


class Child(msgspec.Struct, frozen=True):
    """A process to keep running. `on_death` is awaited with its exit code before the restart (negative: a signal).

    `quiet` drops its standard output; standard error is always the parent's. `environment` is added to the parent's.
    """

    name: str
    command: Sequence[str]
    on_death: Callable[[int], Awaitable[None]] | None = None
    quiet: bool = True
    environment: dict[str, str] = {}


class ProcessTree:
    """Starts children and restarts those that die, with exponential backoff while they die at once."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._tasks: list[asyncio.Task[None]] = []
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = False

    async def start(self, child: Child) -> asyncio.subprocess.Process:
        """Start a child and keep it running until `stop`; returns its first process."""
        process = await self._spawn(child)
        self._tasks.append(asyncio.create_task(self._keep_running(child, process)))
        return process

    async def _spawn(self, child: Child) -> asyncio.subprocess.Process:
        out = asyncio.subprocess.DEVNULL if child.quiet else None
        environment = {**os.environ, **child.environment}
        process = await asyncio.create_subprocess_exec(
            *child.command, stdin=asyncio.subprocess.PIPE, stdout=out, env=environment, start_new_session=True
        )
        self._processes[child.name] = process
        return process

    async def _keep_running(self, child: Child, process: asyncio.subprocess.Process) -> None:
        pause = FIRST_PAUSE_S
        while True:
            started = time.monotonic()
            code = await process.wait()
            if self._stopping:
                return
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self._report(f"{child.name} ended ({cause}); restarting")
            if child.on_death is not None:
                await child.on_death(code)
            pause = FIRST_PAUSE_S if time.monotonic() - started > STEADY_S else min(MAX_PAUSE_S, pause * 2)
            await asyncio.sleep(pause)
            process = await self._spawn(child)

    def pid(self, name: str) -> int | None:
        process = self._processes.get(name)
        return process.pid if process is not None and process.returncode is None else None

    async def stop(self) -> None:
        """Send SIGTERM to all in reverse order of their start; SIGKILL to those that do not end in time."""
        self._stopping = True
        alive = [process for process in reversed(self._processes.values()) if process.returncode is None]
        for process in alive:
            process.terminate()
        if alive:
            _, late = await asyncio.wait([asyncio.create_task(each.wait()) for each in alive], timeout=STOP_WITHIN_S)
            if late:
                for process in alive:
                    if process.returncode is None:
                        process.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def stdin_closed() -> None:
    """Return when standard input is closed, which means that the parent has ended."""
    loop, closed = asyncio.get_running_loop(), asyncio.Event()

    def wait() -> None:
        # A thread, because an event loop cannot watch every kind of standard input.
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                continue
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(closed.set)

    threading.Thread(target=wait, name="overnight-parent", daemon=True).start()
    await closed.wait()
