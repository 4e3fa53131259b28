"""PostgreSQL through psycopg 3: one pipelined transaction per group commit.

If the connection breaks during COMMIT, the outcome is unknown. So each transaction keeps its id, and the server
reports the outcome (`pg_xact_status`) before a command is decided again.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, LiteralString, TypeVar, cast

import psycopg
from psycopg import errors, waiting
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.waiting import Wait

from overnight.domain import BadInput, StoreUnavailable

from .statements import Dialect, Statement
from .unit import BatchTimeout, RetryTransaction, Rows, UnstorableData

T = TypeVar("T")
CONCURRENT = (errors.UniqueViolation, errors.DeadlockDetected, errors.SerializationFailure)
DATA = (psycopg.DataError, psycopg.IntegrityError, UnicodeError, OverflowError)
LOSSES = ("57P", "08")  # the server or the network failed, perhaps after the COMMIT
RECONNECT_TIMEOUT_S = 30.0
CONNECT_S, RECONNECT_S = 10, 5
MAX_BLOCK_S = 0.03
BULK_FROM = 5
# TCP keepalive and timeout: a silent network failure is detected after about 25 s, also while data is in flight.
NETWORK = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}


def scrub(error: BaseException) -> str:
    """The first line of a driver's message. Later lines can contain data or the password of a DSN."""
    return str(error).strip().split("\n", 1)[0][:300]


class ServerTimeout(psycopg.OperationalError):
    """The server did not answer in time. The connection is in an unknown protocol state and must be closed."""


class _Connection(psycopg.Connection[Any]):
    """A connection whose waits end at `until` (time.monotonic), or when `stop` is set."""

    until: float | None = None
    stop: threading.Event | None = None

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:  # noqa: ARG002
        try:
            wanted = next(gen)
        except StopIteration as done:  # most statements of a pipeline do not wait
            return cast(T, done.value)
        if self.until is not None:
            interval = min(interval, max(0.001, self.until - time.monotonic()))
        try:
            return waiting.wait(self._bounded(gen, wanted), self.pgconn.socket, interval)
        except psycopg.Error as error:
            if isinstance(error, ServerTimeout):
                self.close()
            with contextlib.suppress(psycopg.Error, RuntimeError):
                gen.close()  # closing a pipeline would contact the server again, and Python would print the failure
            raise

    def _bounded(self, gen: PQGen[T], wanted: Wait) -> PQGen[T]:
        """Continue an exchange with the server; fail when the time is over."""
        try:
            while True:
                ready = yield wanted
                if not ready and self._is_over():
                    raise ServerTimeout("the server did not answer in time")
                wanted = gen.send(ready)
        except StopIteration as done:
            return cast(T, done.value)

    def _is_over(self) -> bool:
        late = self.until is not None and time.monotonic() >= self.until
        return late or (self.stop is not None and self.stop.is_set())


def _is_reportable(record: logging.LogRecord) -> bool:
    """Whether to log a record. Driver warnings about pipelines on a lost connection are dropped, since the loss is
    logged here."""
    return not str(record.msg).startswith("error ignored")


logging.getLogger("psycopg").addFilter(_is_reportable)


class PostgresDatabase:
    """One database, identified by its URL."""

    dialect: Dialect = "postgres"
    name = "DATABASE_URL"

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            parts = conninfo_to_dict(url)
        except psycopg.Error:
            parts = {"host": "@"}
        # Raw special characters in a password change the parsing of the other parts, which error messages would
        # quote.
        if any("@" in str(parts.get(part, "")) for part in ("host", "port", "dbname")):
            raise BadInput(
                "DATABASE_URL: not a URL of the form postgresql://USER:PASSWORD@HOST:PORT/NAME;"
                " percent-encode special characters of the password (@ is %40)"
            )

        self._network: dict[str, Any] = {name: value for name, value in NETWORK.items() if name not in parts}
        own = str(parts.get("connect_timeout", ""))
        self._connect_s = int(own) if own.isdigit() and int(own) else CONNECT_S

    def connect(self, *, readonly: bool = False, within: float = CONNECT_S) -> "PostgresSession":
        setting = "default_transaction_read_only" if readonly else "synchronous_commit"
        connection: _Connection | None = None
        try:
            connection = _Connection.connect(
                self._url,
                autocommit=True,
                connect_timeout=max(2, int(min(within, self._connect_s))),
                **self._network,
            )
            connection.prepare_threshold = 1
            connection.until = time.monotonic() + within
            connection.execute(f"SET {setting} = on")
            connection.until = None
        except psycopg.Error as error:
            if connection is not None:
                connection.close()
            raise StoreUnavailable(f"PostgreSQL cannot be reached: {scrub(error)}. Check DATABASE_URL") from None
        return PostgresSession(self, connection)

    def explain(self, error: Exception) -> str:
        """Why the ledger cannot be opened, and the remedy."""
        if isinstance(error, errors.ReadOnlySqlTransaction):
            remedy = "It is a standby or read-only: set DATABASE_URL to the primary server"
        elif isinstance(error, errors.InsufficientPrivilege):
            remedy = "Grant its user USAGE and CREATE on the schema, and the rights on overnight's tables"
        elif isinstance(error, errors.DiskFull):
            remedy = "Free space on the server's disk"
        else:
            remedy = "Check DATABASE_URL"
        return f"PostgreSQL refused: {scrub(error)}. {remedy}"

    def is_disk_full(self) -> bool:
        """False, since the server manages its disk."""
        return False

    def enable_vectors(self) -> None:
        """Register the vector type of pgvector. Raises StoreUnavailable if pgvector is missing."""
        session = self.connect()
        try:
            session.enable_vectors()
        finally:
            session.close()


class PostgresSession:
    """A connection that runs one transaction at a time and reconnects to a lost server."""

    dialect: Dialect = "postgres"
    Error: type[Exception] = psycopg.Error

    max_block_s = MAX_BLOCK_S

    def __init__(self, database: PostgresDatabase, connection: _Connection) -> None:
        self.flush_s = 0.0
        self._database = database
        self._connection = connection
        self._months: set[int] = set()
        self._stop = connection.stop = threading.Event()

    @contextmanager
    def transaction(self, until: float | None = None) -> Generator["PostgresSession"]:
        if self._connection.closed:
            if until is not None:
                raise BatchTimeout
            self._reconnect()
        connection, xid = self._connection, None
        connection.until = until
        try:
            with connection.pipeline():
                connection.execute("BEGIN")
                asked = connection.execute("SELECT pg_current_xact_id()::text")
                yield self
                # The id must be known before COMMIT is sent. Requested first and fetched last, it takes no extra
                # round trip.
                xid = cast(tuple[str], asked.fetchone())[0]
                began = time.perf_counter()
                connection.execute("COMMIT")
            self.flush_s = time.perf_counter() - began
        except CONCURRENT as error:
            self._rollback()
            raise RetryTransaction from error
        except DATA as error:
            self._rollback()
            raise UnstorableData(scrub(error)) from error
        except psycopg.OperationalError as error:
            self._after_loss(xid, error, may_wait=until is None)
        except psycopg.Error as error:
            self._rollback()
            raise StoreUnavailable(f"PostgreSQL refused the write: {scrub(error)}") from error
        except BaseException:
            self._rollback()
            raise
        finally:
            connection.until = None

    def _rollback(self) -> None:
        if not self._connection.closed:
            with contextlib.suppress(psycopg.OperationalError):  # lost: the server rolls back
                # Statements prepared in a broken pipeline do not exist. `rollback` clears the driver's list of them;
                # executing the SQL
                # ROLLBACK does not once it is a prepared statement itself.
                self._connection.rollback()

    def _after_loss(self, xid: str | None, error: psycopg.OperationalError, *, may_wait: bool) -> None:
        """Handle a lost connection.

        Raises:
            BatchTimeout: the writer thread must determine the outcome of the transaction.
            RetryTransaction: nothing was committed.
        """
        refused = error.sqlstate is not None and not error.sqlstate.startswith(LOSSES)
        if refused and not self._connection.closed:
            self._rollback()
            raise StoreUnavailable(f"PostgreSQL refused the write: {scrub(error)}") from error
        self._connection.close()
        if xid is not None or not may_wait:
            raise BatchTimeout(xid) from error
        self._reconnect()
        raise RetryTransaction from error

    def was_committed(self, transaction_id: str, report: Callable[[StoreUnavailable], None]) -> bool:
        while True:
            if self._connection.closed:
                self._reconnect(report)
            try:
                row = self._connection.execute("SELECT pg_xact_status(%s::xid8)", (transaction_id,)).fetchone()
            except psycopg.OperationalError:
                self._connection.close()  # connection lost again
                continue
            except errors.InvalidParameterValue:
                return False  # a future transaction id: a standby was promoted that never received the transaction
            except psycopg.Error as error:
                raise StoreUnavailable(f"the outcome of the write is unknown: {scrub(error)}") from error
            status = row[0] if row else None
            if status is None:
                raise StoreUnavailable(
                    "the outcome of the write is unknown: PostgreSQL no longer has the transaction's status"
                )
            if status != "in progress":
                return status == "committed"
            if self._stop.is_set():
                raise StoreUnavailable("closed while PostgreSQL did not answer: the outcome of the write is unknown")
            time.sleep(0.05)

    def _reconnect(self, report: Callable[[StoreUnavailable], None] | None = None) -> None:
        """Reconnect. Without `report`, fails after a time limit. With it, `report` receives the failure and only
        `stop` ends the attempts."""
        expire = time.monotonic() + RECONNECT_TIMEOUT_S
        pause = 0.05
        while True:
            if self._stop.is_set():
                raise StoreUnavailable("closed while PostgreSQL could not be reached")
            try:
                self._connection = self._database.connect(within=RECONNECT_S)._connection
                self._connection.stop = self._stop
            except StoreUnavailable as error:
                if time.monotonic() > expire:
                    if report is None:
                        raise
                    report(StoreUnavailable(f"the outcome of the write is not known yet: {error}"))
                    expire = float("inf")
                time.sleep(pause)
                pause = min(1.0, pause * 2)
            else:
                return

    def stop(self) -> None:
        self._stop.set()

    def query(self, sql: str, values: tuple[Any, ...]) -> Rows:
        return self._connection.execute(cast(LiteralString, sql), values, binary=True).fetchall()

    def query_keys(self, sql: str, keys: Sequence[tuple[Any, ...]]) -> Rows:
        return self.query(sql, tuple(list(column) for column in zip(*keys, strict=True)))

    def read(self, sql: str, values: tuple[Any, ...], until: float) -> Rows:
        """As `query`, on a read connection with a deadline."""
        self._connection.until = until
        try:
            return self.query(sql, values)
        finally:
            self._connection.until = None

    def execute_many(self, statement: Statement, values: Sequence[tuple[Any, ...]]) -> None:
        sql = cast(LiteralString, statement.sql["postgres"])
        if statement.bulk is not None and len(values) >= BULK_FROM:
            columns = [list(column) for column in zip(*values, strict=True)]
            self._connection.execute(cast(LiteralString, statement.bulk), columns)
        elif len(values) == 1:
            self._connection.execute(sql, values[0])
        else:
            self._connection.cursor().executemany(sql, values)

    def create_partitions(self, month: int) -> None:
        """Create the partitions of a month on its first use. A lock serialises concurrent processes."""
        if month in self._months:
            return
        with self._database.connect()._connection as connection, connection.transaction():
            connection.until = time.monotonic() + RECONNECT_TIMEOUT_S
            connection.execute("SELECT pg_advisory_xact_lock(72161)")
            for table in ("event", "message", "node", "blob"):
                connection.execute(
                    cast(
                        LiteralString,
                        f"CREATE TABLE IF NOT EXISTS {table}_{month:d} PARTITION OF {table} FOR VALUES IN ({month:d})",
                    )
                )
        self._months.add(month)

    def has_partitions(self, month: int) -> bool:
        return month in self._months

    def enable_vectors(self) -> None:
        try:
            with contextlib.suppress(errors.UniqueViolation):  # another process is creating it
                self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            self._connection.execute("SELECT '[1]'::vector <=> '[1]'::vector")
        except psycopg.Error as error:
            raise StoreUnavailable(
                f"vectors cannot be compared: PostgreSQL has no pgvector ({scrub(error)}). Install it on the server"
                " and run CREATE EXTENSION vector in this database"
            ) from None

    def script(self, sql: str) -> None:
        self._connection.execute(cast(LiteralString, sql))

    @contextmanager
    def schema_change(self) -> Generator["PostgresSession"]:
        """A transaction without a pipeline, since a pipeline cannot run scripts of several statements."""
        with self._connection.transaction():
            yield self

    def close(self) -> None:
        self._connection.close()
