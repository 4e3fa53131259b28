"""A unit of work: lock and load the rows that a batch of commands needs, decide in memory, write what changed.

Why not one guarded statement per item: under the row locks the guards are plain Python over loaded rows, so that one
batch costs two round trips on PostgreSQL whatever it holds, a refusal never aborts the transaction, and the rules can be
tested against a model without a database.
"""

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
    """Build one record per database row; the columns of a row stand in the order of the record's fields."""
    return [record(*row) for row in rows]


class Redo(Exception):
    """The transaction left nothing behind and may be decided again."""


class Later(Exception):
    """The database did not answer within the time that an event loop may stand still; a thread takes the batch over.

    `lost` names the transaction whose COMMIT was under way, for `Session.was_committed`; without it nothing was kept.
    `outcomes` are those of the commands it had decided.
    """

    def __init__(self, lost: str | None = None) -> None:
        super().__init__(lost)
        self.lost = lost
        self.outcomes: list[tuple[Any, BaseException | None]] = []


class Unwritable(Exception):
    """Some row of the transaction holds what the database has no form for; nothing was kept."""


class Session(Protocol):
    """One open transaction on one connection, used by one thread at a time. `Error` is the root of its driver's errors.

    `patience_s`: how long an event loop may stand still for it. `flush_s`: how long the last COMMIT took.
    """

    dialect: Dialect
    Error: type[Exception]
    patience_s: float
    flush_s: float

    def transaction(self, until: float | None = None) -> AbstractContextManager[object]:
        """One transaction. With `until` (of time.monotonic) it raises Later instead of waiting longer for the database."""
        ...

    def was_committed(self, lost: str, tell: Callable[[StoreUnavailable], None]) -> bool:
        """Whether a lost transaction was committed. Waits until that is known; `tell` is called when that takes long."""
        ...

    def stop(self) -> None:
        """From another thread: whatever is waited for ends soon, with StoreUnavailable."""
        ...

    def close(self) -> None: ...

    def query(self, sql: str, values: tuple[Any, ...]) -> Rows: ...

    def many(self, statement: Statement, values: Sequence[tuple[Any, ...]]) -> None: ...

    def month(self, month: int) -> None: ...

    def has_month(self, month: int) -> bool:
        """Whether `month` has nothing to do for this month."""
        ...


class Table(Generic[R]):
    """Rows that are locked, changed and written back.

    `rank` is the global lock order (tables, then keys). `lock` takes the key columns: one row's on SQLite, arrays of
    them on PostgreSQL. `touch` is a narrow update for the columns that change with every event. `leads` names the row of a
    higher rank that a row stands for: it is locked with it, in its place of the order.
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
        leads: "Callable[[R], tuple[Table[Any], Any]] | None" = None,
    ) -> None:
        self.rank, self.row, self.key, self.leads = rank, row, key, leads
        self.lock, self.insert, self.update, self.touch, self.delete = lock, insert, update, touch, delete


class Command(Protocol[T_co]):
    """What a room wants done. `decide` may run again after a rollback, so it changes nothing outside the unit, and it
    raises (an OvernightError) before it has changed anything inside."""

    def locks(self) -> Iterable[tuple[Table[Any], Any]]: ...

    def decide(self, unit: "Unit") -> T_co: ...


class Unit:
    """The rows of one transaction. `now` is its time in microseconds UTC; `stripe` names this process in the rollups."""

    def __init__(self, session: Session, now: int, stripe: str) -> None:
        self.session, self.now, self.stripe = session, now, stripe
        self._rows: dict[Table[Any], dict[Any, Any]] = {}
        self._writes: dict[Table[Any], dict[Any, tuple[str, Any]]] = {}
        self._deletes: dict[Table[Any], dict[Any, Any]] = {}
        self._offers: dict[Statement, dict[Any, Any]] = {}
        self._appends: dict[Statement, list[Any]] = {}
        self._sums: dict[Statement, dict[tuple[Any, ...], list[int]]] = {}

    def lock(self, wanted: Iterable[tuple[Table[Any], Any]]) -> None:
        """Load and lock the rows not yet here, in the global order."""
        missing: dict[Table[Any], set[Any]] = {}
        for table, key in wanted:
            if key not in self._rows.setdefault(table, {}):
                missing.setdefault(table, set()).add(key)
        while missing:
            table = min(missing, key=_rank)
            keys = missing.pop(table)
            self._load(table, sorted(keys))
            if table.leads is not None:
                for key in keys:
                    if (row := self._rows[table][key]) is not None:
                        further, named = table.leads(row)
                        if named not in self._rows.setdefault(further, {}):
                            missing.setdefault(further, set()).add(named)

    def _load(self, table: Table[Any], keys: list[Any]) -> None:
        rows = self._rows[table]
        rows.update(dict.fromkeys(keys))
        sql = table.lock.sql[self.session.dialect]
        tuples: list[tuple[Any, ...]] = [key if isinstance(key, tuple) else (key,) for key in keys]
        if self.session.dialect == "postgres":
            tuples = [tuple([each[column] for each in tuples] for column in range(len(tuples[0])))]
        for values in tuples:
            for found in self.session.query(sql, values):
                row = table.row(*found)
                rows[table.key(row)] = row

    def get(self, table: Table[R], key: Any) -> R | None:
        """The locked row, or None where there is none. It must be among the command's locks."""
        return self._rows[table][key]

    def known(self, table: Table[Any], key: Any) -> bool:
        return key in self._rows.get(table, {})

    def insert(self, table: Table[R], row: R) -> None:
        """A new row. Where another process inserts the same key at once, the whole batch is decided again."""
        key = table.key(row)
        self._rows.setdefault(table, {})[key] = row
        self._writes.setdefault(table, {})[key] = ("insert", row)

    def remember(self, table: Table[R], row: R) -> None:
        """A row that stands in another table's row and so needs no write; later commands of the batch find it."""
        self._rows.setdefault(table, {})[table.key(row)] = row

    def change(self, table: Table[R], row: R) -> None:
        """The row was changed in place and is written in full."""
        key = table.key(row)
        writes = self._writes.setdefault(table, {})
        if key not in writes or writes[key][0] == "touch":
            writes[key] = ("update", row)

    def touch(self, table: Table[R], row: R) -> None:
        """Only the narrow columns of the row were changed."""
        self._writes.setdefault(table, {}).setdefault(table.key(row), ("touch", row))

    def delete(self, table: Table[R], row: R) -> None:
        """The row goes; the same key may come again."""
        key = table.key(row)
        self._rows[table][key] = None
        kind, _ = self._writes.get(table, {}).pop(key, ("", None))
        if kind != "insert":
            self._deletes.setdefault(table, {})[key] = row

    def offer(self, statement: Statement, key: Any, row: object) -> None:
        """A row that other processes may write too, the same for the same key (content): written once, in one global order."""
        self._offers.setdefault(statement, {}).setdefault(key, row)

    def append(self, statement: Statement, row: object) -> None:
        """A row that nobody else writes or locks: an event."""
        self._appends.setdefault(statement, []).append(row)

    def appended(self, statement: Statement) -> Sequence[Any]:
        """The rows appended so far by this statement: `query` does not see them before the batch is flushed."""
        return self._appends.get(statement, ())

    def add(self, statement: Statement, key: tuple[Any, ...], amounts: Sequence[int]) -> None:
        """Sum into a rollup; one row is written per key and batch."""
        sums = self._sums.setdefault(statement, {})
        held = sums.get(key)
        sums[key] = list(amounts) if held is None else [a + b for a, b in zip(held, amounts, strict=True)]

    def query(self, statement: Statement, values: dict[str, Any]) -> Rows:
        """Read within the transaction."""
        dialect = self.session.dialect
        return self.session.query(statement.sql[dialect], statement.from_mapping(dialect, values))

    def flush(self) -> None:
        """Write everything: locked tables by rank and key, then offered rows by key, then appended rows, then sums."""
        dialect, session = self.session.dialect, self.session
        for table in sorted(self._writes.keys() | self._deletes.keys(), key=lambda each: each.rank):
            by_kind: dict[str, list[Any]] = {}
            if deletes := self._deletes.get(table):
                by_kind["delete"] = [row for _, row in sorted(deletes.items(), key=_first)]
            for _, (kind, row) in sorted(self._writes.get(table, {}).items(), key=_first):
                by_kind.setdefault(kind, []).append(row)
            for kind, rows in by_kind.items():
                statement: Statement = getattr(table, kind)
                session.many(statement, [statement.from_row(dialect, row) for row in rows])
        for statement, offers in sorted(self._offers.items(), key=lambda item: item[0].name):
            session.many(statement, [statement.from_row(dialect, row) for _, row in sorted(offers.items(), key=_first)])
        for statement, rows in self._appends.items():
            if (before := statement.before.get(dialect)) is not None:
                session.query(before, ())
            session.many(statement, [statement.from_row(dialect, row) for row in rows])
        for statement, sums in self._sums.items():
            session.many(statement, [(*key, *amounts) for key, amounts in sorted(sums.items())])


_rank = attrgetter("rank")
_first = itemgetter(0)
