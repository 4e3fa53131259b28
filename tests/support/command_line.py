"""The command line in a folder with a brain and jobs, its outputs, and its table of commands."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import typer

from cli_runs import needs_interpreter, run, server
from command_server import Command
from overnight.cli.program import program

JOBS = """
import asyncio
import os
from pathlib import Path

import overnight

@overnight.step
async def part(number: int) -> int:
    await asyncio.sleep(float(os.environ.get("PART_S", "0")))
    return number

@overnight.effect
def post(text: str, idempotency_key: str) -> object:
    with Path("sent").open("a") as sent:
        sent.write(idempotency_key + "\\n")
    return overnight.Done("MSG-1", text)

@post.status_check
def posted(idempotency_key: str, text: str):
    sent = Path("sent")
    if sent.exists() and idempotency_key in sent.read_text():
        return overnight.Done("MSG-1", text)
    return overnight.NOT_DONE

@overnight.effect
def transfer(amount: int) -> str:
    raise TimeoutError("the bank did not answer")

@overnight.job
async def adds(count: int = 2, label: str = "") -> str:
    total = sum([await part(number) for number in range(count)])
    answer = await overnight.chat(f"hello {label}", task="greet")
    await post(answer.text)
    return f"{label}{total}"

@overnight.job
async def asks() -> bool:
    return (await overnight.approval("Go on?", amount=3)).approved

@overnight.job
async def pays() -> str:
    return await transfer(40)

@overnight.job
async def fails() -> None:
    raise RuntimeError("a bad night")
"""


ROUTING = """
default_model: small
routes: {{greet: small}}
providers:
  here: {{base_url: "{url}", models: [small]}}
prices:
  small: {{input_usd_per_mtok: 1, output_usd_per_mtok: 1}}
"""


class Shell:
    """A folder with a brain and jobs, and the command in it."""

    def __init__(self, folder: Path, url: str, database_url: str = "") -> None:
        self.folder = folder
        (folder / "brain").mkdir()
        (folder / "brain" / "routing.yaml").write_text(ROUTING.format(url=url))
        (folder / "night.py").write_text(JOBS)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVERNIGHT_", "OPENAI_"))}
        self.environment = kept | {"USER": "zoe", "LOGNAME": "zoe"}
        self.environment.pop("DATABASE_URL", None)
        self.environment.pop("COLUMNS", None)
        if database_url:
            self.environment["DATABASE_URL"] = database_url

    def start(self, *words: str, **environment: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", "from overnight.cli import main; main()", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment | environment, stdout=pipe, stderr=pipe, text=True
        )

    def __call__(self, *words: str, code: int = 0, **environment: str) -> str:
        """Standard output; standard error is kept in `errors`. `start` runs an interpreter of its own."""
        done, out, self.errors = run(self.folder, self.environment | environment, *words)
        assert done == code, f"{words}: exit code {done}\n{out}\n{self.errors}"
        assert "Traceback" not in self.errors
        return out

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code))

    def wait(self, what: str) -> None:
        """Until some job has an event of this name."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            if (self.folder / ".overnight").exists() and f'"{what}"' in self("events", "last", "--json"):
                return
            time.sleep(0.05)
        raise AssertionError(f"no {what} in time")


ACTS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\x1b(?!\\[[0-7;]*m)|\r(?!\n)"
)
"""What no output may hold. A terminal turns line feeds into CR LF; colours are ours."""


def on_terminal(folder: Path, *words: str, **more: str) -> str:
    """What a terminal is sent by `overnight WORDS`, both outputs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVERNIGHT_", "DATABASE_"))}
    ours, theirs = pty.openpty()
    settings = kept | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | more
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(_on_terminal, folder, settings, words, theirs)
        written = _all_of(ours)
        ended.result(60)
    os.close(ours)
    return written.decode("utf-8", "surrogateescape")


def _on_terminal(folder: Path, settings: dict[str, str], words: tuple[str, ...], terminal: int) -> None:
    try:
        if needs_interpreter(settings):
            command = [sys.executable, "-c", "from overnight.cli import main; main()", *words]
            streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
            subprocess.run(command, cwd=folder, env=settings, timeout=60, check=False, **streams)
        else:
            Command(server(), list(words), str(folder), settings, (terminal, terminal, terminal)).wait()
    finally:
        os.close(terminal)


def _all_of(terminal: int) -> bytes:
    written = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # the terminal is closed on the other side
            break
        if not piece:
            break
        written += piece
    return written


def commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that can be called, groups that do something by themselves among them."""
    inner = getattr(command, "commands", {})
    if name and (not inner or command.invoke_without_command):
        yield name, command
    for word, each in inner.items():
        yield from commands(each, f"{name} {word}".strip())


ALL: dict[str, click.Command] = dict(commands(typer.main.get_command(program)))


def settled(text: str) -> str:
    """Without what only the clock changes."""
    text = re.sub(r"\d+(\.\d+)? (ms|s|min|h)( \d+ (s|min))?\b", "SPAN", text)
    return re.sub(r" +", " ", re.sub(r'"(duration_ms|parked_ms|wall_clock_s)":[^,}]+', r'"\1":0', text))
