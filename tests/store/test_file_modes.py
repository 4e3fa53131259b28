"""Files with content are readable by their owner only, for any umask and earlier mode."""

import ast
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import JOBS, ROUTING
from overnight.testing import SpawnedProvider
from source_trees import tree_of

OVERNIGHT = "from overnight.cli import main; main()"
SOURCES = Path(__file__).parents[2] / "src" / "overnight"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can enter, as a checkout is."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVERNIGHT_", "DATABASE_"))}
    return kept | more


def overnight(folder: Path, *words: str, umask: int = 0, **more: str) -> str:
    command = [sys.executable, "-c", OVERNIGHT, *words]
    done = subprocess.run(
        command,
        check=False,
        cwd=folder,
        env=environment(**more),
        umask=umask,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def open_to_others(home: Path) -> dict[str, str]:
    """What others may do with what lies in the home, and with the home."""
    found = [home, *home.rglob("*")]
    modes = {str(each.relative_to(home)): stat.S_IMODE(each.lstat().st_mode) for each in found if not each.is_socket()}
    return {name: oct(mode) for name, mode in modes.items() if mode & 0o077}


def lay_out(folder: Path, url: str) -> None:
    (folder / "brain").mkdir()
    (folder / "brain" / "routing.yaml").write_text(ROUTING.format(url=url))
    (folder / "night.py").write_text(JOBS)


@pytest.mark.parametrize("umask", [0, 0o022, 0o777], ids=oct)
def test_home_folder_is_created_for_its_owner_only(folder: Path, provider: SpawnedProvider, umask: int) -> None:
    lay_out(folder, provider.base_url)
    keys = [sys.executable, "-c", OVERNIGHT, "keys", "provider", "set", "openai", "--from-env", "PLANTED"]
    overnight(folder, "run", "night.py:adds", umask=umask)
    subprocess.run(keys, cwd=folder, env=environment(PLANTED="sk-1"), umask=umask, check=True, capture_output=True)
    home = folder / ".overnight"
    assert {"ledger.db", "ledger.db.lock", "master.key"} <= {each.name for each in home.iterdir()}
    assert open_to_others(home) == {}
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "ledger.db").stat().st_mode) == 0o600


def test_database_side_files_are_owner_only(folder: Path) -> None:
    holds = (
        "from machine_parts import make_job\nfrom overnight.store import open_store\n"
        "with open_store('deep/er/ledger.db') as store:\n    make_job(store); print('open', flush=True); input()"
    )
    more = environment(PYTHONPATH=str(Path(__file__).parents[1] / "support"))
    command = [sys.executable, "-c", holds]
    with subprocess.Popen(command, cwd=folder, env=more, stdin=-1, stdout=-1, umask=0, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        names = {each.name for each in (folder / "deep" / "er").iterdir()}
        wide = open_to_others(folder / "deep")
        process.communicate("\n")
    assert {"ledger.db", "ledger.db-wal", "ledger.db-shm"} <= names
    assert wide == {}


def test_open_home_and_ledger_modes_are_tightened(folder: Path, provider: SpawnedProvider) -> None:
    lay_out(folder, provider.base_url)
    overnight(folder, "run", "night.py:adds")
    home = folder / ".overnight"
    home.chmod(0o755)
    (home / "ledger.db").chmod(0o644)
    (home / "ledger.db.lock").chmod(0o666)
    overnight(folder, "run", "night.py:adds")
    assert open_to_others(home) == {}


def test_given_folder_keeps_its_mode(folder: Path, provider: SpawnedProvider) -> None:
    lay_out(folder, provider.base_url)
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    overnight(folder, "run", "night.py:adds", OVERNIGHT_HOME=str(shared))
    assert open_to_others(shared) == {".": "0o755"}


@pytest.mark.parametrize("command", ["up", "gateway"])
def test_server_warns_of_an_open_home(folder: Path, command: str) -> None:
    shared, log = folder / "shared", folder / "log"
    shared.mkdir()
    shared.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1]) if command == "up" else "0"
    with log.open("w") as out:
        serving = subprocess.Popen(
            [sys.executable, "-c", OVERNIGHT, command, "--port", port],
            cwd=folder,
            env=environment(OVERNIGHT_HOME=str(shared)),
            stdout=out,
            stderr=out,
        )
    try:
        until = time.monotonic() + 60
        while "is up" not in log.read_text() and '"ready"' not in log.read_text():
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
    finally:
        serving.send_signal(signal.SIGINT)
        serving.wait(30)
    said = [line for line in log.read_text().splitlines() if "other users can enter this folder" in line]
    assert len(said) == 1, log.read_text()
    assert f"chmod 700 {shared}" in said[0]


def test_demo_mail_is_owner_only(folder: Path) -> None:
    from overnight.demo.maildir import create_maildir, deliver, file_into

    before = os.umask(0)
    try:
        create_maildir(folder / "box")
        name = deliver(folder / "box", b"Subject: x\r\n\r\nplanted")
        file_into(folder / "box", name, "Answered")
    finally:
        os.umask(before)
    assert open_to_others(folder / "box") == {}


def test_only_known_code_creates_files() -> None:
    """The starter brain is no content; everything else goes through `files.py`."""
    allowed = {"files.py", "brain/starter/__init__.py"}
    found: list[str] = []
    for source in SOURCES.rglob("*.py"):
        name = str(source.relative_to(SOURCES))
        if name in allowed:
            continue
        for node in ast.walk(tree_of(source)):
            if isinstance(node, ast.Call) and _makes(node):
                found.append(f"{name}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert found == []


def _makes(call: ast.Call) -> bool:
    words = ast.unparse(call.func)
    if words.endswith(".touch") and not call.args:
        return True
    if words.rpartition(".")[2] in {"mkdir", "makedirs", "write_text", "write_bytes", "copytree", "copyfile"}:
        return True
    given = [ast.unparse(each) for each in [*call.args, *(word.value for word in call.keywords)]]
    if words == "os.open":
        return any("O_CREAT" in each for each in given)
    is_open = words == "open" or words.endswith(".open")
    return is_open and any(each[1:-1] in {"w", "wb", "x", "xb", "a", "ab", "w+", "r+"} for each in given)
