"""Convert nodes to values. Each section is a table of fields and readers, so unknown keys are found by look-up."""

import re
from collections.abc import Callable, Collection, Mapping
from decimal import Context, Decimal
from typing import Any

from overnight.brain.nodes import Entries, Items, Node, Scalar
from overnight.brain.problems import Problem, Severity, clipped, did_you_mean
from overnight.domain.globs import Names

MAX_PROBLEMS = 100  # per file
MAX_ENTRIES = 1_000  # per list or mapping
_MICRO = 1_000_000
_MAX_MONEY_USD = 1_000_000_000

_WHOLE = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
_EXACT = Context(prec=200)  # 40 characters with a two-digit exponent never round at this precision

Reads = Callable[["Reader", Node, str], Any]
"""Converts a node to a value, or reports a problem and returns None. The string is the full name of the field."""

Fields = Mapping[str, tuple[str, Reads]]
"""Key in the file → (attribute, reader)."""


class Reader:
    """Reads the nodes of one file and collects problems."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    @property
    def full(self) -> bool:
        return len(self.problems) > MAX_PROBLEMS

    def problem(self, at: Node, message: str, hint: str = "", severity: Severity = "error") -> None:
        if self.full or (severity == "warning" and len(self.problems) == MAX_PROBLEMS):
            return
        if len(self.problems) == MAX_PROBLEMS:
            message, hint = f"more than {MAX_PROBLEMS} problems in this file", "fix these first"
        self.problems.append(
            Problem(file=self.file, line=at.line, column=at.column, message=message, hint=hint, severity=severity)
        )

    def unknown(self, at: Node, message: str, name: str, known: Collection[str]) -> None:
        """Report an unknown name, with the nearest known one."""
        if not self.full:
            self.problem(at, message, did_you_mean(name, known))

    def section(self, node: Node | None, name: str, fields: Fields, required: Collection[str] = ()) -> dict[str, Any]:
        """Read a mapping with fixed keys. Returns the valid values by attribute; unknown and missing keys are
        reported."""
        values: dict[str, Any] = {}
        prefix = f"{name}." if name else ""
        for key, (at, value) in self.entries(node, name).items():
            field = fields.get(key)
            if field is None:
                where = f" in {name}" if name else ""
                self.unknown(at, f"unknown key {clipped(key)}{where}", key, fields.keys())
            elif (read := field[1](self, value, prefix + key)) is not None:
                values[field[0]] = read
        if isinstance(node, Entries):
            for key in required:
                if key not in node.entries:
                    self.problem(node, f"{name} needs the key {key!r}")
        return values

    def entries(self, node: Node | None, name: str) -> Mapping[str, tuple[Scalar, Node]]:
        """The entries of a mapping; an empty section has none."""
        if isinstance(node, Entries):
            if self._few(node, name or "the file", len(node.entries)):
                return node.entries
        elif not _empty(node):
            self.wrong(node, name or "the file", "a mapping (key: value)")
        return {}

    def items(self, node: Node | None, name: str) -> tuple[Node, ...]:
        """The items of a list; an empty section has none."""
        if isinstance(node, Items):
            if self._few(node, name, len(node.items)):
                return node.items
        elif not _empty(node):
            self.wrong(node, name, "a list (- item)")
        return ()

    def wrong(self, node: Node | None, name: str, wanted: str, *, secret: bool = False) -> None:
        """Report a value of the wrong type. A `secret` value is not repeated in the message."""
        if node is None:
            return
        found = "another value (not shown)" if secret else _described(node)
        self.problem(node, f"{name} must be {wanted}, found {found}", _type_hint(node, wanted))

    def _few(self, node: Node, name: str, count: int) -> bool:
        if count > MAX_ENTRIES:
            self.problem(node, f"{name} has {count:,} entries, the maximum is {MAX_ENTRIES:,}")
        return count <= MAX_ENTRIES


def _empty(node: Node | None) -> bool:
    return node is None or (isinstance(node, Scalar) and node.kind == "null")


def _described(node: Node) -> str:
    if isinstance(node, Entries):
        return "a mapping"
    if isinstance(node, Items):
        return "a list"
    if node.kind == "null":
        return "nothing"
    return f"the text {clipped(node.text)}" if node.kind == "text" else clipped(node.text)[1:-1]


def _type_hint(node: Node, wanted: str) -> str:
    if not isinstance(node, Scalar):
        return ""
    if node.quoted and _DECIMAL.fullmatch(node.text):
        return "remove the quotes"
    if wanted.startswith("text") and node.kind not in ("text", "null"):
        return "put it in quotes"
    return ""


def as_node(_reader: Reader, node: Node, _name: str) -> Node:
    """The node itself, for a section that is read later."""
    return node


def integer(low: int, high: int) -> Reads:
    """An integer from `low` to `high`."""

    def read(reader: Reader, node: Node, name: str) -> int | None:
        if not isinstance(node, Scalar) or node.kind != "int" or not _WHOLE.fullmatch(node.text):
            reader.wrong(node, name, f"a whole number from {low} to {high}")
            return None
        # Longer than any limit; `int` itself rejects thousands of digits.
        value = int(node.text) if len(node.text) <= 24 else high + 1
        if low <= value <= high:
            return value
        reader.problem(node, f"{name} must be from {low} to {high}, found {clipped(node.text)[1:-1]}")
        return None

    return read


def number(low: float, high: float) -> Reads:
    """A number from `low` to `high`; not for money."""

    def read(reader: Reader, node: Node, name: str) -> float | None:
        if not isinstance(node, Scalar) or node.kind not in ("int", "float"):
            reader.wrong(node, name, f"a number from {low:g} to {high:g}")
        elif len(node.text) > 40 or not _DECIMAL.fullmatch(node.text) or not low <= float(node.text) <= high:
            reader.problem(node, f"{name} must be from {low:g} to {high:g}, found {clipped(node.text)[1:-1]}")
        else:
            return float(node.text)
        return None

    return read


def flag(reader: Reader, node: Node, name: str) -> bool | None:
    """true or false."""
    if isinstance(node, Scalar) and node.kind == "bool" and not node.quoted:
        return node.text.lower() == "true"
    reader.wrong(node, name, "true or false")
    return None


def money(reader: Reader, node: Node, name: str) -> int | None:
    """US dollars, converted exactly to micro-dollars without a float."""
    if not isinstance(node, Scalar) or node.kind not in ("int", "float"):
        reader.wrong(node, name, "an amount in US dollars such as 0.75")
        return None
    if len(node.text) > 40 or not _DECIMAL.fullmatch(node.text):
        reader.problem(node, f"{name} must be a plain finite amount such as 0.75, found {clipped(node.text)[1:-1]}")
        return None
    dollars = Decimal(node.text)
    if not 0 <= dollars <= _MAX_MONEY_USD:
        reader.problem(node, f"{name} must be from 0 to {_MAX_MONEY_USD:,} US dollars, found {node.text}")
        return None
    micro = _EXACT.multiply(dollars, Decimal(_MICRO))
    if micro != micro.to_integral_value(context=_EXACT):
        reader.problem(node, f"{name} is finer than a micro-dollar: {node.text}", "at most six decimal places")
        return None
    return int(micro)


def text(pattern: str, wanted: str, *, secret: bool = False) -> Reads:
    """Text that matches `pattern` completely; `wanted` describes it. A `secret` value is never repeated in a message."""
    matches = re.compile(pattern).fullmatch

    def read(reader: Reader, node: Node, name: str) -> str | None:
        if not isinstance(node, Scalar) or node.kind != "text":
            reader.wrong(node, name, f"text: {wanted}", secret=secret)
            return None
        if matches(node.text):
            return node.text
        found = "another value (not shown)" if secret else clipped(node.text)
        reader.problem(node, f"{name} must be {wanted}, found {found}")
        return None

    return read


def choice(*allowed: str) -> Reads:
    """One of several words."""

    def read(reader: Reader, node: Node, name: str) -> str | None:
        if isinstance(node, Scalar) and node.kind == "text" and node.text in allowed:
            return node.text
        if isinstance(node, Scalar) and node.kind == "text":
            reader.unknown(node, f"{name} must be one of {', '.join(allowed)}", node.text, allowed)
        else:
            reader.wrong(node, name, f"one of {', '.join(allowed)}")
        return None

    return read


def list_of(reads: Reads) -> Reads:
    """A list as a tuple; each item is read by `reads`."""

    def read(reader: Reader, node: Node, name: str) -> tuple[Any, ...] | None:
        values = [reads(reader, item, f"{name}[{index}]") for index, item in enumerate(reader.items(node, name))]
        return None if None in values else tuple(values)

    return read


def one_or_many(reads: Reads) -> Reads:
    """One value or a non-empty list of values, as a tuple."""
    listed = list_of(reads)

    def read(reader: Reader, node: Node, name: str) -> tuple[Any, ...] | None:
        if not isinstance(node, Items):
            one = reads(reader, node, name)
            return None if one is None else (one,)
        if not node.items:
            reader.problem(node, f"{name} is an empty list", "remove the line")
            return None
        return listed(reader, node, name)

    return read


def names(longest: int = 256) -> Reads:
    """One name or glob, or a list of them."""
    patterns = one_or_many(text(rf"[ -~]{{1,{longest}}}", "a name, or a glob such as support-*"))

    def read(reader: Reader, node: Node, name: str) -> Names | None:
        found = patterns(reader, node, name)
        return None if found is None else Names(found)

    return read


MODEL_NAME = r"[!-~]{1,256}"
ROUTE_NAME = r"[A-Za-z0-9][A-Za-z0-9_.:/@+-]{0,127}"
model_name = text(MODEL_NAME, "a model name (up to 256 printable ASCII characters, no spaces)")
