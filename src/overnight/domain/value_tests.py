"""Tests of JSON values, with three outcomes: a value that a test cannot judge is neither a match nor none."""

import math
import operator
from enum import Enum
from typing import Any, cast

import msgspec

from .json_pointer import MISSING
from .json_schema import compile_pattern
from .tools import ValueTest

MAX_TEXT = 256 * 1024
"""Longer texts are not searched: the outcome is UNSURE."""


class ValueOutcome(Enum):
    """UNSURE: the value is missing, or of a type that the test does not expect, so a tool might read it either way."""

    NO = 0
    UNSURE = 1
    YES = 2


def run_test(test: ValueTest, value: Any) -> tuple[ValueOutcome, str]:
    """The outcome of all tests together, and why it is not YES. The text never repeats the value."""
    worst, why = ValueOutcome.YES, ""
    for outcome, reason in _single_tests(test, value):
        if outcome.value < worst.value:
            worst, why = outcome, reason
    return worst, why


def _single_tests(test: ValueTest, value: Any) -> list[tuple[ValueOutcome, str]]:
    found: list[tuple[ValueOutcome, str]] = []
    exists = value is not MISSING
    if test.present is not None:
        found.append(_decided(exists == test.present, "is missing" if test.present else "is present"))
        if not exists:
            return found
    for limit, word, holds in (
        (test.gt, "not above", operator.gt),
        (test.ge, "below", operator.ge),
        (test.lt, "not below", operator.lt),
        (test.le, "above", operator.le),
    ):
        if limit is None:
            continue
        if is_number(value):
            found.append(_decided(holds(value, limit), f"is {word} {limit}"))
        else:
            found.append(_unsure(value, "a number"))
    if test.equals is not msgspec.UNSET:
        found.append(_equals_one(value, (test.equals,)))
    if test.in_:
        found.append(_equals_one(value, test.in_))
    if test.matches is not None:
        if isinstance(value, str) and len(value) <= MAX_TEXT:
            found.append(_decided(is_found(test.matches, value), f"does not match {test.matches!r}"))
        else:
            found.append(_unsure(value, "a text"))
    return found


def _decided(holds: bool, why: str) -> tuple[ValueOutcome, str]:
    return (ValueOutcome.YES, "") if holds else (ValueOutcome.NO, why)


def _unsure(value: Any, wanted: str) -> tuple[ValueOutcome, str]:
    return ValueOutcome.UNSURE, "is missing" if value is MISSING else f"is not {wanted}"


def is_number(value: Any) -> bool:
    """Whether the value is a finite number. Booleans are not numbers."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def is_found(pattern: str, text: str) -> bool:
    """Whether a regular expression is found in a text, in linear time."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()  # halves of surrogate pairs
    return bool(compile_pattern(pattern).is_valid(text))


def _equals_one(value: Any, wanted: tuple[Any, ...]) -> tuple[ValueOutcome, str]:
    if any(is_equal(value, each) for each in wanted):
        return ValueOutcome.YES, ""
    if value is MISSING or kind_of(value) not in {kind_of(each) for each in wanted}:
        kinds = " or ".join(sorted({kind_of(each) for each in wanted}))
        return _unsure(value, f"of type {kinds}")
    return ValueOutcome.NO, "has another value"


def kind_of(value: Any) -> str:
    """The JSON type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number" if is_number(value) else "number that is not finite"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list | tuple) else "object" if isinstance(value, dict) else "other"


def is_equal(one: Any, other: Any) -> bool:
    """Equality of JSON: 1 equals 1.0, and not true."""
    if kind_of(one) != kind_of(other):
        return False
    if isinstance(one, dict):
        left, right = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        return left.keys() == right.keys() and all(is_equal(left[name], right[name]) for name in left)
    if isinstance(one, list | tuple):
        first, second = cast("list[Any]", one), cast("list[Any]", other)
        return len(first) == len(second) and all(map(is_equal, first, second))
    return bool(one == other)
