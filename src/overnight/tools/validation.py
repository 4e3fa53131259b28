"""Arguments and results against a contract. Errors name the place and what is expected, and never repeat a value."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, cast

import msgspec

from overnight.domain.json_pointer import MISSING, pointer_to
from overnight.domain.json_schema import MAX_BYTES, compile_schema, not_json
from overnight.domain.json_text import encode_json
from overnight.domain.tools import TextTest, ToolContract
from overnight.domain.value_tests import ValueOutcome, is_found, run_test

MAX_VIOLATIONS = 20
_MAX_NAME = 60


class Violation(msgspec.Struct, frozen=True):
    """What does not fit, and where: a pointer, empty for the whole value."""

    pointer: str
    message: str

    def __str__(self) -> str:
        return f"{self.pointer or 'the value'}: {self.message}"


class Drift(msgspec.Struct, frozen=True):
    """A result that does not fit its contract. `action`: quarantine, pass or retry."""

    contract: str
    action: str
    violations: tuple[Violation, ...]

    @property
    def why(self) -> str:
        return told(self.violations)


def told(violations: Iterable[Violation]) -> str:
    """The violations as one sentence."""
    return "; ".join(map(str, violations))


def check_arguments(contract: ToolContract, arguments: Any) -> tuple[Violation, ...]:
    """Why the arguments do not fit the contract's `input`; empty if they do, or if it has none."""
    return _violations(contract.input, arguments, MAX_BYTES)


def check_result(contract: ToolContract, result: Any) -> Drift | None:
    """Whether the whole result drifted: from the contract's `output`, or from what it asserts."""
    found = [*_violations(contract.output, result, None), *_failed_asserts(contract, result)]
    return Drift(contract.label, contract.drift, tuple(found[:MAX_VIOLATIONS])) if found else None


def trim_result(contract: ToolContract, result: Any) -> Any:
    """The part of the result that callers see: the places of `result.keep`, each where it was; everything without them. A list
    keeps the order of what is kept, without gaps."""
    if not contract.keep:
        return result
    found = [pointer.parts for pointer in contract.keep if pointer.find(result) is not MISSING]
    return _kept(result, found) if found else None


def _kept(value: Any, places: list[tuple[str, ...]]) -> Any:
    if any(not parts for parts in places):
        return value
    inner: dict[str, list[tuple[str, ...]]] = {}
    for parts in places:
        inner.setdefault(parts[0], []).append(parts[1:])
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value)
        return {name: _kept(entries[name], rest) for name, rest in inner.items()}
    return [_kept(value[index], inner[str(index)]) for index in sorted(map(int, inner))]


def _violations(schema: Any, value: Any, most_bytes: int | None) -> tuple[Violation, ...]:
    if schema is None:
        return ()
    if (why := not_json(value)) is not None:
        return (Violation("", why),)
    if most_bytes is not None and len(encode_json(value)) > most_bytes:
        return (Violation("", f"is larger than {most_bytes:,} bytes"),)
    validator = compile_schema(schema)
    if validator.is_valid(value):
        return ()
    return tuple(_told(each) for each in islice(validator.iter_errors(value), MAX_VIOLATIONS))


def _told(error: Any) -> Violation:
    return Violation(_clipped_pointer(error.instance_path), _message(error.kind))


def _clipped_pointer(path: list[str | int]) -> str:
    return pointer_to([each if isinstance(each, int) else _name(each) for each in path[:16]])


def _name(text: str) -> str:
    text = "".join(each if each.isprintable() else "�" for each in text)
    return text if len(text) <= _MAX_NAME else text[: _MAX_NAME - 1] + "…"


def _message(kind: Any) -> str:
    """What is expected, in words of the schema."""
    name: str = kind.name
    facts: dict[str, Any] = {} if name in _NESTED else kind.as_dict()
    limit = facts.get("limit")
    match name:
        case "type":
            return f"must be of type {_types(facts)}"
        case "required":
            return f"needs the property {_name(str(facts.get('property')))!r}"
        case "additionalProperties" | "unevaluatedProperties" | "additionalItems" | "unevaluatedItems":
            unexpected = ", ".join(repr(_name(str(each))) for each in list(facts.get("unexpected") or ())[:5])
            return f"has unknown properties: {unexpected}" if unexpected else "has unknown items"
        case "enum":
            return f"must be one of {_limited(facts.get('options'))}"
        case "const":
            return f"must be {_limited(facts.get('expected_value'))}"
        case "pattern":
            return f"must match the pattern {_limited(facts.get('pattern'))}"
        case "format":
            return f"must have the format {_limited(facts.get('format'))}"
        case _ if name in _LIMITS and limit is not None:
            return f"{_LIMITS[name]} {limit}"
        case _:
            return f"does not meet {name!r} of the schema"


_NESTED = frozenset({"anyOf", "oneOf", "not", "contains", "propertyNames"})
_LIMITS = {
    "minimum": "must be at least",
    "maximum": "must be at most",
    "exclusiveMinimum": "must be above",
    "exclusiveMaximum": "must be below",
    "minLength": "is shorter than the minimum length of",
    "maxLength": "is longer than the maximum length of",
    "minItems": "has fewer items than",
    "maxItems": "has more items than",
    "minProperties": "has fewer properties than",
    "maxProperties": "has more properties than",
    "multipleOf": "must be a multiple of",
}


def _types(facts: dict[str, Any]) -> str:
    types: Any = facts.get("types")
    return " or ".join(map(str, cast("list[Any]", types))) if isinstance(types, list | tuple) else str(types)


def _limited(value: Any) -> str:
    text = encode_json(value).decode()
    return text if len(text) <= 200 else text[:199] + "…"


def _failed_asserts(contract: ToolContract, result: Any) -> Iterator[Violation]:
    text: str | None = None
    for each in contract.asserts:
        if isinstance(each, TextTest):
            if text is None:
                text = result if isinstance(result, str) else encode_json(result).decode()
            if is_found(each.text, text) == each.absent:
                verb = "contains a text that must be absent" if each.absent else "lacks a text that must be present"
                yield Violation("", f"{verb}: {each.text!r}")
            continue
        outcome, why = run_test(each.test, each.pointer.find(result))
        if outcome is not ValueOutcome.YES:
            yield Violation(each.pointer.text, why)
