"""Open a store by its URL: a path is SQLite, `postgresql://…` is PostgreSQL."""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import apsw

from overnight.domain import BadInput, StoreUnavailable

from .migration_runner import is_current, migrate
from .statements import Dialect, Statement
from .unit import Command, Rows
from .writer import Writer

T = TypeVar("T")
READERS = 4
READ_FOR_S = 10.0
"""How long a read may take whose caller says nothing of it."""


def wall_clock_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


class Store:
    """One database: a group-committing writer and a few readers.

    `clock` gives microseconds since the epoch; tests may hand in their own. Close it, or use it as a context manager.
    """

    def __init__(self, database: Any, clock: Callable[[], int], *, to_read: bool = False) -> None:
        self.dialect: Dialect = database.dialect
        self.clock = clock
        self._database = database
        self._local = threading.local()
        self._held: dict[threading.Thread, Any] = {}
        self._readers: ThreadPoolExecutor | None = None
        self._closed = False
        if not (to_read and self._is_current()):
            self._migrate()
        self._writer: Writer | None = None

    def _is_current(self) -> bool:
        session = self._database.connect(readonly=True)
        try:
            return is_current(session, self.dialect, self._database.name)
        except session.Error as error:
            raise StoreUnavailable(self._database.explained(error)) from error
        finally:
            session.close()

    def _migrate(self) -> None:
        session = self._database.connect()
        try:
            migrate(session, self.dialect, self.clock(), self._database.name)
        except session.Error as error:
            raise StoreUnavailable(self._database.explained(error)) from error
        finally:
            session.close()

    @property
    def writer(self) -> Writer:
        """Started on first use, so that reading commands cost no thread."""
        if self._writer is None:
            self._writer = Writer(self._database.connect, self.clock)
        return self._writer

    async def commit(
        self, command: Command[T], *, until: float | None = None, left: Callable[[T], None] | None = None
    ) -> T:
        """See `Writer.commit`."""
        return await self.writer.commit(command, until=until, left=left)

    def submit(self, command: Command[T]) -> "asyncio.Future[T]":
        return self.writer.submit(command, self.writer.running_loop())

    def ride(self, command: Command[Any]) -> "asyncio.Future[Any]":
        return self.writer.ride(command, self.writer.running_loop())

    def commit_blocking(self, command: Command[T]) -> T:
        return self.writer.commit_blocking(command)

    async def read(self, statement: Statement, values: Mapping[str, Any], *, until: float | None = None) -> Rows:
        """Run a reading statement on a reader thread.

        Args:
            until: a time of the running loop after which the caller no longer waits; in 10 seconds at the latest.

        Raises:
            StoreUnavailable: the database did not answer in time, or the store is closed.
        """
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self._readers is None:
            self._readers = ThreadPoolExecutor(READERS, "overnight-reader")
        loop = asyncio.get_running_loop()
        now = loop.time()
        until = min(now + READ_FOR_S, until) if until is not None else now + READ_FOR_S
        over = time.monotonic() + until - now
        try:
            async with asyncio.timeout_at(until):
                return await loop.run_in_executor(self._readers, self.read_blocking, statement, values, over)
        except TimeoutError:
            raise StoreUnavailable("the database did not answer in time") from None

    def read_blocking(self, statement: Statement, values: Mapping[str, Any], until: float | None = None) -> Rows:
        """Run a reading statement on this thread's own connection; a connection the server dropped is opened again.

        `until` (of time.monotonic) ends the waits for a PostgreSQL server; by default in 10 seconds.
        """
        until = time.monotonic() + READ_FOR_S if until is None else until
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
        """A connection of this thread, held by the store as well: a fork of this process drops the locals of all other threads,
        and must not close connections there, within locks that nobody will ever release."""
        thread = threading.current_thread()
        if (before := self._held.pop(thread, None)) is not None:
            before.close()
        session = self._held[thread] = self._database.connect(readonly=True, within=within)
        for thread in list(self._held):
            if not thread.is_alive() and (left := self._held.pop(thread, None)) is not None:
                left.close()
        return session

    def lacks_room(self) -> bool:
        """Whether the disk is full, as far as this machine knows."""
        return self._database.lacks_room()

    def enable_vectors(self) -> None:
        """From now on reading statements may compare vectors. Raises StoreUnavailable, saying what is missing."""
        self._database.enable_vectors()
        self._local = threading.local()  # readers opened before this know nothing of vectors

    def close(self) -> None:
        """Write what is in line and close the connections."""
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


def open_store(url: str, clock: Callable[[], int] = wall_clock_us, *, to_read: bool = False) -> Store:
    """Open a database and bring its schema to this program's version.

    Args:
        url: `postgresql://…`, `postgres://…`, `sqlite:///PATH` or a plain path of a SQLite file.
        clock: microseconds since the epoch.
        to_read: write nothing on opening where the schema is current; a database that cannot be written can be read.
    """
    if url.startswith(("postgresql://", "postgres://")):
        from .postgres import PostgresDatabase

        return Store(PostgresDatabase(url), clock, to_read=to_read)
    scheme = _SCHEME.match(url)
    if scheme and not url.startswith("sqlite:///"):
        raise BadInput(f"DATABASE_URL: {scheme[0]} is not known; use postgresql://… or sqlite:///PATH")
    from .sqlite import SqliteDatabase

    return Store(SqliteDatabase(Path(url.removeprefix("sqlite:///")).absolute()), clock, to_read=to_read)


_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://|(sqlite|postgres|postgresql)(\+[a-z0-9]+)?:/?", re.IGNORECASE)
