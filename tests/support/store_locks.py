"""Blocks a store: locks of another process, and a PostgreSQL server that is stopped."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import psycopg

from machine_parts import program

HOLDS_FILE = """
import fcntl, os, sys
file = os.open(sys.argv[1] + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""
HOLDS_DATABASE = """
import apsw, sys
connection = apsw.Connection(sys.argv[1])
connection.set_busy_timeout(5000)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""


@contextmanager
def held(source: str, url: str) -> Iterator[None]:
    """Another process holds a lock of the SQLite database for the length of the block."""
    with program(source, url) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield


@contextmanager
def locked_table(url: str, table: str) -> Iterator[None]:
    with psycopg.connect(url) as connection:
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield
        connection.rollback()


@contextmanager
def unwritable(url: str, table: str) -> Iterator[None]:
    """A store whose rows can be read, but not locked or written (on PostgreSQL those of one table), during the block."""
    if not url.startswith("postgresql://"):
        with held(HOLDS_DATABASE, url):
            yield
        return
    with psycopg.connect(url) as connection:
        connection.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE".encode())
        yield
        connection.rollback()


@contextmanager
def stopped_server(url: str) -> Iterator[None]:
    """All processes of the PostgreSQL server stand still for the length of the block."""
    with psycopg.connect(url) as connection:
        backend = connection.info.backend_pid
        server = psutil.Process(backend).parent()
    assert server is not None
    family = [server.pid, *(child.pid for child in server.children(recursive=True) if child.pid != backend)]
    stopped: list[int] = []
    try:
        for pid in family:
            try:
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
            except ProcessLookupError:
                continue
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def stopped_writer(url: str) -> Iterator[None]:
    """The server's processes that wrote last on behalf of others stand still; the server goes on."""
    with psycopg.connect(url) as connection:
        own = connection.info.backend_pid
        found = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> %s", (own,)
        ).fetchall()
    pids = [pid for (pid,) in found]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def kept_from_answering(what: str, url: str) -> Iterator[None]:
    """One of the above by its name."""
    if what == "file lock":
        trouble = held(HOLDS_FILE, url)
    elif what == "write lock":
        trouble = held(HOLDS_DATABASE, url)
    elif what == "stopped server":
        trouble = stopped_server(url)
    elif what == "stopped backends":
        trouble = stopped_writer(url)
    else:
        trouble = locked_table(url, what.removeprefix("locked "))
    with trouble:
        yield
