"""Read-only ledgers can be read; an unreadable ledger is one clear error."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import apsw
import psycopg
import pytest

from machine_parts import make_job, note, program
from overnight.store import open_store
from store_locks import HOLDS_DATABASE, HOLDS_FILE, held

READS_AS_NOBODY = """
import io, os, re, sys
from contextlib import redirect_stderr, redirect_stdout
from overnight.cli import main

out, err = io.StringIO(), io.StringIO()  # the console keeps the first it sees

def command(*arguments):
    sys.argv = ["overnight", *arguments]
    for stream in (out, err):
        stream.seek(0)
        stream.truncate()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    text = re.sub(r"\\s+", " ", re.sub(r"[\\d.]+ m?s", "", out.getvalue()))  # how long the job is under way
    return code, text, err.getvalue()

live, copy, job = sys.argv[1:]
os.environ["OVERNIGHT_HOME"] = live
commands = [("jobs",), ("explain", job), ("events", job)]
wanted = [command(*each) for each in commands]
assert [code for code, _, _ in wanted] == [0, 0, 0], wanted
os.environ["OVERNIGHT_HOME"] = copy
os.setuid(65534)
found = [command(*each) for each in commands]
assert found == wanted, found
print("same", sorted(os.listdir(copy)))
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach; each run of pytest closes its own to others."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give up its rights")
@pytest.mark.parametrize("folder", ["read-only folder", "writable folder"])
@pytest.mark.parametrize("wal", ["with -wal", "without -wal", "with -wal and -shm"])
def test_read_only_ledger_can_be_read(open_folder: Path, folder: str, wal: str) -> None:
    live, copy = open_folder / "live", open_folder / "copy"
    copy.mkdir()
    with open_store(str(live / "ledger.db")) as store:
        job_id = make_job(store)
        store.commit_blocking(note(job_id, "one"))
        if wal == "without -wal":
            apsw.Connection(str(live / "ledger.db")).execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        for file in live.iterdir():
            ending = file.name.removeprefix("ledger.db")
            if ending == "" or ending in wal.replace("without -wal", ""):
                shutil.copy(file, copy)
        names = sorted(file.name for file in copy.iterdir())
        for file in copy.iterdir():
            file.chmod(0o444)
        copy.chmod(0o555 if folder == "read-only folder" else 0o777)
        with program(READS_AS_NOBODY, str(live), str(copy), job_id) as process:
            out, errors = process.communicate(timeout=60)
    assert errors == ""
    assert out.startswith("same")
    if folder == "read-only folder":
        assert out.split(maxsplit=1)[1].strip() == str(names)


@pytest.mark.parametrize("source", [HOLDS_FILE, HOLDS_DATABASE], ids=["file lock", "write lock"])
def test_locked_ledger_can_be_read(tmp_path: Path, source: str) -> None:
    url = str(tmp_path / "ledger.db")
    with open_store(url) as store:
        job_id = make_job(store)
    with held(source, url):
        shown = _overnight(tmp_path, "events", job_id)
    assert (shown[0], shown[2]) == (0, "")


def _overnight(home: Path, *arguments: str, url: str | None = None) -> tuple[int, str, str]:
    source = "import sys\nfrom overnight.cli import main\nmain()"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OVERNIGHT_HOME", str(home))
        patched.delenv("DATABASE_URL", raising=False)
        if url is not None:
            patched.setenv("DATABASE_URL", url)
        with program(source, *arguments) as process:
            out, errors = process.communicate(timeout=60)
            return process.returncode, out, errors


def _told(home: Path, *wanted: str, url: str | None = None, command: tuple[str, ...] = ("jobs",)) -> None:
    code, _, errors = _overnight(home, *command, url=url)
    assert (code, errors.count("\n")) == (1, 1), errors
    assert errors.startswith("overnight: ")
    for words in wanted:
        assert words in errors


@pytest.mark.parametrize("address", ["sqlite:/x", "postgresql:/x", "postgres:/ann:hunter2@db/x", "sqlite://x.db"])
def test_address_with_too_few_slashes_is_one_clear_error(tmp_path: Path, address: str) -> None:
    _told(tmp_path, "DATABASE_URL: ", "unsupported scheme", "sqlite:///PATH", url=address)
    code, _, errors = _overnight(tmp_path, "jobs", url=address)
    assert code == 1
    assert "hunter2" not in errors


def test_damaged_file_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    with open_store(str(file)) as store:
        job_id = make_job(store)
        for n in range(50):
            store.commit_blocking(note(job_id, n, content=b'"' + b"x" * 3000 + b'"'))
    body = file.read_bytes()
    file.write_bytes(body[:100] + b"\xff" * 8000 + body[8100:])
    _told(tmp_path, str(file), "Restore a backup")


def test_non_database_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("This is a letter and no database. " * 200)
    _told(tmp_path, "ledger.db", "not a SQLite database", "OVERNIGHT_HOME")
    (tmp_path / "ledger.db").unlink()
    (tmp_path / "ledger.db").mkdir()
    _told(tmp_path, "ledger.db: a folder", "DATABASE_URL")


@pytest.mark.parametrize("command", [("jobs",), ("resume", "job_x"), ("keys", "list")])
def test_database_of_another_program_is_unchanged(tmp_path: Path, command: tuple[str, ...]) -> None:
    connection = apsw.Connection(str(tmp_path / "ledger.db"))
    connection.execute("CREATE TABLE bookmarks (url)").fetchall()
    connection.close()
    _told(tmp_path, "another program", "bookmarks", "OVERNIGHT_HOME", command=command)
    with contextlib.closing(apsw.Connection(str(tmp_path / "ledger.db"))) as again:
        assert again.execute("SELECT name FROM sqlite_master").fetchall() == [("bookmarks",)]


def test_read_only_postgres_can_be_read(postgres_url: str, tmp_path: Path) -> None:
    """A standby: reading works where the schema is there, opening for writing is one clear error."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE reader_only LOGIN") if not connection.execute(
            "SELECT 1 FROM pg_roles WHERE rolname = 'reader_only'"
        ).fetchone() else None
    read_only = f"{postgres_url}&options=-c%20default_transaction_read_only%3Don"
    other = postgres_url.replace("postgres@", "reader_only@")
    _told(tmp_path, "read-only", "primary", url=read_only)
    _told(tmp_path, "Grant", url=other)
    with open_store(postgres_url) as store:
        job_id = make_job(store)
    assert _overnight(tmp_path, "events", job_id, url=read_only)[0] == 0
    _told(tmp_path, "permission denied", url=other)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader_only")
        assert _overnight(tmp_path, "events", job_id, url=other)[0] == 0
        connection.execute("INSERT INTO schema_migration VALUES (999, 0)")
    _told(tmp_path, "999", "upgrade overnight", url=other)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs file systems that can be mounted")
@pytest.mark.parametrize("wal", ["without log", "with log"])
def test_ledger_on_a_full_disk_can_be_read(small_disk: Path, wal: str) -> None:
    ledger = small_disk / "ledger.db"
    store = open_store(str(ledger))
    job_id = make_job(store)
    store.commit_blocking(note(job_id, 1))
    if wal == "with log":  # as a killed process leaves it
        kept = {name: Path(f"{ledger}{name}").read_bytes() for name in ("", "-wal")}
        store.close()
        for name, content in kept.items():
            Path(f"{ledger}{name}").write_bytes(content)
    else:
        store.close()
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"\0" * 4096)
    for command in (("jobs",), ("explain", job_id), ("events", job_id)):
        code, _, errors = _overnight(small_disk, *command)
        assert (code, errors) == (0, ""), command
    for command in (
        ("keys", "create", "mine"),
        ("budget", "top-up", "tenant", "default", "--usd", "1", "--per", "total"),
    ):
        _told(small_disk, "The disk is full: free space", command=command)
