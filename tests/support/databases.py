"""A PostgreSQL database for each test: emptied and renamed between tests."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from overnight.store import open_store


@contextmanager
def new_database(server: str) -> Iterator[str]:
    """The URL of a new and empty database, dropped at the end."""
    name = _new_name()
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield _url(server, name)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


class ReusedDatabase:
    """One database with the current schema. Each `fresh` empties it and gives it a new name, so that a process that outlived
    its test cannot reach the next one. A test that changed the schema costs a new database."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._maintenance = psycopg.connect(server, autocommit=True)
        self._create()

    def fresh(self) -> str:
        """The URL of the database, with no rows but those that the migrations wrote."""
        name = _new_name()
        self._maintenance.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (self._name,)
        )
        self._maintenance.execute(f"ALTER DATABASE {self._name} RENAME TO {name}")
        self._name = name
        with self._connect() as connection:
            changed = _tables(connection) != self._tables or self._migrations != _rows(connection, "schema_migration")
            if not changed:
                self._empty(connection)
        if changed:
            self._maintenance.execute(f"DROP DATABASE {self._name} WITH (FORCE)")
            self._create()
        return _url(self._server, self._name)

    def close(self) -> None:
        self._maintenance.close()

    def _create(self) -> None:
        self._name = _new_name()
        self._maintenance.execute(f"CREATE DATABASE {self._name}")
        with open_store(_url(self._server, self._name)):
            pass
        with self._connect() as connection:
            self._tables = _tables(connection)
            self._migrations = _rows(connection, "schema_migration")
            self._first_rows = {table: rows for table in self._tables if (rows := _rows(connection, table))}

    def _empty(self, connection: "psycopg.Connection[Any]") -> None:
        filled = [table for table in self._tables if table != "schema_migration" and _has_rows(connection, table)]
        if filled:
            tables = sql.SQL(", ").join(map(sql.Identifier, filled))
            connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(tables))
        for table in filled:
            for row in self._first_rows.get(table, ()):
                values = sql.SQL(", ").join(map(sql.Literal, row))
                connection.execute(sql.SQL("INSERT INTO {} VALUES ({})").format(sql.Identifier(table), values))

    def _connect(self) -> "psycopg.Connection[Any]":
        return psycopg.connect(self._server, dbname=self._name, autocommit=True)


def _new_name() -> str:
    return f"t_{os.urandom(6).hex()}"


def _url(server: str, name: str) -> str:
    parts = psycopg.conninfo.conninfo_to_dict(server)
    return f"postgresql://{parts.get('user', 'postgres')}@/{name}?host={parts['host']}&port={parts.get('port', 5432)}"


def _tables(connection: "psycopg.Connection[Any]") -> list[str]:
    found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename")
    return [row[0] for row in found]


def _has_rows(connection: "psycopg.Connection[Any]", table: str) -> bool:
    found = connection.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(table))).fetchone()
    return found is not None and bool(found[0])


def _rows(connection: "psycopg.Connection[Any]", table: str) -> list[tuple[Any, ...]]:
    return connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table))).fetchall()
