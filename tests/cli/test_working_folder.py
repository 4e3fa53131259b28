"""Files in the working folder are not executed, and job code does not inherit the program's keys."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli_runs import run
from command_line import ROUTING
from overnight.testing import SpawnedProvider

PLANTS = (
    *("uvloop", "apsw", "msgspec", "httptools", "psycopg", "sqlite_vec", "rich", "typer", "genai_prices"),
    *("cryptography", "litellm", "ruamel", "sitecustomize", "overnight", "json", "logging"),
)
PLANT = "open({marker!r}, 'a').write(__name__ + '\\n')\nraise SystemExit('planted code ran')\n"
MASTER = "c2VjcmV0LW1hc3Rlci1rZXktb2YtMzItYnl0ZXMhISE="
SECRETS = {"OPENAI_API_KEY": "sk-planted-openai", "OWN_KEY": "sk-planted-own", "OVERNIGHT_MASTER_KEY": MASTER}
LEAKS = """
import os, subprocess, sys
import overnight

AT_IMPORT = dict(os.environ)

@overnight.effect
def tool() -> dict:
    return dict(os.environ)

@overnight.step
async def child() -> str:
    return subprocess.run([sys.executable, "-c", "import os; print(dict(os.environ))"], capture_output=True, text=True).stdout

@overnight.job
async def leaks() -> list:
    answer = await overnight.chat("hello", task="greet")
    return [AT_IMPORT, dict(os.environ), await tool(), await child(), answer.text]
"""


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVERNIGHT_", "DATABASE_"))}
    return kept | more


def program(console_script: bool = True) -> list[str]:
    """As it is installed, or as a module, for which Python puts the working folder on the path."""
    return [str(Path(sys.executable).with_name("overnight"))] if console_script else [sys.executable, "-m", "overnight"]


def plant(folder: Path) -> Path:
    marker = folder / "ran"
    for name in PLANTS:
        (folder / f"{name}.py").write_text(PLANT.format(marker=str(marker)))
    return marker


@contextmanager
def serving(folder: Path, log: Path, *words: str, more: dict[str, str], module: bool = False) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [*program(not module), *words, *(["--port", port] if "worker" not in words else [])]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=folder, env=environment(**more), stdout=out, stderr=out)
    try:
        until = time.monotonic() + 60
        while "is up" not in log.read_text() and '"ready"' not in log.read_text():
            assert time.monotonic() < until, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


@pytest.mark.parametrize("role", ["up", "gateway", "worker"])
def test_files_of_the_working_folder_are_not_imported(tmp_path: Path, role: str) -> None:
    marker, log = plant(tmp_path), tmp_path / "log"
    home = tmp_path / "home"
    with serving(tmp_path, log, role, more={"OVERNIGHT_HOME": str(home), "OPENAI_API_KEY": "sk-x"}):
        time.sleep(0.5 if role == "up" else 0)  # its worker starts last
    assert not marker.exists(), marker.read_text()
    assert "died" not in log.read_text()


def test_job_folder_does_not_shadow_packages(tmp_path: Path, provider: SpawnedProvider) -> None:
    """`overnight run` is told to load from the folder; what is installed stands before it."""
    (tmp_path / "brain").mkdir()
    (tmp_path / "brain" / "routing.yaml").write_text(ROUTING.format(url=provider.base_url))
    (tmp_path / "own_words.py").write_text("WORD = 'own'\n")
    (tmp_path / "night.py").write_text(
        "import overnight, own_words\n@overnight.job\nasync def night() -> str:\n    return own_words.WORD\n"
    )
    marker = plant(tmp_path)
    for reference in ("night.py:night", "night:night"):
        command = [*program(), "run", reference, "--json"]
        done = subprocess.run(command, check=False, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["result"] == "own"
    assert not marker.exists(), marker.read_text()


def test_module_is_loaded_from_the_given_folder(tmp_path: Path) -> None:
    (tmp_path / "night.py").write_text(
        "import overnight\n@overnight.job\nasync def night() -> str:\n    return 'done'\n"
    )
    home = {"OVERNIGHT_HOME": str(tmp_path / "home")}
    for told in (False, True):
        words = ["worker", "--jobs", "night"] if told else ["worker"]
        with serving(tmp_path, tmp_path / "log", *words, more=home):
            command = [*program(), "run", "night:night", "--detach"]
            queued = subprocess.run(command, check=True, cwd=tmp_path, env=environment(**home), capture_output=True)
            job_id = queued.stdout.decode().strip()
            assert _rests(tmp_path, job_id, home) == ("succeeded" if told else "parked")


def _rests(folder: Path, job_id: str, more: dict[str, str]) -> str:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        shown = run(folder, environment(**more), "jobs", "--json")
        state = next(each["state"] for each in json.loads(shown.out) if each["job_id"] == job_id)
        if state not in {"queued", "running"}:
            return state
        time.sleep(0.1)
    raise AssertionError("it does not come to rest")


OWN_PROVIDER = """
default_model: small
routes: {{greet: small}}
providers:
  here: {{base_url: "{url}", models: [small], api_key_env: OWN_KEY}}
prices:
  small: {{input_usd_per_mtok: 1, output_usd_per_mtok: 1}}
"""


@pytest.mark.parametrize("way", ["run", "up"])
def test_job_code_and_children_inherit_no_keys(tmp_path: Path, provider: SpawnedProvider, way: str) -> None:
    (tmp_path / "brain").mkdir()
    (tmp_path / "brain" / "routing.yaml").write_text(OWN_PROVIDER.format(url=provider.base_url))
    (tmp_path / "leak.py").write_text(LEAKS)
    more = SECRETS | {"OVERNIGHT_HOME": str(tmp_path / "home"), "MINE": "stays"}
    leak = [*program(), "run", "leak.py:leaks", "--json"]
    if way == "run":
        done = subprocess.run(leak, check=False, cwd=tmp_path, env=environment(**more), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)["result"]
    else:
        with serving(tmp_path, tmp_path / "log", "up", "--jobs", "leak.py", more=more):
            done = subprocess.run(
                [*leak, "--detach"], check=True, cwd=tmp_path, env=environment(**more), capture_output=True, text=True
            )
            job_id = json.loads(done.stdout)["job_id"]
            assert _rests(tmp_path, job_id, more) == "succeeded"
        result = run(tmp_path, environment(**more), "explain", job_id, "--json", "--content").out
    text = json.dumps(result)
    assert "stays" in text, "the rest of the environment is there"
    for name, secret in SECRETS.items():
        assert secret not in text, name
    if way == "run":
        assert result[4], "the model was called, with the key that was taken"
