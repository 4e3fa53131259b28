"""`overnight reviews` reports waiting jobs correctly, and distinguishes restarted workers."""

import json
import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import pytest

from command_line import Shell
from machine_parts import rows
from overnight.testing import SpawnedProvider


@pytest.fixture
def shell(tmp_path: Path, provider: SpawnedProvider) -> Shell:
    return Shell(tmp_path, provider.base_url)


def test_parked_job_without_review_is_listed(shell: Shell) -> None:
    shell("run", "night.py:asks", code=3)
    review = shell.json("reviews")[0]["review_id"]
    code = shell.folder / "night.py"
    code.write_text(code.read_text().replace("Go on?", "Go on at once?"))
    shell("reviews", "approve", review)
    job_id = shell.json("jobs")[0]["job_id"]
    shell("resume", job_id, code=3)
    assert shell.json("jobs")[0]["waiting"][0]["for"] == "divergence"
    shown = shell("reviews")
    assert "No pending reviews" not in shown
    assert job_id in shown
    assert f"overnight resume {job_id}" in shown
    shell("cancel", job_id)
    assert "No pending reviews" in shell("reviews")


def test_self_resuming_jobs_are_counted_apart(shell: Shell) -> None:
    (shell.folder / "sleeper.py").write_text(
        "import overnight\n@overnight.job\nasync def sleeps() -> None:\n    await overnight.sleep(3600)\n"
    )
    shell("run", "sleeper.py:sleeps", "--detach")
    with supervised(shell):
        wait_for(lambda: shell.json("jobs", "--state", "parked"))
    shown = shell("reviews")
    assert "No pending reviews" in shown
    assert "resume automatically: 1" in shown


class supervised:
    """`overnight up` for the length of the block."""

    def __init__(self, shell: Shell) -> None:
        with socket.socket() as place:
            place.bind(("127.0.0.1", 0))
            port = place.getsockname()[1]
        self._process = shell.start("up", "--port", str(port), "--jobs", "night.py")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=30)


def wait_for(what: Any) -> Any:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with suppress(apsw.Error):  # its tables are being made
            if found := what():
                return found
        time.sleep(0.05)
    raise AssertionError("not in time")


@pytest.mark.alone
def test_restarted_worker_has_a_new_id(shell: Shell, provider: SpawnedProvider) -> None:
    ledger = shell.folder / ".overnight" / "ledger.db"
    provider.set_rules("rules: [{answer: ok, fault: {delay_ms: 700}}]")

    def workers() -> dict[str, int]:
        found = rows(str(ledger), "SELECT worker_id, pid FROM worker WHERE role = 'worker' ORDER BY started_at")
        return dict(found)

    with supervised(shell):
        wait_for(ledger.exists)
        ((first, pid),) = wait_for(lambda: list(workers().items()))
        job_id = shell("run", "night.py:adds", "--detach").strip()
        [(owner,)] = wait_for(lambda: rows(str(ledger), "SELECT owner FROM reservation"))
        assert owner == first, "its calls are reserved under its own name"
        os.kill(pid, signal.SIGKILL)
        second = wait_for(lambda: workers().keys() - {first}).pop()
        wait_for(lambda: shell.json("jobs")[0]["state"] == "succeeded")
        assert workers()[second] != pid
    lost = [each["actor"] for each in shell_events(shell, job_id) if each["event"] in {"worker_lost", "resumed"}]
    assert lost == [first, second]


def shell_events(shell: Shell, job_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shell("events", job_id, "--json").splitlines()]
