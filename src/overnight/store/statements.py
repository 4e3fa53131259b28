"""Named SQL statements.

A package has `sql/common.sql` and, for differing dialects, `sql/sqlite.sql` and `sql/postgres.sql`. Each statement
starts with `-- name: verb_noun`. Its `:field` parameters are bound from the attributes of a row or the keys of a
mapping.
"""

import re
from collections.abc import Callable, Mapping
from importlib import resources
from operator import attrgetter, itemgetter
from types import MappingProxyType
from typing import Any, Literal

Dialect = Literal["sqlite", "postgres"]
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_][a-z0-9_]*)")
_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


def _tuple_of(names: tuple[str, ...], getter: Callable[..., Callable[[Any], Any]]) -> Callable[[Any], tuple[Any, ...]]:
    if not names:
        return lambda _row: ()
    get = getter(*names)
    return get if len(names) > 1 else lambda row: (get(row),)


class Statement:
    """One named statement, in each dialect that has it.

    - `sql[dialect]`: the text with positional placeholders.
    - `row_binder`: returns the function from a row to the tuple to bind. `from_mapping`: returns the tuple itself.
    - `bulk`: a variant for many rows with one array per parameter, in the same order (`NAME_bulk`).
    - `before`: a statement without parameters that runs once per transaction before the rows (`NAME_before`).
    """

    bulk: str | None = None
    before: Mapping[Dialect, str] = MappingProxyType({})

    def __init__(self, name: str, texts: Mapping[Dialect, str]) -> None:
        self.name = name
        self.sql: dict[Dialect, str] = {}
        self._binders: dict[Dialect, tuple[Callable[[Any], tuple[Any, ...]], Callable[[Any], tuple[Any, ...]]]] = {}
        for dialect, text in texts.items():
            names = tuple(_PARAMETER.findall(text))
            # Binary arrays take a quarter less CPU time of the client.
            placeholder = "?" if dialect == "sqlite" else "%b" if name.endswith("_bulk") else "%s"
            escaped = text if dialect == "sqlite" else text.replace("%", "%%")
            self.sql[dialect] = _PARAMETER.sub(placeholder, escaped).strip()
            self._binders[dialect] = (_tuple_of(names, attrgetter), _tuple_of(names, itemgetter))

    def __repr__(self) -> str:
        return f"<Statement {self.name}>"

    def row_binder(self, dialect: Dialect) -> Callable[[Any], tuple[Any, ...]]:
        return self._binders[dialect][0]

    def from_mapping(self, dialect: Dialect, values: Mapping[str, Any]) -> tuple[Any, ...]:
        return self._binders[dialect][1](values)


def parse(text: str) -> dict[str, str]:
    """Parse a file. Returns the SQL by name."""
    pieces = _NAME.split(text)
    return {name: body.strip().rstrip(";") for name, body in zip(pieces[1::2], pieces[2::2], strict=True)}


def statements(package: str) -> dict[str, Statement]:
    """All statements of `package`, by name."""
    folder = resources.files(package) / "sql"
    by_name: dict[str, dict[Dialect, str]] = {}
    files: dict[str, tuple[Dialect, ...]] = {
        "common": ("sqlite", "postgres"),
        "sqlite": ("sqlite",),
        "postgres": ("postgres",),
    }
    for file, dialects in files.items():
        path = folder / f"{file}.sql"
        if path.is_file():
            for name, body in parse(path.read_text("utf-8")).items():
                for dialect in dialects:
                    by_name.setdefault(name, {})[dialect] = body
    found = {name: Statement(name, texts) for name, texts in by_name.items()}
    for name, statement in found.items():
        if (bulk := found.get(f"{name}_bulk")) is not None:
            statement.bulk = bulk.sql["postgres"]
        if (before := found.get(f"{name}_before")) is not None:
            statement.before = before.sql
    return found
