"""Readers of values that are JSON: schemas, pointers, tests of a value, and regular expressions."""

from typing import Any

from overnight.domain.json_pointer import Pointer
from overnight.domain.json_schema import SchemaError, compile_pattern, compile_schema
from overnight.domain.tools import ArgumentTest, ValueTest

from .fields import Fields, Reader, flag, integer, number, text
from .nodes import Entries, Items, Node, Scalar
from .problems import clipped

UNREADABLE: Any = object()
_ANY_NUMBER = 1e15


def json_value(reader: Reader, node: Node, name: str) -> Any:
    """Any JSON value. Returns `UNREADABLE` after a problem, since None is the value null."""
    if isinstance(node, Entries):
        entries = {key: json_value(reader, value, f"{name}.{key}") for key, (_, value) in node.entries.items()}
        return UNREADABLE if any(each is UNREADABLE for each in entries.values()) else entries
    if isinstance(node, Items):
        items = [json_value(reader, each, f"{name}[{index}]") for index, each in enumerate(node.items)]
        return UNREADABLE if any(each is UNREADABLE for each in items) else items
    return _scalar(reader, node, name)


def _scalar(reader: Reader, node: Scalar, name: str) -> Any:
    match node.kind:
        case "text":
            return node.text
        case "null":
            return None
        case "bool":
            return node.text.lower() == "true"
        case "int" if (whole := integer(-(1 << 63), (1 << 63) - 1)(reader, node, name)) is not None:
            return whole
        case "float" if (real := number(-1e308, 1e308)(reader, node, name)) is not None:
            return real
        case "other":
            reader.problem(node, f"{name} is not JSON: {clipped(node.text)}", "put it in quotes")
        case _:
            pass
    return UNREADABLE


def schema(reader: Reader, node: Node, name: str) -> Any:
    """A JSON Schema, compiled once to find its problems."""
    value = json_value(reader, node, name)
    if value is UNREADABLE:
        return None
    if isinstance(node, Scalar):
        reader.wrong(node, name, "a JSON Schema: a mapping such as {type: object}")
        return None
    try:
        compile_schema(value)
    except SchemaError as error:
        at, inside = _node_at(node, error.pointer)
        where = f"{name}{inside}"
        reader.problem(at, f"{where} is not a usable JSON Schema: {error}")
        return None
    return value


def _node_at(node: Node, pointer: str) -> tuple[Node, str]:
    """The node at a place of a schema, or the nearest one around it."""
    inside = ""
    for part in Pointer(pointer).parts:
        if isinstance(node, Entries) and part in node.entries:
            node = node.entries[part][1]
        elif isinstance(node, Items) and part.isdigit() and int(part) < len(node.items):
            node = node.items[int(part)]
        else:
            break
        inside += f".{part}"
    return node, inside


def pointer(reader: Reader, node: Node, name: str) -> Pointer | None:
    """A JSON Pointer such as /usd."""
    if not isinstance(node, Scalar) or node.kind != "text":
        reader.wrong(node, name, "text: a JSON pointer such as /usd")
        return None
    return pointer_of(reader, node, node.text, name)


def pointer_of(reader: Reader, at: Node, text: str, name: str) -> Pointer | None:
    """The pointer of a text or a key."""
    try:
        found = Pointer(text)
    except ValueError:
        found = None
    if found is None or not text:
        hint = f"did you mean {'/' + text!r}?" if text and not text.startswith("/") else "escape ~ as ~0 and / as ~1"
        reader.problem(at, f"{name} must be a JSON pointer such as /usd, found {clipped(text)}", hint)
        return None
    return found


def pattern(reader: Reader, node: Node, name: str) -> str | None:
    """A regular expression that runs in linear time."""
    found = text(r"(?s).{1,1000}", "a regular expression")(reader, node, name)
    if found is None:
        return None
    try:
        compile_pattern(found)
    except SchemaError as error:
        reader.problem(node, f"{name}: {error}", "write it without (?=…), (?!…), (?<=…) and \\1")
        return None
    return found


def _options(reader: Reader, node: Node, name: str) -> tuple[Any, ...] | None:
    if not isinstance(node, Items) or not node.items:
        reader.wrong(node, name, "a list of values (- item)") if not isinstance(node, Items) else reader.problem(
            node, f"{name} is an empty list", "list the values"
        )
        return None
    value = json_value(reader, node, name)
    return None if value is UNREADABLE else tuple(value)


def _boxed(reader: Reader, node: Node, name: str) -> list[Any] | None:
    """A value in a list, so that null can be told from no value."""
    value = json_value(reader, node, name)
    return None if value is UNREADABLE else [value]


def _number(reader: Reader, node: Node, name: str) -> int | float | None:
    if isinstance(node, Scalar) and node.kind == "int":
        return integer(-(1 << 53), 1 << 53)(reader, node, name)
    return number(-_ANY_NUMBER, _ANY_NUMBER)(reader, node, name)


TESTS: Fields = {
    "gt": ("gt", _number),
    "ge": ("ge", _number),
    "lt": ("lt", _number),
    "le": ("le", _number),
    "equals": ("equals", _boxed),
    "in": ("in_", _options),
    "matches": ("matches", pattern),
    "present": ("present", flag),
}


def value_test(reader: Reader, node: Node, name: str) -> ValueTest | None:
    """Tests of a value, such as {gt: 100}."""
    if not isinstance(node, Entries):
        reader.wrong(node, name, "a mapping of tests such as {gt: 100}")
        return None
    return built_test(reader, node, name, reader.section(node, name, TESTS))


def built_test(reader: Reader, node: Node, name: str, found: dict[str, Any]) -> ValueTest | None:
    """The test of the values of `TESTS`."""
    if not found:
        if isinstance(node, Entries) and not node.entries.keys() & TESTS.keys():
            reader.problem(node, f"{name} has no test", f"use one of {', '.join(TESTS)}")
        return None
    if "equals" in found:
        found["equals"] = found["equals"][0]
    test = ValueTest(**found)
    if test.present is False and len(found) > 1:
        reader.problem(node, f"{name}: a value that is not present has nothing to test", "keep `present: false` alone")
    low = max((each for each in (test.gt, test.ge) if each is not None), default=None)
    high = min((each for each in (test.lt, test.le) if each is not None), default=None)
    if low is not None and high is not None:
        strict = low in (test.gt,) or high in (test.lt,)
        if low > high or (low == high and strict):
            reader.problem(node, f"{name} can never be met: no number is above {low} and below {high}", "", "warning")
    return test


def argument_tests(reader: Reader, node: Node, name: str) -> tuple[ArgumentTest, ...] | None:
    """Tests by pointer, such as {/usd: {gt: 100}}."""
    found: list[ArgumentTest] = []
    if isinstance(node, Entries) and not node.entries:
        reader.problem(node, f"{name} has no test", "remove the line")
    for text_, (at, value) in reader.entries(node, name).items():
        place = pointer_of(reader, at, text_, f"a key of {name}")
        test = value_test(reader, value, f"{name}.{text_}")
        if place is not None and test is not None:
            found.append(ArgumentTest(place, test))
    return tuple(found) or None
