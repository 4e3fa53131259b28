"""A unit of work: lock and load the rows of a batch of commands, decide in memory, write the changes.

Under the row locks the rules are plain Python over loaded rows. So a batch takes two round trips on PostgreSQL, a
rejected command does not abort the transaction, and the rules can be tested without a database.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter, itemgetter
from typing import Any, Generic, Protocol, TypeVar

from overnight.domain import StoreUnavailable

from .statements import Dialect, Statement

R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)
Rows = list[tuple[Any, ...]]


def records_of(record: Callable[..., R], rows: Iterable[Sequence[Any]]) -> list[R]:
    """Build one record per database row. The columns must be in the order of the record's fields."""
    return [record(*row) for row in rows]


class RetryTransaction(Exception):
    """The transaction was rolled back and can be decided again."""


class BatchTimeout(Exception):
    """The database did not answer within the time that the event loop may block. The writer thread continues the batch.

    - `transaction_id`: the transaction whose COMMIT was sent, for `Session.was_committed`; None: nothing was
    committed.
    - `outcomes`: the outcomes of the commands decided so far.
    """

    def __init__(self, transaction_id: str | None = None) -> None:
        super().__init__(transaction_id)
        self.transaction_id = transaction_id
        self.outcomes: list[tuple[Any, BaseException | None]] = []


class UnstorableData(Exception):
    """A row contains a value that the database cannot store. Nothing was committed."""


class Session(Protocol):
    """One open transaction on one connection, used by one thread at a time. `Error` is the base class of its driver's
    errors.

    `max_block_s`: the time that an event loop may block for it. `flush_s`: the duration of the last COMMIT.
    """

    dialect: Dialect
    Error: type[Exception]
    max_block_s: float
    flush_s: float

    def transaction(self, until: float | None = None) -> AbstractContextManager[object]:
        """One transaction. Raises BatchTimeout if the database has not answered by `until` (time.monotonic)."""
        ...

    def was_committed(self, transaction_id: str, report: Callable[[StoreUnavailable], None]) -> bool:
        """Whether a lost transaction was committed. Waits for the answer; `report` receives an error if that takes
        long."""
        ...

    def stop(self) -> None:
        """End all waits with StoreUnavailable. May be called from another thread."""
        ...

    def close(self) -> None: ...

    def query(self, sql: str, values: tuple[Any, ...]) -> Rows: ...

    def query_keys(self, sql: str, keys: Sequence[tuple[Any, ...]]) -> Rows:
        """The rows of all keys. `sql` is the `lock` statement of a table."""
        ...

    def execute_many(self, statement: Statement, values: Sequence[tuple[Any, ...]]) -> None: ...

    def create_partitions(self, month: int) -> None: ...

    def has_partitions(self, month: int) -> bool:
        """Whether the partitions of a month are known to exist."""
        ...


class Table(Generic[R]):
    """The statements of a table whose rows are locked, changed and written back.

    - `rank`: the position of the table in the global lock order; within a table, keys are ordered.
    - `lock`: takes the key columns: of one row on SQLite, arrays of them on PostgreSQL.
    - `touch`: a narrow update of the columns that change with each event.
    - `also_locks`: the row of a higher rank that must be locked together with a row.
    """

    def __init__(
        self,
        rank: int,
        row: Callable[..., R],
        key: Callable[[R], Any],
        *,
        lock: Statement,
        insert: Statement,
        update: Statement,
        touch: Statement | None = None,
        delete: Statement | None = None,
        also_locks: "Callable[[R], tuple[Table[Any], Any]] | None" = None,
    ) -> None:
        self.rank, self.row, self.key, self.also_locks = rank, row, key, also_locks
        self.lock, self.insert, self.update, self.touch, self.delete = lock, insert, update, touch, delete


class Command(Protocol[T_co]):
    """A write operation. `decide` may run again after a rollback, so it must change nothing outside the unit.

    It raises OvernightError only before it has changed anything in the unit.
    """

    def locks(self) -> Iterable[tuple[Table[Any], Any]]: ...

    def decide(self, unit: "Unit") -> T_co: ...


class Unit:
    """The rows of one transaction. `now` is its time in microseconds UTC; `stripe` identifies this process in the
    rollups."""

    def __init__(self, session: Session, now: int, stripe: str) -> None:
        self.session, self.now, self.stripe = session, now, stripe
        self._rows: defaultdict[Table[Any], dict[Any, Any]] = defaultdict(dict)
        self._writes: defaultdict[Table[Any], dict[Any, tuple[str, Any]]] = defaultdict(dict)
        self._deletes: defaultdict[Table[Any], dict[Any, Any]] = defaultdict(dict)
        self._shared_inserts: defaultdict[Statement, dict[Any, Any]] = defaultdict(dict)
        self._appends: defaultdict[Statement, list[Any]] = defaultdict(list)
        self._sums: defaultdict[Statement, dict[tuple[Any, ...], list[int]]] = defaultdict(dict)

    def lock(self, wanted: Iterable[tuple[Table[Any], Any]]) -> None:
        """Load and lock the missing rows in the global lock order."""
        loaded = self._rows
        missing: dict[Table[Any], set[Any]] = {}
        for table, key in wanted:
            if key not in loaded[table]:
                missing.setdefault(table, set()).add(key)
        while missing:
            table = min(missing, key=_rank)
            keys = missing.pop(table)
            self._load(table, sorted(keys))
            if table.also_locks is not None:
                for key in keys:
                    if (row := loaded[table][key]) is not None:
                        further, named = table.also_locks(row)
                        if named not in loaded[further]:
                            missing.setdefault(further, set()).add(named)

    def _load(self, table: Table[Any], keys: list[Any]) -> None:
        rows = self._rows[table]
        rows.update(dict.fromkeys(keys))
        make, key_of = table.row, table.key
        tuples = keys if isinstance(keys[0], tuple) else [(key,) for key in keys]
        for found in self.session.query_keys(table.lock.sql[self.session.dialect], tuples):
            row = make(*found)
            rows[key_of(row)] = row

    def get(self, table: Table[R], key: Any) -> R | None:
        """The locked row, or None if it does not exist. The key must be among the command's locks."""
        return self._rows[table][key]

    def is_loaded(self, table: Table[Any], key: Any) -> bool:
        return key in self._rows.get(table, {})

    def loaded(self, table: Table[R]) -> list[R]:
        """The rows that commands of this transaction locked or inserted, as they are now."""
        return [row for row in self._rows.get(table, {}).values() if row is not None]

    def insert(self, table: Table[R], row: R) -> None:
        """Insert a row. If another process inserts the same key concurrently, the whole batch is decided again."""
        key = table.key(row)
        self._rows[table][key] = row
        self._writes[table][key] = ("insert", row)

    def cache(self, table: Table[R], row: R) -> None:
        """Add a row that needs no write because another table's row contains it. Later commands of the batch find it."""
        self._rows[table][table.key(row)] = row

    def change(self, table: Table[R], row: R) -> None:
        """Write all columns of a row that was changed in place."""
        key = table.key(row)
        writes = self._writes[table]
        if key not in writes or writes[key][0] == "touch":
            writes[key] = ("update", row)

    def touch(self, table: Table[R], row: R) -> None:
        """Write only the narrow columns of a row that was changed in place."""
        self._writes[table].setdefault(table.key(row), ("touch", row))

    def delete(self, table: Table[R], row: R) -> None:
        """Delete a row. The same key can be inserted again."""
        key = table.key(row)
        self._rows[table][key] = None
        kind, _ = self._writes[table].pop(key, ("", None))
        if kind != "insert":
            self._deletes[table][key] = row

    def insert_shared(self, statement: Statement, key: Any, row: object) -> None:
        """Insert a content-addressed row. Other processes may insert the same key with the same content; writes are in
        key order."""
        self._shared_inserts[statement].setdefault(key, row)

    def append(self, statement: Statement, row: object) -> None:
        """Insert a row that no other process writes or locks, such as an event."""
        self._appends[statement].append(row)

    def appended(self, statement: Statement) -> Sequence[Any]:
        """The rows appended by this statement. `query` cannot see them before the flush."""
        return self._appends.get(statement, ())

    def add(self, statement: Statement, key: tuple[Any, ...], amounts: Sequence[int]) -> None:
        """Add to the sums of a rollup. One row is written per key and batch."""
        sums = self._sums[statement]
        held = sums.get(key)
        sums[key] = list(amounts) if held is None else [a + b for a, b in zip(held, amounts, strict=True)]

    def query(self, statement: Statement, values: dict[str, Any]) -> Rows:
        """Read within the transaction."""
        dialect = self.session.dialect
        return self.session.query(statement.sql[dialect], statement.from_mapping(dialect, values))

    def flush(self) -> None:
        """Write all changes: locked tables by rank and key, then shared rows by key, then appended rows, then sums."""
        session = self.session
        for table in sorted(self._writes.keys() | self._deletes.keys(), key=_rank):
            if deletes := self._deletes.get(table):
                self._execute(table.delete, [row for _, row in sorted(deletes.items(), key=_first)])
            by_kind: dict[str, list[Any]] = {}
            for _, (kind, row) in sorted(self._writes[table].items(), key=_first):
                by_kind.setdefault(kind, []).append(row)
            # Changed rows first: an inserted row may take a unique value that one of them has given up.
            for kind in ("update", "touch", "insert"):
                if rows := by_kind.get(kind):
                    self._execute(getattr(table, kind), rows)
        for statement, shared in sorted(self._shared_inserts.items(), key=lambda item: item[0].name):
            self._execute(statement, [row for _, row in sorted(shared.items(), key=_first)])
        for statement, rows in self._appends.items():
            if (before := statement.before.get(session.dialect)) is not None:
                session.query(before, ())
            self._execute(statement, rows)
        for statement, sums in self._sums.items():
            session.execute_many(statement, [(*key, *amounts) for key, amounts in sorted(sums.items())])

    def _execute(self, statement: Statement | None, rows: list[Any]) -> None:
        if statement is None:
            raise NotImplementedError  # the table has no such statement
        session = self.session
        session.execute_many(statement, list(map(statement.row_binder(session.dialect), rows)))


_rank = attrgetter("rank")
_first = itemgetter(0)
