"""The schemas of tools' parameters, as MCP servers write them, in the form that every target accepts.

Targets require an object with `properties`, and reject `anyOf` and the like at the top level. Names in `losses` are of the
constraints that the target no longer enforces.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from .contract import Losses
from .lenient_json import Json, dict_of, dicts_of, list_of, text_of

_VARIANTS = ("anyOf", "oneOf", "allOf")
_REJECTED = frozenset({*_VARIANTS, "not", "enum", "if", "then", "else", "$ref"})
_DEFINITIONS = ("$defs", "definitions")


def parameters_schema(schema: Any, place: str, losses: Losses) -> Json:
    """The schema of an object with properties. A schema that already is one is returned as it is."""
    given = dict_of(schema)
    is_object = given.get("type") == "object" and isinstance(given.get("properties"), dict)
    if is_object and _REJECTED.isdisjoint(given) and isinstance(given.get("required", []), list):
        return given
    kind: Any = given.get("type", "object")
    kinds: list[Any] = cast("list[Any]", kind) if isinstance(kind, list) else [kind or "object"]
    if "object" not in kinds:
        losses.append(f"{place}.type")
        return {"type": "object", "properties": {}}
    losses += [f"{place}.{name}" for name in given if name in _REJECTED]
    properties, required = _merged(given, given, 0)
    out = {name: value for name, value in given.items() if name not in _REJECTED and name != "required"}
    out |= {"type": "object", "properties": properties}
    if required:
        out["required"] = required
    return out


def _merged(schema: Json, root: Json, depth: int) -> tuple[Json, list[str]]:
    """The properties and required names of a schema and of its variants."""
    properties = dict(dict_of(schema.get("properties")))
    required = [name for name in list_of(schema.get("required")) if isinstance(name, str)]
    if depth > 8:
        return properties, required
    reference = schema.get("$ref")
    if isinstance(reference, str):
        inner, needed = _merged(_resolved(reference, root), root, depth + 1)
        properties, required = {**inner, **properties}, [*required, *needed]
    for name in _VARIANTS:
        variants = [_merged(each, root, depth + 1) for each in dicts_of(schema.get(name))]
        for inner, _ in variants:
            properties = {**inner, **properties}
        needed = [set(each) for _, each in variants]
        if needed:
            common = set[str].union(*needed) if name == "allOf" else set[str].intersection(*needed)
            required += sorted(common)
    return properties, [name for name in dict.fromkeys(required) if name in properties]


def _resolved(reference: str, root: Json) -> Json:
    """The definition that a local reference names."""
    for section in _DEFINITIONS:
        if reference.startswith(f"#/{section}/"):
            return dict_of(dict_of(root.get(section)).get(reference.removeprefix(f"#/{section}/")))
    return {}


def without_repeated(tools: list[Json], names: list[str], losses: Losses, places: list[str]) -> list[Json]:
    """The first tool of each name. Targets reject two of one name."""
    kept: list[Json] = []
    seen: set[str] = set()
    for tool, name, place in zip(tools, names, places, strict=True):
        if name in seen:
            losses.append(f"{place} (repeated name)")
            continue
        seen.add(name)
        kept.append(tool)
    return kept


_fine: dict[tuple[str, str], None] = {}
"""Formats and hashes of tools that need no change: an agent sends the same tools with every turn."""
_MAX_FINE = 1024
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def acceptable_tools(tools: msgspec.Raw, digest: str, form: str, losses: Losses) -> msgspec.Raw:
    """The tools of a request that is passed through, changed only where targets reject them. `digest` is their hash."""
    if (form, digest) in _fine:
        return tools
    given = dicts_of(_decode(tools))
    changed, names = False, list[str]()
    for at, tool in enumerate(given):
        place = f"tools[{at}]" + (".function" if form == "chat" else "")
        holder = dict_of(tool.get("function")) if form == "chat" else tool
        field = "input_schema" if form == "messages" else "parameters"
        is_own = tool.get("type", "custom") in ("custom", "function")
        names.append(text_of(holder.get("name")) if is_own and holder.get("name") else f" {at}")
        if is_own and field in holder:
            schema = parameters_schema(holder[field], f"{place}.{field}", losses)
            if schema is not holder[field]:
                holder[field], changed = schema, True
    kept = without_repeated(given, names, losses, [f"tools[{at}]" for at in range(len(given))])
    if changed or len(kept) < len(given):
        return msgspec.Raw(_encode(kept))
    if len(_fine) >= _MAX_FINE:
        _fine.clear()
    _fine[form, digest] = None
    return tools
