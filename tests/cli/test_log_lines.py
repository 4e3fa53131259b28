"""The log of `overnight up`: time, level, one line per failed job, one line per repeated problem."""

import io
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import JOBS
from overnight.supervisor import LogLines

LINE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ \w+: .+"


class Clocked:
    """A log with a clock that is set by hand."""

    def __init__(self) -> None:
        self.now, self.stream = 1_800_000_000.0, io.StringIO()
        self.handler = LogLines("worker", self.stream, every_s=60, quiet_s=10, clock=lambda: self.now)
        self.log = logging.Logger("night")
        self.log.addHandler(self.handler)

    @property
    def lines(self) -> list[str]:
        return [line.partition("Z ")[2] for line in self.stream.getvalue().splitlines()]


def test_repeated_problem_is_one_line_and_one_at_its_end() -> None:
    clocked = Clocked()
    for number in range(30):
        clocked.log.warning("worker_%032x cannot reach the store: %s", number, ConnectionError(f"refused {number}"))
        clocked.log.warning("circuits cannot be read: %s", ConnectionError("refused"))
        clocked.now += 1
    assert len(clocked.lines) == 1, "the same error in other words is the same trouble"
    clocked.handler.report_repeats()
    assert len(clocked.lines) == 1
    clocked.now += 11
    clocked.handler.report_repeats()
    assert len(clocked.lines) == 2
    assert clocked.lines[1].startswith("INFO worker: ended, 60 times in 29 s: worker_0000")
    clocked.log.warning("circuits cannot be read: %s", ConnectionError("refused"))
    assert len(clocked.lines) == 3, "it is news again"
    clocked.now += 11
    clocked.handler.report_repeats()
    assert len(clocked.lines) == 3, "what came once is not summed up"


def test_lasting_problem_is_logged_at_intervals() -> None:
    clocked = Clocked()
    for _ in range(250):
        clocked.log.warning("worker died (exit code 1); it is started again")
        clocked.now += 1
    assert len(clocked.lines) == 5
    assert all(line.startswith("WARNING worker: repeated, ") for line in clocked.lines[1:])


def test_distinct_messages_are_logged_at_once_on_one_line() -> None:
    clocked = Clocked()
    for number in range(3):
        clocked.log.error("job job_%032x failed: a\nbad \x1b[31m night", number, extra={"each": True})
        clocked.log.info("ready")
    clocked.log.warning("other trouble 1")
    clocked.log.warning("another trouble")
    try:
        raise ValueError("odd")
    except ValueError:
        clocked.log.exception("a fault")
    assert len(clocked.lines) == 9
    assert clocked.lines[0] == f"ERROR worker: job job_{0:032x} failed: a bad ?[31m night"
    assert re.fullmatch(r"ERROR worker: a fault: ValueError: odd \(test_log_lines.py:\d+\)", clocked.lines[-1])


@pytest.mark.parametrize("brain", ["none", "limits"])
def test_up_logs_failures_and_missing_limits(tmp_path: Path, brain: str) -> None:
    (tmp_path / "night.py").write_text(JOBS)
    if brain == "limits":
        (tmp_path / "brain").mkdir()
        (tmp_path / "brain" / "routing.yaml").write_text("budgets: {max_llm_calls_per_job: 9}\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVERNIGHT_", "DATABASE_"))}
    program = [sys.executable, "-m", "overnight"]
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with (tmp_path / "log").open("w+") as log:
        up = subprocess.Popen([*program, "up", "--port", port], cwd=tmp_path, env=kept, stdout=log, stderr=log)
        try:
            written = _until(tmp_path / "log", "is up")
            assert ("no budgets and no limits" in written) == (brain == "none")
            run = [*program, "run", "night.py:fails", "--detach"]
            jobs = [
                subprocess.run(run, cwd=tmp_path, env=kept, capture_output=True, text=True, check=True)
                for _ in range(2)
            ]
            for job in jobs:
                written = _until(tmp_path / "log", f"{job.stdout.strip()} (fails) failed: RuntimeError: a bad night")
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(30)
    written = (tmp_path / "log").read_text()
    failures = [line for line in written.splitlines() if "failed:" in line]
    assert len(failures) == 2
    welcome = re.compile(r"Overnight is up|  \S")
    assert all(re.fullmatch(LINE, line) or welcome.match(line) for line in written.splitlines()), written
    assert all(" ERROR worker: job job_" in line for line in failures)


def _until(file: Path, words: str) -> str:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if words in (written := file.read_text()):
            return written
        time.sleep(0.05)
    raise AssertionError(f"{words!r} was not written:\n{file.read_text()}")
