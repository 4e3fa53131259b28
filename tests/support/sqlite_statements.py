"""Counts the statements that SQLite executes in this process, through the trace hook of the library."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apsw

from overnight.store.statements import Statement


class ExecutedStatements:
    """The number of executions of each SQL text."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def trace(self, connection: apsw.Connection) -> None:
        connection.trace_v2(apsw.SQLITE_TRACE_STMT, self._add, id=self)

    def _add(self, event: dict[str, Any]) -> None:
        if not event["trigger"]:
            self._counts[event["sql"].strip()] += 1

    def count(self, *statements: Statement) -> int:
        """How often one of the statements was executed."""
        return sum(self._counts[statement.sql.get("sqlite", "")] for statement in statements)


@contextmanager
def executed_statements() -> Iterator[ExecutedStatements]:
    """Count executions on all open connections, and on those that are opened during the block."""
    executed = ExecutedStatements()
    apsw.connection_hooks.append(executed.trace)
    try:
        for connection in apsw.connections():
            executed.trace(connection)
        yield executed
    finally:
        apsw.connection_hooks.remove(executed.trace)
        for connection in apsw.connections():
            connection.trace_v2(0, None, id=executed)
