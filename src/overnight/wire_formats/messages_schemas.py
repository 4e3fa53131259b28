"""JSON Schemas for structured output, adapted to each provider."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from .contract import Losses
from .lenient_json import (
    Json,
    dict_of,
    dicts_of,
    list_of,
)

_KEPT = frozenset({"title", "enum", "const", "default", "$ref", "required"})
_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"},
)
_NESTED = frozenset({"$defs", "definitions", "properties", "items", "anyOf", "oneOf", "allOf"})
MAX_NESTING = 64
_encode = msgspec.json.Encoder().encode


def closed_schema(schema: Json, place: str, losses: Losses, depth: int = 0) -> Json:
    """The schema in the form that Anthropic accepts: closed objects, with unsupported constraints moved to the
    description.

    The moved constraints are named in `losses`, since the provider does not enforce them.
    """
    if depth > MAX_NESTING:
        losses.append(place)
        return {}
    kinds = schema.get("type")
    if isinstance(kinds, list):
        rest = {name: value for name, value in schema.items() if name != "type"}
        variants = [{**rest, "type": kind} if kind != "null" else {"type": "null"} for kind in cast("list[Any]", kinds)]
        return {"anyOf": [closed_schema(each, place, losses, depth + 1) for each in variants]}
    out: Json = {}
    unsupported: list[str] = []
    for name, value in schema.items():
        if name in _NESTED:
            out["anyOf" if name == "oneOf" else name] = _nested(name, value, f"{place}.{name}", losses, depth + 1)
        elif name in _KEPT or name in ("type", "description") or _is_kept(name, value):
            out[name] = value
        elif name != "additionalProperties":
            losses.append(f"{place}.{name}")
            unsupported.append(f"{name}: {_encode(value).decode()}")
        elif value is not False:
            losses.append(f"{place}.{name}")
    if out.get("type") == "object" or "properties" in out:
        out["additionalProperties"] = False
    if unsupported:
        out["description"] = f"{out.get('description') or ''} ({', '.join(unsupported)})".strip()
    return out


def _nested(name: str, value: Any, place: str, losses: Losses, depth: int) -> Any:
    if name in ("$defs", "definitions", "properties"):
        return {
            key: closed_schema(dict_of(each), f"{place}.{key}", losses, depth) if isinstance(each, dict) else each
            for key, each in dict_of(value).items()
        }
    if isinstance(value, list):
        return [
            closed_schema(dict_of(each), f"{place}[{at}]", losses, depth) if isinstance(each, dict) else each
            for at, each in enumerate(cast("list[Any]", value))
        ]
    return closed_schema(dict_of(value), place, losses, depth) if isinstance(value, dict) else value


def _is_kept(name: str, value: Any) -> bool:
    return value in _FORMATS if name == "format" and isinstance(value, str) else name == "minItems" and value in (0, 1)


def is_strict(schema: Any, depth: int = 0) -> bool:
    """Whether OpenAI can enforce the schema: every object is closed and requires all of its properties."""
    if depth > MAX_NESTING:
        return False
    found = dict_of(schema)
    properties = dict_of(found.get("properties"))
    if found.get("type") == "object" or properties:
        if found.get("additionalProperties") is not False:
            return False
        if set(properties) != {each for each in list_of(found.get("required")) if isinstance(each, str)}:
            return False
    inner = [*properties.values(), *dict_of(found.get("$defs")).values(), *dict_of(found.get("definitions")).values()]
    inner += [*dicts_of(found.get("anyOf")), *dicts_of(found.get("allOf"))]
    if "items" in found:
        inner.append(found["items"])
    return "oneOf" not in found and all(is_strict(each, depth + 1) for each in inner)
