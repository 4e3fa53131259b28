"""Numbered SQL migrations. The first process that opens the store applies each once, in order."""

from importlib import resources
from typing import Any

from overnight.domain import BadInput, StoreUnavailable

from .statements import Dialect


def migrations(dialect: Dialect) -> list[tuple[int, str]]:
    """The number and SQL of each migration of a dialect, in order."""
    folder = resources.files("overnight.store") / "migrations" / dialect
    files = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(int(name.split("_", 1)[0]), (folder / name).read_text("utf-8")) for name in files]


_TABLES: dict[Dialect, str] = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'",
    "postgres": "SELECT 'schema_migration' WHERE to_regclass('schema_migration') IS NOT NULL",
}


def applied(session: Any, dialect: Dialect, name: str) -> set[int]:
    """The numbers of applied migrations.

    Raises:
        BadInput: the schema belongs to a newer version, or the SQLite file to another program.
    """
    tables = sorted(row[0] for row in session.query(_TABLES[dialect], ()))
    if "schema_migration" not in tables:
        if tables:
            raise BadInput(
                f"{name}: this is the database of another program (it has {', '.join(tables[:3])})."
                " Set DATABASE_URL or OVERNIGHT_HOME to the location of the ledger"
            )
        return set()
    found = {row[0] for row in session.query("SELECT version FROM schema_migration", ())}
    newest = migrations(dialect)[-1][0]
    if found and max(found) > newest:
        raise StoreUnavailable(
            f"the database has schema {max(found)}, this version supports {newest}: upgrade overnight"
        )
    return found


def is_current(session: Any, dialect: Dialect, name: str) -> bool:
    """Whether all migrations of this version are applied."""
    return applied(session, dialect, name) == {number for number, _ in migrations(dialect)}


def migrate(session: Any, dialect: Dialect, now: int, name: str) -> None:
    """Apply missing migrations."""
    with session.schema_change():
        if dialect == "postgres":
            session.query("SELECT pg_advisory_xact_lock(72160)::text", ())
        before = applied(session, dialect, name)
        session.script(
            "CREATE TABLE IF NOT EXISTS schema_migration (version BIGINT PRIMARY KEY, applied_at BIGINT NOT NULL)"
        )
        for number, sql in migrations(dialect):
            if number not in before:
                session.script(sql)
                session.script(f"INSERT INTO schema_migration VALUES ({number:d}, {now:d})")
        if dialect == "postgres":
            _shift_feed(session)


def raise_feed_epoch(session: Any, dialect: Dialect, epoch: int, position: int) -> None:
    """Raise the epoch of the feed above `epoch`, and place new events after `position`: the database was restored from a backup,
    and readers had both from events that it lost."""
    with session.schema_change():
        if dialect == "sqlite":
            session.script(
                f"UPDATE feed_epoch SET epoch = max(epoch, {epoch:d}) + 1, position = max(position, {position:d})"
            )
            return
        session.query("SELECT pg_advisory_xact_lock(72160)::text", ())
        session.script(f"UPDATE feed_epoch SET epoch = greatest(epoch, {epoch:d}) + 1")
        _shift_feed(session, position, epochs=0)


def _shift_feed(session: Any, after: int = 0, *, epochs: int = 1) -> None:
    """Preserve the order of the feed in a PostgreSQL database that was restored on another server with lower transaction ids.

    New events are placed after the restored ones, and after the position `after`, by a shift, which is part of the column's
    default. A new shift raises the epoch by `epochs`.
    """
    [(newest, current, shift)] = session.query(
        "SELECT (SELECT max(position) FROM event), pg_current_xact_id()::text::bigint, shift FROM feed_epoch", ()
    )
    last = max(newest or 0, after)
    if last <= current + shift:
        return
    shift = last + 1 - current
    session.script(f"UPDATE feed_epoch SET epoch = epoch + {epochs:d}, shift = {shift:d}")
    session.script(
        f"ALTER TABLE event ALTER COLUMN position SET DEFAULT (pg_current_xact_id()::text::bigint + {shift:d})"
    )
