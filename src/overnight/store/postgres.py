"""PostgreSQL through psycopg 3: one pipelined transaction per group commit.

A connection that breaks while COMMIT is on its way leaves the outcome unknown, so every transaction keeps its id and the
outcome is asked of the server (`pg_xact_status`) before anything is decided again.
"""

import contextlib
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, LiteralString, cast

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from overnight.domain import BadInput, StoreUnavailable

from .statements import Dialect, Statement
from .unit import Redo, Rows, Unwritable

CONCURRENT = (errors.UniqueViolation, errors.DeadlockDetected, errors.SerializationFailure)
DATA = (psycopg.DataError, psycopg.IntegrityError, UnicodeError, OverflowError)
LOSSES = ("57P", "08")  # the server or the way to it went down, perhaps just after the COMMIT
RECONNECT_FOR_S = 30.0
BULK_FROM = 5


def scrub(error: BaseException) -> str:
    """The first line of a driver's message; later lines can quote data, and a DSN can hold a password."""
    return str(error).strip().split("\n", 1)[0][:300]


class PostgresDatabase:
    """One database by its URL."""

    dialect: Dialect = "postgres"

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            parts = conninfo_to_dict(url)
        except psycopg.Error:
            parts = {"host": "@"}
        # A password with raw special characters spills into the other parts, which errors would then quote.
        if any("@" in str(parts.get(part, "")) for part in ("host", "port", "dbname")):
            raise BadInput(
                "DATABASE_URL: not a URL of the form postgresql://USER:PASSWORD@HOST:PORT/NAME;"
                " write special characters of the password percent-encoded (@ is %40)"
            )

    def connect(self, *, readonly: bool = False) -> "PostgresSession":
        setting = "default_transaction_read_only" if readonly else "synchronous_commit"
        try:
            connection = psycopg.connect(self._url, autocommit=True, connect_timeout=10)
            connection.prepare_threshold = 1
            connection.execute(f"SET {setting} = on")
        except psycopg.Error as error:
            raise StoreUnavailable(f"PostgreSQL cannot be reached: {scrub(error)}. Check DATABASE_URL") from None
        return PostgresSession(self, connection)

    def enable_vectors(self) -> None:
        """Make pgvector's type and operators known to this database. Raises StoreUnavailable where there are none."""
        session = self.connect()
        try:
            session.enable_vectors()
        finally:
            session.close()


class PostgresSession:
    """A connection that runs one transaction at a time and comes back after a lost server."""

    dialect: Dialect = "postgres"
    Error: type[Exception] = psycopg.Error

    def __init__(self, database: PostgresDatabase, connection: psycopg.Connection[Any]) -> None:
        self.flush_s = 0.0
        self._database = database
        self._connection = connection
        self._months: set[int] = set()

    @contextmanager
    def transaction(self) -> Generator["PostgresSession"]:
        if self._connection.closed:
            self._reconnect()
        connection, xid = self._connection, None
        try:
            with connection.pipeline():
                connection.execute("BEGIN")
                asked = connection.execute("SELECT pg_current_xact_id()::text")
                yield self
                # Known before COMMIT is sent; asked for first and fetched last, it costs no round trip of its own.
                xid = asked.fetchone()
                began = time.perf_counter()
                connection.execute("COMMIT")
            self.flush_s = time.perf_counter() - began
        except CONCURRENT as error:
            self._rollback()
            raise Redo from error
        except DATA as error:
            self._rollback()
            raise Unwritable(scrub(error)) from error
        except psycopg.OperationalError as error:
            self._after_loss(xid, error)
        except psycopg.Error as error:
            self._rollback()
            raise StoreUnavailable(f"PostgreSQL refused the write: {scrub(error)}") from error
        except BaseException:
            self._rollback()
            raise

    def _rollback(self) -> None:
        if not self._connection.closed:
            with contextlib.suppress(psycopg.OperationalError):  # lost: the server rolls back by itself
                # Statements that were prepared in a pipeline that broke are not there: `rollback` forgets them, executing
                # the word does not once it is a prepared statement itself.
                self._connection.rollback()

    def _after_loss(self, xid: tuple[str] | None, error: psycopg.OperationalError) -> None:
        """Return when the lost transaction is known to be committed; raise Redo when it is known not to be."""
        refused = error.sqlstate is not None and not error.sqlstate.startswith(LOSSES)
        if refused and not self._connection.closed:
            self._rollback()
            raise StoreUnavailable(f"PostgreSQL refused the write: {scrub(error)}") from error
        self._connection.close()
        while True:
            if self._connection.closed:
                self._reconnect()
            if xid is None:
                raise Redo from error
            try:
                row = self._connection.execute("SELECT pg_xact_status(%s::xid8)", (xid[0],)).fetchone()
            except psycopg.OperationalError:
                self._connection.close()  # lost once more
                continue
            status = row[0] if row else None
            if status == "committed":
                return
            if status != "in progress":
                raise Redo from error
            time.sleep(0.05)

    def _reconnect(self) -> None:
        give_up = time.monotonic() + RECONNECT_FOR_S
        pause = 0.05
        while True:
            try:
                self._connection = self._database.connect()._connection
            except StoreUnavailable:
                if time.monotonic() > give_up:
                    raise
                time.sleep(pause)
                pause = min(1.0, pause * 2)
            else:
                return

    def query(self, sql: str, values: tuple[Any, ...]) -> Rows:
        return self._connection.execute(cast(LiteralString, sql), values, binary=True).fetchall()

    def many(self, statement: Statement, values: Sequence[tuple[Any, ...]]) -> None:
        sql = cast(LiteralString, statement.sql["postgres"])
        if statement.bulk is not None and len(values) >= BULK_FROM:
            columns = [list(column) for column in zip(*values, strict=True)]
            self._connection.execute(cast(LiteralString, statement.bulk), columns)
        elif len(values) == 1:
            self._connection.execute(sql, values[0])
        else:
            self._connection.cursor().executemany(sql, values)

    def month(self, month: int) -> None:
        """Make the partitions of a month on first sight of it; the lock keeps two processes from colliding."""
        if month in self._months:
            return
        with self._database.connect()._connection as connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(72161)")
            for table in ("event", "message", "node", "blob"):
                connection.execute(
                    cast(
                        LiteralString,
                        f"CREATE TABLE IF NOT EXISTS {table}_{month:d} PARTITION OF {table} FOR VALUES IN ({month:d})",
                    )
                )
        self._months.add(month)

    def enable_vectors(self) -> None:
        try:
            with contextlib.suppress(errors.UniqueViolation):  # another process makes it just now
                self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            self._connection.execute("SELECT '[1]'::vector <=> '[1]'::vector")
        except psycopg.Error as error:
            raise StoreUnavailable(
                f"vectors cannot be compared: PostgreSQL has no pgvector here ({scrub(error)}). Install it on the server"
                " and run CREATE EXTENSION vector in this database"
            ) from None

    def script(self, sql: str) -> None:
        self._connection.execute(cast(LiteralString, sql))

    @contextmanager
    def schema_change(self) -> Generator["PostgresSession"]:
        """A plain transaction: migrations are scripts of several statements, which a pipeline cannot carry."""
        with self._connection.transaction():
            yield self

    def close(self) -> None:
        self._connection.close()
