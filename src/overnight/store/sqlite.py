"""SQLite through apsw: WAL, synchronous=FULL, and a file lock around each group commit.

The file lock is there because SQLite's own busy handler starves writers of other processes (longest wait measured: 2.3 s
without, 4 ms with).
"""

# apsw types its bindings with a Buffer that pyright does not know.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import errno
import fcntl
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

import apsw

from overnight.domain import BadInput, StoreUnavailable
from overnight.files import make_database_file, make_folder, open_file

from .statements import Dialect, Statement
from .unit import Later, Rows, Unwritable

DATA = (apsw.ConstraintError, apsw.MismatchError, apsw.TooBigError, UnicodeError, OverflowError)
BUSY_S = 30.0
READ_BUSY_MS = 10_000
LEAST_ROOM = 16_000_000
PATIENCE_S = 0.002
"""About as long as another process holds the locks for one commit: the event loop waits for that, and for nothing longer."""
WAY_OUT = "Set OVERNIGHT_HOME to a folder that can be written"


class SqliteDatabase:
    """One database file. Connections belong to the thread that opened them."""

    dialect: Dialect = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._vectors: str | None = None
        try:
            make_folder(path.parent)
        except OSError as error:
            raise BadInput(
                f"{path.parent}: the folder for the ledger cannot be made: {error.strerror}. {WAY_OUT}"
            ) from None

    def connect(self, *, readonly: bool = False, within: float = READ_BUSY_MS / 1000) -> "SqliteSession":
        try:
            if readonly:
                return SqliteSession(self._open_to_read(within), self.path)
            make_database_file(self.path)
            connection = apsw.Connection(str(self.path), statementcachesize=200)
            session = SqliteSession(connection, self.path)
            connection.set_busy_timeout(int(within * 1000))
            # SQLite does not wait when two processes turn a new file to WAL at once; one of them would fail.
            with session.alone():
                [(mode,)] = connection.execute("PRAGMA journal_mode=WAL").fetchall()
            connection.execute("PRAGMA wal_autocheckpoint=1000")
            if mode == "wal":  # else (no shared memory there) a COMMIT has to wait for readers
                connection.set_busy_timeout(0)
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA cache_size=-8000")
        except (apsw.Error, OSError) as error:
            raise StoreUnavailable(explained(error, self.path)) from error
        return session

    def _open_to_read(self, within: float) -> apsw.Connection:
        """Open the file for reading. In a folder that cannot be written, or on a full disk, SQLite cannot make the files that it
        shares with writers. Where there are none, there is no writer either, and it can do without."""
        name = f"file:{quote(str(self.path))}"
        alone = f"{name}?mode=ro&vfs=unix-none" if _has_content(Path(f"{self.path}-wal")) else f"{name}?immutable=1"
        try:
            connection = self._reader(name, within)
        except (apsw.ReadOnlyError, apsw.CantOpenError, apsw.IOError, apsw.FullError):
            can_be_written = os.access(self.path.parent, os.W_OK) and not self.lacks_room()
            if can_be_written or not os.access(self.path, os.R_OK):
                raise
            connection = self._reader(alone, within)
        if self._vectors is not None:
            _load(connection, self._vectors)
        return connection

    def _reader(self, name: str, within: float) -> apsw.Connection:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI  # read-only where the file is
        connection = apsw.Connection(name, flags=flags, statementcachesize=200)
        connection.set_busy_timeout(max(1, int(within * 1000)))
        if "unix-none" in name:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()  # the index of the WAL in memory
        # Small for readers: every reading thread has a cache of its own, and parked jobs are read once.
        connection.execute("PRAGMA cache_size=-2000")
        connection.execute("PRAGMA query_only=ON")
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        return connection

    def explained(self, error: Exception) -> str:
        return explained(error, self.path)

    def lacks_room(self) -> bool:
        """Whether less is left than a checkpoint and a batch of large calls may need."""
        return _lacks_room(self.path)

    def enable_vectors(self) -> None:
        """Readers opened from now on have sqlite-vec. Raises StoreUnavailable where it cannot be loaded."""
        try:
            path: str = import_module("sqlite_vec").loadable_path()
            _load(apsw.Connection(":memory:"), path)
        except (ImportError, apsw.Error, AttributeError) as error:
            raise StoreUnavailable(
                f"vectors cannot be compared: the SQLite extension sqlite-vec cannot be loaded ({error})."
                " `pip install sqlite-vec`, or use PostgreSQL with pgvector"
            ) from None
        self._vectors = path


def _lacks_room(path: Path) -> bool:
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < LEAST_ROOM


def _has_content(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


def explained(error: Exception, path: Path) -> str:
    """What is wrong with the file, and what to do."""
    if isinstance(error, apsw.NotADBError):
        return f"{path}: this is no SQLite database. Set DATABASE_URL or OVERNIGHT_HOME to where the ledger is"
    if isinstance(error, apsw.CorruptError):
        return f"{path}: {error}. Restore a backup, or save what can be read with `sqlite3 {path} .recover`"
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return f"{path}: another process has locked it. `fuser {path}` names it"
    why = error.strerror if isinstance(error, OSError) else error
    # Where there is no room for a file that SQLite shares among processes, it says nothing of that.
    is_full = isinstance(error, apsw.FullError) or getattr(error, "errno", None) == errno.ENOSPC
    if is_full or (isinstance(error, apsw.IOError | apsw.CantOpenError | OSError) and _lacks_room(path)):
        return f"{path}: {why}. The disk is full: make room on the disk of {path.parent}"
    return f"{path}: {why}. {WAY_OUT}"


def _load(connection: apsw.Connection, path: str) -> None:
    connection.enable_load_extension(True)
    try:
        connection.load_extension(path)
    finally:
        connection.enable_load_extension(False)


class SqliteSession:
    """A connection that runs one transaction at a time under the file lock."""

    dialect: Dialect = "sqlite"
    Error: type[Exception] = apsw.Error

    patience_s = PATIENCE_S

    def __init__(self, connection: apsw.Connection, path: Path) -> None:
        self.flush_s = 0.0
        self._connection = connection
        self._cursor = connection.cursor()
        self._lock_path, self._lock_file = f"{path}.lock", -1
        self._stopped = False

    @contextmanager
    def alone(self, until: float | None = None) -> Generator[None]:
        """Hold the file lock: no other process writes meanwhile. Readers never open it."""
        if self._lock_file < 0:
            self._lock_file = open_file(self._lock_path, os.O_RDWR | os.O_CREAT)
        self._wait_for(self._take_file_lock, until)
        try:
            yield
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def _take_file_lock(self) -> bool:
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _begin(self) -> bool:
        try:
            self._cursor.execute("BEGIN IMMEDIATE")
        except apsw.BusyError:
            return False
        return True

    def _wait_for(self, taken: Callable[[], bool], until: float | None) -> None:
        """Try until it is taken. Both locks are asked for without waiting: neither system call could be ended from outside, and
        looking again each millisecond finds the moments between two transactions of a busy process."""
        if taken():
            return
        began = time.monotonic()
        while not self._stopped:
            now = time.monotonic()
            if until is not None and now >= until:
                raise Later
            if now - began > BUSY_S:
                path = self._connection.filename
                raise StoreUnavailable(
                    f"{path}: another process has locked it for {BUSY_S:g} s. `fuser {path} {self._lock_path}` names it"
                )
            time.sleep(0.0003 if now - began < 0.01 else 0.001 if now - began < 1 else 0.005)
            if taken():
                return
        raise StoreUnavailable(f"{self._connection.filename}: closed while another process had locked it")

    @contextmanager
    def transaction(self, until: float | None = None) -> Generator["SqliteSession"]:
        try:
            with self.alone(until):
                self._wait_for(self._begin, until)
                try:
                    yield self
                    began = time.perf_counter()
                    self._cursor.execute("COMMIT")
                    self.flush_s = time.perf_counter() - began
                except BaseException:
                    if self._connection.in_transaction:
                        self._cursor.execute("ROLLBACK")
                    raise
        except DATA as error:
            raise Unwritable(str(error)) from error
        except apsw.Error as error:
            raise StoreUnavailable(explained(error, Path(self._connection.filename))) from error

    def was_committed(self, lost: str, tell: object) -> bool:
        raise NotImplementedError  # a COMMIT within this process is never lost

    def stop(self) -> None:
        self._stopped = True

    def query(self, sql: str, values: tuple[Any, ...]) -> Rows:
        try:
            return self._cursor.execute(sql, values).fetchall()
        except apsw.Error as error:
            raise StoreUnavailable(explained(error, Path(self._connection.filename))) from error

    def read(self, sql: str, values: tuple[Any, ...], until: float) -> Rows:  # noqa: ARG002
        """As `query`; nobody's writing keeps readers waiting."""
        return self.query(sql, values)

    def many(self, statement: Statement, values: Sequence[tuple[Any, ...]]) -> None:
        self._cursor.executemany(statement.sql["sqlite"], values)

    def month(self, month: int) -> None:
        """Months need no tables here."""

    def has_month(self, month: int) -> bool:  # noqa: ARG002
        return True

    def script(self, sql: str) -> None:
        self._cursor.execute(sql)

    schema_change = transaction

    def close(self) -> None:
        self._connection.close()
        if self._lock_file >= 0:
            os.close(self._lock_file)
