"""Access to the database without code under test: plain SQL on its own connection."""

from typing import Any, LiteralString, cast
from urllib.parse import urlsplit

import apsw
import psycopg

Row = tuple[Any, ...]


class Rows:
    """`ask` takes SQL with `?` for values. Reads only; blocking."""

    def __init__(self, url: str) -> None:
        self._postgres = urlsplit(url).scheme in {"postgresql", "postgres"}
        self._connection: Any
        if self._postgres:
            self._connection = psycopg.connect(url, autocommit=True)
        else:
            self._connection = apsw.Connection(url.removeprefix("sqlite:///"), flags=apsw.SQLITE_OPEN_READONLY)
            self._connection.set_busy_timeout(30_000)

    def ask(self, sql: LiteralString, *values: Any) -> list[Row]:
        if self._postgres:
            sql = cast(LiteralString, sql.replace("?", "%s"))
        rows = self._connection.execute(sql, values).fetchall()
        return [tuple(bytes(cell) if isinstance(cell, memoryview) else cell for cell in row) for row in rows]

    def close(self) -> None:
        self._connection.close()


EVENT_COLUMNS = "seq, tenant_id, month, at, path, ordinal, fingerprint, body, content"
