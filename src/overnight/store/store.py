"""Open a store by its URL: a path is SQLite, `postgresql://…` is PostgreSQL."""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import apsw

from overnight.domain import BadInput, StoreUnavailable

from .migration_runner import is_current, migrate, raise_feed_epoch
from .statements import Dialect, Statement
from .unit import Command, Rows
from .writer import Writer

T = TypeVar("T")
READERS = 4
READ_TIMEOUT_S = 10.0
"""The default time limit of a read, in seconds."""


def wall_clock_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


class Store:
    """One database: a group-committing writer and a pool of readers.

    `clock` returns microseconds since the epoch. Close the store, or use it as a context manager.
    """

    def __init__(self, database: Any, clock: Callable[[], int], *, for_reading: bool = False) -> None:
        self.dialect: Dialect = database.dialect
        self.clock = clock
        self._database = database
        self._local = threading.local()
        self._held: dict[threading.Thread, Any] = {}
        self._readers: ThreadPoolExecutor | None = None
        self._closed = False
        if not (for_reading and self._is_current()):
            self._migrate()
        self._writer: Writer | None = None

    def _is_current(self) -> bool:
        session = self._database.connect(readonly=True)
        try:
            return is_current(session, self.dialect, self._database.name)
        except session.Error as error:
            raise StoreUnavailable(self._database.explain(error)) from error
        finally:
            session.close()

    def _migrate(self) -> None:
        session = self._database.connect()
        try:
            migrate(session, self.dialect, self.clock(), self._database.name)
        except session.Error as error:
            raise StoreUnavailable(self._database.explain(error)) from error
        finally:
            session.close()

    def raise_feed_epoch(self, epoch: int, position: int) -> None:
        """See `migration_runner.raise_feed_epoch`. Blocks. Raises StoreUnavailable."""
        session = self._database.connect()
        try:
            raise_feed_epoch(session, self.dialect, epoch, position)
        except session.Error as error:
            raise StoreUnavailable(self._database.explain(error)) from error
        finally:
            session.close()

    @property
    def writer(self) -> Writer:
        """The writer, started on first use, so that read-only commands start no thread."""
        if self._writer is None:
            self._writer = Writer(self._database.connect, self.clock)
        return self._writer

    def commit(
        self, command: Command[T], *, until: float | None = None, on_late_commit: Callable[[T], None] | None = None
    ) -> Coroutine[Any, Any, T]:
        """See `Writer.commit`."""
        return self.writer.commit(command, until=until, on_late_commit=on_late_commit)

    def submit(self, command: Command[T]) -> "asyncio.Future[T]":
        return self.writer.submit(command, self.writer.running_loop())

    def defer(self, command: Command[Any]) -> "asyncio.Future[Any]":
        return self.writer.defer(command, self.writer.running_loop())

    def commit_blocking(self, command: Command[T]) -> T:
        return self.writer.commit_blocking(command)

    async def read(self, statement: Statement, values: Mapping[str, Any], *, until: float | None = None) -> Rows:
        """Run a read statement on a reader thread.

        Args:
            statement: the statement.
            values: its parameters, by name.
            until: the deadline in time of the running loop; default and maximum: 10 seconds from now.

        Raises:
            StoreUnavailable: the database did not answer in time, or the store is closed.
        """
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self._readers is None:
            self._readers = ThreadPoolExecutor(READERS, "overnight-reader")
        loop = asyncio.get_running_loop()
        now = loop.time()
        until = min(now + READ_TIMEOUT_S, until) if until is not None else now + READ_TIMEOUT_S
        over = time.monotonic() + until - now
        try:
            async with asyncio.timeout_at(until):
                return await loop.run_in_executor(self._readers, self.read_blocking, statement, values, over)
        except TimeoutError:
            raise StoreUnavailable("the database did not answer in time") from None

    def read_blocking(self, statement: Statement, values: Mapping[str, Any], until: float | None = None) -> Rows:
        """Run a read statement on this thread's connection, which is reopened if the server dropped it.

        `until` (time.monotonic) limits waits for a PostgreSQL server; default: 10 seconds from now.
        """
        until = time.monotonic() + READ_TIMEOUT_S if until is None else until
        bound = statement.from_mapping(self.dialect, values)
        for last_try in (False, True):
            session = getattr(self._local, "session", None)
            if session is None:
                session = self._local.session = self._connect_reader(until - time.monotonic())
            try:
                return session.read(statement.sql[self.dialect], bound, until)
            except apsw.Error as error:
                raise StoreUnavailable(str(error)) from error
            except StoreUnavailable:
                raise
            except Exception as error:
                self._local.session = None
                if last_try or time.monotonic() >= until:
                    raise StoreUnavailable(f"the database cannot be read: {type(error).__name__}") from error
        raise AssertionError("unreachable")

    def _connect_reader(self, within: float) -> Any:
        """Open the connection of this thread. The store holds a reference to it.

        A fork drops the locals of all other threads. It must not close their connections, whose locks are never
        released there.
        """
        thread = threading.current_thread()
        if (before := self._held.pop(thread, None)) is not None:
            before.close()
        session = self._held[thread] = self._database.connect(readonly=True, within=within)
        for thread in list(self._held):
            if not thread.is_alive() and (left := self._held.pop(thread, None)) is not None:
                left.close()
        return session

    def is_disk_full(self) -> bool:
        """Whether the local disk is full."""
        return self._database.is_disk_full()

    def enable_vectors(self) -> None:
        """Allow vector comparisons in read statements. Raises StoreUnavailable with the missing component."""
        self._database.enable_vectors()
        self._local = threading.local()  # existing readers do not support vectors

    def close(self) -> None:
        """Write queued commands and close the connections."""
        self._closed = True
        if self._writer is not None:
            self._writer.close()
        if self._readers is not None:
            self._readers.shutdown(wait=True)
        while self._held:
            self._held.popitem()[1].close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(url: str, clock: Callable[[], int] = wall_clock_us, *, for_reading: bool = False) -> Store:
    """Open a database and apply missing migrations.

    Args:
        url: `postgresql://…`, `postgres://…`, `sqlite:///PATH`, or the path of a SQLite file.
        clock: returns microseconds since the epoch; default: the wall clock.
        for_reading: write nothing if the schema is current, so that a read-only database can be read; default: False.

    Raises:
        StoreUnavailable: the database cannot be opened.
        BadInput: the URL or the schema is not supported.
    """
    if url.startswith(("postgresql://", "postgres://")):
        from .postgres import PostgresDatabase

        return Store(PostgresDatabase(url), clock, for_reading=for_reading)
    scheme = _SCHEME.match(url)
    if scheme and not url.startswith("sqlite:///"):
        raise BadInput(f"DATABASE_URL: unsupported scheme {scheme[0]}; use postgresql://… or sqlite:///PATH")
    from .sqlite import SqliteDatabase

    return Store(SqliteDatabase(Path(url.removeprefix("sqlite:///")).absolute()), clock, for_reading=for_reading)


_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://|(sqlite|postgres|postgresql)(\+[a-z0-9]+)?:/?", re.IGNORECASE)
