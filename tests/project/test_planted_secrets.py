"""Plants keys, a prompt and an escape sequence wherever they can stand, and looks for them where they may not come to:
files of other modes, logs, process lists, environments of children, terminals, and answers to others."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from command_line import ACTS, on_terminal
from overnight.testing import SpawnedProvider

PROVIDER_KEY, TENANT_KEY = "sk-planted-provider-51a7", "sk-planted-tenant-9c02"
MASTER = "cGxhbnRlZC1tYXN0ZXIta2V5LW9mLTMyLWJ5dGVzISE="
PROMPT = "planted prompt 77d1"
ESCAPE = "\x1b]0;planted\x07\x9b2J\u202e"
ROUTING = """
default_model: small
routes: {{greet: small}}
providers:
  here: {{base_url: "{url}", models: [small], api_key_env: OWN_KEY}}
prices:
  small: {{input_usd_per_mtok: 1, output_usd_per_mtok: 1}}
"""
JOB = """
import asyncio, subprocess, sys
import overnight

@overnight.step
async def waits() -> str:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")
    try:
        await asyncio.sleep(60)
    finally:
        child.kill()
    return "done"

@overnight.job
async def holds() -> str:
    return await waits()
"""


def ask(port: str, method: str, path: str, key: str = "", body: Any = None, **headers: str) -> str:
    """Status, headers and body of an answer, as one text."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, method=method)
    for name, value in ({"authorization": f"Bearer {key}"} if key else {}).items() | headers.items():
        request.add_header(name.replace("_", "-"), value)
    if data is not None:
        request.add_header("content-type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return f"{answer.status} {answer.headers} {answer.read().decode()}"
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.headers} {error.read().decode()}"


def of_tree(root: int) -> dict[str, tuple[str, str]]:
    """Of each process below `root`: how it is called, and its environment as it was started with."""
    found: dict[str, tuple[str, str]] = {}
    for process in psutil.Process(root).children(recursive=True):
        place = Path("/proc", str(process.pid))
        line, began = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
        found[line.replace(b"\0", b" ").decode()] = line.decode(), began.decode("utf-8", "replace")
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc")
def test_planted_secrets_stay_in_place(tmp_path: Path, provider: SpawnedProvider) -> None:
    (tmp_path / "brain").mkdir()
    (tmp_path / "brain" / "routing.yaml").write_text(ROUTING.format(url=provider.base_url))
    (tmp_path / "hold.py").write_text(JOB)
    more = {"OWN_KEY": PROVIDER_KEY, "OVERNIGHT_MASTER_KEY": MASTER, "TENANT_KEY": TENANT_KEY}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVERNIGHT_", "DATABASE_"))}
    own = {name: value for name, value in more.items() if name != "TENANT_KEY"}
    program = [sys.executable, "-c", "from overnight.cli import main; main()"]

    def overnight(*words: str, **extra: str) -> str:
        done = subprocess.run(
            [*program, *words], check=True, cwd=tmp_path, env=kept | own | extra, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    outputs = [overnight("keys", "provider", "set", "here", "--tenant", "acme", "--from-env", "TENANT_KEY", **more)]
    keys = {
        tenant: json.loads(_json_of(overnight("keys", "create", tenant, "--tenant", tenant, "--json")))
        for tenant in ("acme", "other")
    }
    acme, other = (keys[tenant]["key"] for tenant in ("acme", "other"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    log = tmp_path / "log"
    with log.open("w") as out:
        up = subprocess.Popen(
            [*program, "up", "--port", port, "--jobs", "hold.py"],
            cwd=tmp_path, env=kept | own, stdout=out, stderr=out, umask=0,
        )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while "is up" not in log.read_text():
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        overnight("run", "hold.py:holds", "--detach")
        said = [{"role": "user", "content": PROMPT + ESCAPE}]
        call = {"model": "small", "messages": said, "user": PROMPT}
        first = ask(port, "POST", "/v1/chat/completions", acme, call, x_job_id="planted-job")
        assert first.startswith("200"), first
        answers = [
            ask(port, "GET", path, other) for path in ("/api/v1/jobs", "/api/v1/jobs/planted-job", "/api/v1/keys")
        ]
        answers += [
            ask(port, "POST", path, acme, {"model": ESCAPE, "messages": said})
            for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses")
        ]
        answers += [ask(port, "GET", f"/api/v1/{PROMPT.replace(' ', '%20')}", PROVIDER_KEY)]
        until = time.monotonic() + 20
        while not any("time.sleep(60)" in line for line in of_tree(up.pid)):
            assert time.monotonic() < until, "the job's child does not run"
            time.sleep(0.05)
        tree = of_tree(up.pid)
        home = tmp_path / ".overnight"
        wide = {each.name for each in [home, *home.rglob("*")] if each.stat().st_mode & 0o077}
        holding = [each for each in tmp_path.rglob("*") if each.is_file() and PROMPT.encode() in each.read_bytes()]
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(30)
    secrets = (PROVIDER_KEY, TENANT_KEY, MASTER, acme, other)

    assert wide == set(), "files that others can read"
    assert holding, "the prompt is kept"
    assert all(each.parent == home for each in holding), holding
    kept_bytes = b"".join(each.read_bytes() for each in home.iterdir() if each.is_file())
    assert [each for each in secrets if each.encode() in kept_bytes] == [], "keys at rest"
    written = log.read_text()
    assert [each for each in (*secrets, PROMPT) if each in written] == [], "the log"
    assert ACTS.search(written) is None, written
    for line, (command, began) in tree.items():
        assert [each for each in (*secrets, PROMPT) if each in command] == [], "the process list"
        ours = " gateway " in line or " worker " in line
        needed = [MASTER] if " api " in line else []  # it seals the keys of tenants, and calls no provider
        held = [each for each in secrets if each in began]
        assert held in ([], needed) or ours, f"the environment of {line}"
    assert [
        each for each in (*secrets, PROMPT) for answer in answers if each in answer.split("\n\n")[-1] and each != PROMPT
    ] == []
    assert all(PROMPT not in answer for answer in answers[:3]), "answers to another tenant"
    for output in outputs:
        assert [each for each in secrets if each in output] == [], output
    for words in (
        ["jobs", "--all-tenants"],
        ["explain", "planted-job", "--tenant", "acme", "--json", "--content"],
        ["keys", "list", "--all-tenants"],
    ):
        shown = on_terminal(tmp_path, *words, **own)
        assert [each for each in secrets if each in shown] == [], words
        assert ACTS.search(shown) is None, shown


def _json_of(text: str) -> str:
    found = re.search(r"^\{.*\}$", text, re.MULTILINE | re.DOTALL)
    assert found, text
    return found[0]
