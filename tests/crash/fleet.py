"""The processes of the storm: started by the command line, ended by `kill -9`."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = __package__ or "tests.crash"
STARTED_WITHIN_S = 20.0


@dataclass(frozen=True)
class Armed:
    """A crash point and at which pass the process is to kill itself there."""

    point: str
    passes: int

    def __str__(self) -> str:
        return f"{self.point}:{self.passes}"


@dataclass
class Process:
    """One process. `owner` is the name under which it holds leases or reservations; `doomed` that the harness killed it."""

    role: str
    owner: str
    handle: asyncio.subprocess.Process
    armed: Armed | None
    log: Path
    started: float = field(default_factory=time.monotonic)
    doomed: bool = False
    stopped: bool = False

    def kill(self) -> None:
        self.doomed = True
        # Not through the handle: that would look for its end first, and take it away from who waits for it.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.handle.pid, signal.SIGKILL)

    def stop(self) -> None:
        self.stopped = True
        os.kill(self.handle.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        self.stopped = False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.handle.pid, signal.SIGCONT)

    @property
    def stands_still(self) -> bool:
        """Whether it is stopped, by itself or by us."""
        try:
            stat = Path(f"/proc/{self.handle.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] == "T"

    @property
    def alive(self) -> bool:
        return self.handle.returncode is None

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


class Fleet:
    """Starts processes on one store. Every child holds the read end of a pipe of ours, so that none outlives the harness."""

    def __init__(self, database_url: str, folder: Path, provider_url: str, outside: str) -> None:
        self._folder, self._provider_url = folder, provider_url
        self._numbers = itertools.count(1)
        kept = {key: value for key, value in os.environ.items() if not key.endswith("_API_KEY")}
        self._environment = kept | {
            "OVERNIGHT_HOME": str(folder),
            "OVERNIGHT_DATABASE_URL": database_url,
            "OVERNIGHT_BRAIN": str(Path(__file__).with_name("brain")),
            "OVERNIGHT_CHILD": "1",
            "CRASH_OUTSIDE": outside,
            "PYTHONPATH": os.pathsep.join(str(ROOT / place) for place in ("src", "tests", "")),
        }
        self.processes: list[Process] = []

    async def _start(self, role: str, owner: str, command: list[str], armed: Armed | None, **more: str) -> Process:
        environment = self._environment | more
        if armed is not None:
            environment["OVERNIGHT_CRASH_AT"] = str(armed)
        log = self._folder / f"{owner}.log"
        with log.open("wb") as errors:
            handle = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *command,
                cwd=ROOT,
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
        process = Process(role, owner, handle, armed, log)
        self.processes.append(process)
        return process

    async def worker(self, armed: Armed | None = None, *, lease_s: float = 15.0, stop_at: str = "") -> Process:
        owner = f"worker-{next(self._numbers)}"
        command = ["overnight", "worker", "--worker-id", owner, "--jobs", f"{PACKAGE}.workload"]
        command += ["--lease-s", str(lease_s), "--offline-base-url", self._provider_url]
        return await self._start("worker", owner, command, armed, **({"OVERNIGHT_STOP_AT": stop_at} if stop_at else {}))

    async def gateway(self, role: str, port: int, armed: Armed | None = None) -> Process:
        owner = f"{role}-{next(self._numbers)}"
        command = ["overnight", "gateway", "--port", str(port), "--owner", owner]
        return await self._start(role, owner, [*command, "--offline-base-url", self._provider_url], armed)

    async def program(self, role: str, label: str, form: str, port: int, armed: Armed | None = None) -> Process:
        owner = f"{label}-{next(self._numbers)}"
        base_url = f"http://127.0.0.1:{port}/v1"
        return await self._start(role, owner, [f"{PACKAGE}.program", label, form], armed, OPENAI_BASE_URL=base_url)

    async def tail(self, database_url: str, file: Path) -> Process:
        """The reader; returns when it reads."""
        process = await self._start("tail", "tail", [f"{PACKAGE}.tail", database_url, str(file)], None)
        await line_of(process)
        return process

    async def end(self, process: Process) -> int:
        """End it in good order; its exit code."""
        if process.handle.stdin is not None:
            process.handle.stdin.close()
        try:
            async with asyncio.timeout(STARTED_WITHIN_S):
                return await process.handle.wait()
        except TimeoutError:
            process.kill()
            return await process.handle.wait()


async def line_of(process: Process, within_s: float = STARTED_WITHIN_S) -> object:
    """The next line of JSON that it prints (plain text as it is); None when it ended without one."""
    assert process.handle.stdout is not None
    async with asyncio.timeout(within_s):
        line = await process.handle.stdout.readline()
    if not line:
        return None
    try:
        return json.loads(line)
    except ValueError:
        return line.decode().strip()
