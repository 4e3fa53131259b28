"""JSON Schemas (2020-12) and regular expressions of the brain, compiled: within limits, in linear time, without any network."""

import math
from functools import lru_cache
from typing import Any, cast

import msgspec

from .json_pointer import pointer_to

MAX_DEPTH = 64
MAX_BYTES = 256 * 1024
MAX_PATTERN = 1_000
_MAX_AUTOMATON = 1 << 20
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DIALECTS = (_DIALECT, _DIALECT + "#")
_REFERENCES = ("$ref", "$dynamicRef")
_DATA = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are data, in which `$ref` is a name like any other."""


class SchemaError(ValueError):
    """The schema or pattern cannot be used. `pointer` is the place in it."""

    def __init__(self, message: str, pointer: str = "") -> None:
        self.pointer = pointer
        super().__init__(message)


def not_json(value: Any) -> str | None:
    """Why a decoded value is not JSON within the limits of depth; None if it is."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        nested: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                entries = cast("dict[Any, Any]", each)
                if not all(isinstance(name, str) for name in entries):
                    return "has a name that is not text"
                nested.extend(entries.values())
            elif isinstance(each, list | tuple):
                nested.extend(cast("list[Any]", each))
            elif isinstance(each, float) and not math.isfinite(each):
                return "has a number that is not finite"
            elif each is not None and not isinstance(each, str | int | float):
                return "has a value that is not JSON"
        if not nested:
            return None
        level = nested
    return f"is nested deeper than {MAX_DEPTH} levels"


def compile_schema(schema: Any) -> Any:
    """A validator of `jsonschema-rs`. It resolves no remote reference, and runs every pattern in linear time.

    Raises SchemaError, for a schema that is invalid or exceeds the limits.
    """
    if not isinstance(schema, dict | bool):
        raise SchemaError("a schema is a mapping, true or false")
    if (why := not_json(schema)) is not None:
        raise SchemaError(f"it {why}")
    body = msgspec.json.encode(schema)
    if len(body) > MAX_BYTES:
        raise SchemaError(f"larger than {MAX_BYTES:,} bytes")
    if isinstance(schema, dict):
        _check_local(cast("dict[str, Any]", schema), [])
    return _compiled(body)


def _check_local(schema: dict[str, Any], path: list[str | int]) -> None:
    """Raise SchemaError for references out of the document, another dialect, and an identifier that would change their base."""
    dialect = schema.get("$schema")
    if isinstance(dialect, str) and dialect not in _DIALECTS:
        raise SchemaError("only JSON Schema 2020-12 is supported", pointer_to([*path, "$schema"]))
    for name in ("$id", *_REFERENCES):
        target = schema.get(name)
        if not isinstance(target, str):
            continue
        if name == "$id" and path:
            raise SchemaError("an embedded schema cannot have an $id of its own", pointer_to([*path, name]))
        if name in _REFERENCES and not target.startswith("#"):
            raise SchemaError("a reference must stay in this schema and begin with #", pointer_to([*path, name]))
    for name, value in schema.items():
        if name in _DATA:
            continue
        if isinstance(value, dict):
            _check_local(cast("dict[str, Any]", value), [*path, name])
        elif isinstance(value, list):
            for index, each in enumerate(cast("list[Any]", value)):
                if isinstance(each, dict):
                    _check_local(cast("dict[str, Any]", each), [*path, name, index])


@lru_cache(maxsize=1024)
def _compiled(body: bytes) -> Any:
    import jsonschema_rs  # 5 ms, which a brain without tools saves

    schema: Any = msgspec.json.decode(body)
    fields: Any = schema
    if isinstance(schema, dict):
        fields.pop("$id", None)
        schema = fields
    try:
        return jsonschema_rs.Draft202012Validator(schema, pattern_options=_pattern_options(), offline=True)
    except jsonschema_rs.ValidationError as error:
        place = pointer_to(list(error.instance_path))
        raise SchemaError(_reason(error.kind.name), place) from None
    except (jsonschema_rs.ReferencingError, ValueError, OverflowError, RecursionError) as error:
        raise SchemaError(f"it cannot be compiled: {str(error)[:200]}") from None


def _reason(keyword: str) -> str:
    if keyword in {"format", "pattern"}:
        return "not a supported regular expression: no look-around and no backreferences"
    return f"not valid in JSON Schema 2020-12 ({keyword})"


def _pattern_options() -> Any:
    import jsonschema_rs

    return jsonschema_rs.RegexOptions(size_limit=_MAX_AUTOMATON, dfa_size_limit=_MAX_AUTOMATON)


@lru_cache(maxsize=1024)
def compile_pattern(text: str) -> Any:
    """A regular expression whose `is_valid(value)` searches a text, in time linear in its length.

    It is the engine of `pattern` in schemas: look-around and backreferences are not supported, `\\d` and `\\w` are ASCII, and `$`
    matches only at the end.

    Raises SchemaError.
    """
    import jsonschema_rs

    if len(text) > MAX_PATTERN:
        raise SchemaError(f"longer than {MAX_PATTERN:,} characters")
    try:
        return jsonschema_rs.Draft202012Validator(
            {"type": "string", "pattern": text}, pattern_options=_pattern_options(), offline=True
        )
    except (jsonschema_rs.ValidationError, ValueError):
        raise SchemaError(_reason("pattern")) from None
