"""Runs of the command line as processes, forked from one that has imported it."""

import io
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_FORKING: Any = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(
    [
        "overnight.cli.program",
        "overnight.cli.errors",
        "overnight.app",
        "overnight.api",
        "overnight.budgets",
        "overnight.gateway",
        "overnight.jobs",
        "overnight.keys",
        "overnight.testing",
        "genai_prices.data",
        "rich.console",
        "rich.text",
        "ruamel.yaml",
        "uvloop",
        "cli_runs",
    ]
)


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def run(folder: Path, environment: Mapping[str, str], *words: str, stdin: str = "") -> Ran:
    """`overnight WORDS` in `folder`: its exit code and what it wrote."""
    with tempfile.TemporaryDirectory() as outputs:
        Path(outputs, "0").write_text(stdin, encoding="utf-8")
        process = _FORKING.Process(target=_child, args=(str(folder), dict(environment), words, outputs))
        process.start()
        process.join(120)
        assert process.exitcode is not None, f"{words} did not end"
        out, err = (Path(outputs, number).read_text(encoding="utf-8", errors="replace") for number in "12")
        return Ran(process.exitcode, out, err)


def _child(folder: str, environment: dict[str, str], words: tuple[str, ...], outputs: str) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number in (0, 1, 2):
        kind = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
        os.dup2(os.open(os.path.join(outputs, str(number)), kind), number)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), "utf-8")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), "utf-8")
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), "utf-8", line_buffering=True)
    sys.argv = ["overnight", *words]
    from overnight.cli import main

    main()
