"""SQLite through apsw: WAL, synchronous=FULL, and a file lock around each group commit.

SQLite's own busy handler starves writers of other processes. Longest measured wait: 2.3 s without the file lock, 4 ms
with it.
"""

# apsw declares its bindings with a Buffer type that pyright does not know.
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
from .unit import BatchTimeout, Rows, UnstorableData

DATA = (apsw.ConstraintError, apsw.MismatchError, apsw.TooBigError, UnicodeError, OverflowError)
BUSY_S = 30.0
READ_BUSY_MS = 10_000
MIN_FREE_BYTES = 16_000_000
MAX_BLOCK_S = 0.002
"""About the time of one commit of another process: the event loop waits for that, and no longer."""
WRITER_FLAGS = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_NOMUTEX
"""One thread at a time uses a connection, so SQLite need not lock it for each column that is read or bound."""
REMEDY = "Set DATABASE_URL to a file that can be written, or OVERNIGHT_HOME to a writable folder"


class SqliteDatabase:
    """One database file. A connection belongs to the thread that opened it."""

    dialect: Dialect = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._vectors: str | None = None
        try:
            make_folder(path.parent)
        except OSError as error:
            raise BadInput(
                f"{path.parent}: the folder for the ledger cannot be created: {error.strerror}. {REMEDY}"
            ) from None

    def connect(self, *, readonly: bool = False, within: float = READ_BUSY_MS / 1000) -> "SqliteSession":
        try:
            if readonly:
                return SqliteSession(self._open_for_reading(within), self.path)
            make_database_file(self.path)
            connection = apsw.Connection(str(self.path), flags=WRITER_FLAGS, statementcachesize=200)
            session = SqliteSession(connection, self.path)
            connection.set_busy_timeout(int(within * 1000))
            # SQLite does not wait when two processes switch a new file to WAL at once; one of them would fail.
            with session.exclusive():
                [(mode,)] = connection.execute("PRAGMA journal_mode=WAL").fetchall()
            connection.execute("PRAGMA wal_autocheckpoint=1000")
            if mode == "wal":  # without shared memory, COMMIT has to wait for readers
                connection.set_busy_timeout(0)
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA cache_size=-8000")
        except (apsw.Error, OSError) as error:
            raise StoreUnavailable(explain(error, self.path)) from error
        return session

    def _open_for_reading(self, within: float) -> apsw.Connection:
        """Open the file for reading. On a read-only folder or full disk, SQLite cannot create the files that it shares
        with writers.

        If these files do not exist, no writer exists either, and SQLite can read without them.
        """
        name = f"file:{quote(str(self.path))}"
        exclusive = f"{name}?mode=ro&vfs=unix-none" if _has_content(Path(f"{self.path}-wal")) else f"{name}?immutable=1"
        try:
            connection = self._reader(name, within)
        except (apsw.ReadOnlyError, apsw.CantOpenError, apsw.IOError, apsw.FullError):
            can_be_written = os.access(self.path.parent, os.W_OK) and not self.is_disk_full()
            if can_be_written or not os.access(self.path, os.R_OK):
                raise
            connection = self._reader(exclusive, within)
        if self._vectors is not None:
            _load(connection, self._vectors)
        return connection

    def _reader(self, name: str, within: float) -> apsw.Connection:
        # The file may be read-only.
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_NOMUTEX
        connection = apsw.Connection(name, flags=flags, statementcachesize=200)
        connection.set_busy_timeout(max(1, int(within * 1000)))
        if "unix-none" in name:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()  # keeps the WAL index in memory
        # Small for readers: each reader thread has its own cache, and parked jobs are read once.
        connection.execute("PRAGMA cache_size=-2000")
        connection.execute("PRAGMA query_only=ON")
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        return connection

    def explain(self, error: Exception) -> str:
        return explain(error, self.path)

    def is_disk_full(self) -> bool:
        """Whether less space is left than a checkpoint and a batch of large calls may need."""
        return _is_full_error(self.path)

    def enable_vectors(self) -> None:
        """Load sqlite-vec in new readers. Raises StoreUnavailable if it cannot be loaded."""
        try:
            path: str = import_module("sqlite_vec").loadable_path()
            _load(apsw.Connection(":memory:"), path)
        except (ImportError, apsw.Error, AttributeError) as error:
            raise StoreUnavailable(
                f"vectors cannot be compared: the SQLite extension sqlite-vec cannot be loaded ({error})."
                " `pip install sqlite-vec`, or use PostgreSQL with pgvector"
            ) from None
        self._vectors = path


def _is_full_error(path: Path) -> bool:
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < MIN_FREE_BYTES


def _has_content(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


def explain(error: Exception, path: Path) -> str:
    """The problem of the file, and the remedy."""
    if os.path.isdir(path):  # Path.is_dir raises in a closed folder
        return f"{path}: a folder, expected a database file. Set DATABASE_URL to a file, such as {path}/ledger.db"
    if isinstance(error, apsw.NotADBError):
        return f"{path}: not a SQLite database. Set DATABASE_URL or OVERNIGHT_HOME to the location of the ledger"
    if isinstance(error, apsw.CorruptError):
        return f"{path}: {error}. Restore a backup, or recover readable data with `sqlite3 {path} .recover`"
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return f"{path}: another process has locked it. `fuser {path}` names it"
    why = error.strerror if isinstance(error, OSError) else error
    # SQLite reports no reason if there is no space for its shared files.
    is_full = isinstance(error, apsw.FullError) or getattr(error, "errno", None) == errno.ENOSPC
    if is_full or (isinstance(error, apsw.IOError | apsw.CantOpenError | OSError) and _is_full_error(path)):
        return f"{path}: {why}. The disk is full: free space on the disk of {path.parent}"
    return f"{path}: {why}. {REMEDY}"


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

    max_block_s = MAX_BLOCK_S

    def __init__(self, connection: apsw.Connection, path: Path) -> None:
        self.flush_s = 0.0
        self._connection = connection
        self._cursor = connection.cursor()
        self._lock_path, self._lock_file = f"{path}.lock", -1
        self._stopped = False

    @contextmanager
    def exclusive(self, until: float | None = None) -> Generator[None]:
        """Hold the file lock, so that no other process writes. Readers do not use it."""
        self._lock_other_processes(until)
        try:
            yield
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def _lock_other_processes(self, until: float | None) -> None:
        if self._lock_file < 0:
            self._lock_file = open_file(self._lock_path, os.O_RDWR | os.O_CREAT)
        self._wait_for(self._take_file_lock, until)

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
        """Poll until a lock is acquired.

        Blocking system calls cannot be interrupted. Polling each millisecond finds the gaps between transactions of a
        busy process.
        """
        if taken():
            return
        began = time.monotonic()
        while not self._stopped:
            now = time.monotonic()
            if until is not None and now >= until:
                raise BatchTimeout
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
            self._lock_other_processes(until)  # as `exclusive`, without a second generator for each commit
            try:
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
            finally:
                fcntl.flock(self._lock_file, fcntl.LOCK_UN)
        except DATA as error:
            raise UnstorableData(str(error)) from error
        except apsw.Error as error:
            raise StoreUnavailable(explain(error, Path(self._connection.filename))) from error

    def was_committed(self, transaction_id: str, report: object) -> bool:
        raise NotImplementedError  # a COMMIT within this process always has a known outcome

    def stop(self) -> None:
        self._stopped = True

    def query(self, sql: str, values: tuple[Any, ...]) -> Rows:
        try:
            return self._cursor.execute(sql, values).fetchall()
        except apsw.Error as error:
            raise StoreUnavailable(explain(error, Path(self._connection.filename))) from error

    def query_keys(self, sql: str, keys: Sequence[tuple[Any, ...]]) -> Rows:
        try:
            return self._cursor.executemany(sql, keys).fetchall()
        except apsw.Error as error:
            raise StoreUnavailable(explain(error, Path(self._connection.filename))) from error

    def read(self, sql: str, values: tuple[Any, ...], until: float) -> Rows:  # noqa: ARG002
        """As `query`. Writers do not block readers."""
        return self.query(sql, values)

    def execute_many(self, statement: Statement, values: Sequence[tuple[Any, ...]]) -> None:
        self._cursor.executemany(statement.sql["sqlite"], values)

    def create_partitions(self, month: int) -> None:
        """Does nothing, since SQLite has no partitions."""

    def has_partitions(self, month: int) -> bool:  # noqa: ARG002
        return True

    def script(self, sql: str) -> None:
        self._cursor.execute(sql)

    schema_change = transaction

    def close(self) -> None:
        self._connection.close()
        if self._lock_file >= 0:
            os.close(self._lock_file)
