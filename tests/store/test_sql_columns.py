"""The SQL files name their columns, in the order of the fields of the record that is built from them."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import overnight
from overnight.store import Table

SOURCE = Path(overnight.__file__).parent
SQL_FILES = sorted(SOURCE.rglob("*.sql"))
ALL_OF_A_TABLE = re.compile(r"(SELECT|RETURNING)\s+([a-z_]+\.)?\*(?!\s+FROM\s+(unnest|json_each)\()", re.IGNORECASE)


@pytest.mark.parametrize("path", SQL_FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_statements_name_their_columns(path: Path) -> None:
    assert ALL_OF_A_TABLE.findall(path.read_text("utf-8")) == []


def tables() -> dict[str, Table]:
    found: dict[str, Table] = {}
    for info in pkgutil.walk_packages([str(SOURCE)], "overnight."):
        if info.name.endswith("rows"):
            for name, value in vars(importlib.import_module(info.name)).items():
                if isinstance(value, Table):
                    found[f"{info.name}.{name}"] = value
    return found


TABLES = tables()


def selected(sql: str) -> list[str]:
    """The names of the selected columns."""
    flat = re.sub(r"\s+", " ", sql)
    while (outer := re.sub(r"\([^()]*\)", "", flat)) != flat:  # without subqueries
        flat = outer
    columns = re.split(r"\bFROM\b", flat, maxsplit=1)[0]
    return [
        re.split(r" AS |\.", each.strip())[-1]
        for each in columns.removeprefix("SELECT ").removeprefix("DISTINCT ").split(",")
    ]


@pytest.mark.parametrize("name", TABLES)
def test_lock_statements_select_the_record_columns(name: str) -> None:
    table = TABLES[name]
    for sql in table.lock.sql.values():
        assert selected(sql) == list(table.row.__struct_fields__)  # type: ignore[attr-defined]
