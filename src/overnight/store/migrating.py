"""Numbered SQL files, applied once each, in order, by whoever opens the store first."""

from importlib import resources
from typing import Any

from overnight.domain import StoreUnavailable

from .statements import Dialect


def migrations(dialect: Dialect) -> list[tuple[int, str]]:
    """(number, SQL) of every migration of a dialect, in order."""
    folder = resources.files("overnight.store") / "migrations" / dialect
    files = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(int(name.split("_", 1)[0]), (folder / name).read_text("utf-8")) for name in files]


def migrate(session: Any, dialect: Dialect, now: int) -> None:
    """Bring the schema to this program's version; refuse a schema from a newer one."""
    known = migrations(dialect)
    with session.schema_change():
        if dialect == "postgres":
            session.query("SELECT pg_advisory_xact_lock(72160)::text", ())
        session.script(
            "CREATE TABLE IF NOT EXISTS schema_migration (version BIGINT PRIMARY KEY, applied_at BIGINT NOT NULL)"
        )
        applied = {row[0] for row in session.query("SELECT version FROM schema_migration", ())}
        newest = known[-1][0]
        if applied and max(applied) > newest:
            raise StoreUnavailable(
                f"the database has schema {max(applied)}, this program knows {newest}: upgrade overnight"
            )
        for number, sql in known:
            if number not in applied:
                session.script(sql)
                session.script(f"INSERT INTO schema_migration VALUES ({number:d}, {now:d})")
