"""The message of an invalid body or query: one error, with its place and the nearest known name."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from overnight.domain import BadInput

_PLAIN = {
    "missing": "a value is required",
    "string_type": "expected text",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "list_type": "expected a list",
    "dict_type": "expected an object",
    "model_type": "expected an object",
    "model_attributes_type": "expected an object",
}
MAX_SHOWN = 40


def invalid_body(why: str, fields: Sequence[str]) -> BadInput:
    """The error for a body, with the fields that it may have."""
    return BadInput(f"body: {why}; fields: {', '.join(fields) or 'none'}")


def invalid_request(errors: Sequence[Any], fields: Sequence[str]) -> BadInput:
    """The error for what FastAPI found. An unknown name is told first: it explains a missing one."""
    error = min(errors, key=lambda each: each["type"] != "extra_forbidden")
    kind, *place = error["loc"]
    name = ".".join(str(part)[:MAX_SHOWN] for part in place)
    if error["type"] == "extra_forbidden":
        return unknown_name("field", name, fields) if len(place) == 1 else BadInput(f"unknown field {name!r}")
    why = f"{name}: {_message(error)}" if name else _message(error)
    return invalid_body(why, fields) if kind == "body" else BadInput(why)


def unknown_name(what: str, name: str, known: Sequence[str]) -> BadInput:
    """The error for a name that is none of `known`."""
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}? Known" if near else "known"
    return BadInput(f"unknown {what} {name[:MAX_SHOWN]!r}; {hint}: {', '.join(known) or 'none'}")


def _message(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"expected {context['expected']}"
    if kind in _PLAIN:
        return _PLAIN[kind]
    return str(error["msg"]).replace("Input should be", "expected").replace("String should", "text should")
