"""What: transactions on SQLite and PostgreSQL behind one group-committing writer.
Owns: connections, migrations, the parser of .sql files, the file lock between SQLite processes.
Depends on: domain.
Never: knows the meaning of a row; packages provide their tables, statements and commands.
"""

from .crash_points import crash_point
from .readiness import Readiness
from .statements import Dialect, Statement, statements
from .store import Store, open_store
from .unit import Command, Rows, Table, Unit, records_of

__all__ = [
    "Command",
    "Dialect",
    "Readiness",
    "Rows",
    "Statement",
    "Store",
    "Table",
    "Unit",
    "crash_point",
    "open_store",
    "records_of",
    "statements",
]
