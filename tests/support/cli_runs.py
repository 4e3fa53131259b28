"""Runs of the command line as processes, forked from one that has imported it."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import command_server
from command_server import Command


class Ran(NamedTuple):
    code: int
    out: str
    err: str


INTERPRETER = ("PYTHON", "LC_", "LANG", "OVERNIGHT_CRASH_AT", "OVERNIGHT_STOP_AT")
"""Variables that are read when the interpreter starts or imports the program begin so."""


def needs_interpreter(environment: Mapping[str, str]) -> bool:
    """Whether the environment sets such a variable, and not as it is in this process."""
    named = {name: value for name, value in environment.items() if name.startswith(INTERPRETER)}
    return any(value not in {os.environ.get(name), "C.UTF-8"} for name, value in named.items())


def run(folder: Path, environment: Mapping[str, str], *words: str, stdin: str = "") -> Ran:
    """`overnight WORDS` in `folder`: its exit code and what it wrote."""
    if needs_interpreter(environment):
        command = [sys.executable, "-c", "from overnight.cli import main; main()", *words]
        done = subprocess.run(
            command, cwd=folder, env=environment, input=stdin, capture_output=True, text=True, check=False, timeout=120
        )
        return Ran(done.returncode, done.stdout, done.stderr)
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin.encode())
        given.seek(0)
        streams = (given.fileno(), out.fileno(), err.fileno())
        code = Command(server(), list(words), str(folder), dict(environment), streams).wait()
        for written in (out, err):
            written.seek(0)
        return Ran(code, out.read().decode(errors="replace"), err.read().decode(errors="replace"))


@cache
def server() -> str:
    """The socket of the command server, which ends with this process."""
    folder = tempfile.mkdtemp(prefix="commands-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "socket")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OVERNIGHT_")}
    command = [sys.executable, command_server.__file__, path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=kept)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n", "the command server did not start"
    atexit.register(process.communicate)
    return path


@cache
def program_folder() -> Path:
    """A folder with a program `overnight` that runs in the command server."""
    folder = Path(server()).parent / "bin"
    folder.mkdir()
    program = folder / "overnight"
    program.write_text(
        f"#!{sys.executable} -ISE\n"
        "import os, sys\n"
        "if {'OVERNIGHT_CRASH_AT', 'OVERNIGHT_STOP_AT'} & set(os.environ):\n"
        f"    os.execv({str(Path(sys.executable).with_name('overnight'))!r}, sys.argv)\n"
        f"sys.path.insert(0, {os.path.dirname(command_server.__file__)!r})\n"
        "from command_server import STREAMS, Command\n"
        f"where = ({server()!r}, sys.argv[1:], os.getcwd(), dict(os.environ), STREAMS, {os.path.dirname(sys.executable)!r})\n"
        "code = Command(*where).wait()\n"
        "sys.exit(code if code >= 0 else 128 - code)\n"
    )
    program.chmod(0o755)
    return folder
