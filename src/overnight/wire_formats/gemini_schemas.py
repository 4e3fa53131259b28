"""Schemas of Gemini: a subset of OpenAPI 3.0 in `parameters` and `responseSchema`, and JSON Schema elsewhere.

https://ai.google.dev/api/caching#Schema lists the subset.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .contract import Losses
from .lenient_json import Json, dict_of, dicts_of, list_of, text_of

MAX_NESTING = 64
_SAME = frozenset({
    "title", "description", "nullable", "minItems", "maxItems", "minProperties", "maxProperties", "minLength",
    "maxLength", "pattern", "minimum", "maximum", "example", "default", "propertyOrdering", "required",
})  # fmt: skip
_FORMATS = frozenset({"enum", "date-time", "float", "double", "int32", "int64"})
_IGNORED = frozenset({"$schema", "$id", "$comment", "$defs", "definitions", "additionalProperties", "strict"})
"""Of a schema: what has no equivalent in the subset and does not change what is meant."""
_COUNTS = ("minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength")
_encode = msgspec.json.Encoder().encode


class SubsetSchema:
    """Converts one JSON Schema to the subset. References are replaced by what they name; what the subset lacks is named in
    `losses`, and moved to the description."""

    def __init__(self, schema: Json, losses: Losses) -> None:
        self._definitions = {**dict_of(schema.get("definitions")), **dict_of(schema.get("$defs"))}
        self._losses = losses

    def convert(self, schema: Any, place: str, depth: int = 0, seen: tuple[str, ...] = ()) -> Json:
        given = dict_of(schema)
        if isinstance(reference := given.get("$ref"), str):
            name = reference.rpartition("/")[2]
            if name in seen or name not in self._definitions or depth > MAX_NESTING:
                # A recursive schema ends here: the subset has no references.
                self._losses.append(f"{place}.$ref")
                return {"type": "OBJECT", "description": text_of(given.get("description")) or f"see {name}"}
            beside = {key: value for key, value in given.items() if key != "$ref"}
            return self.convert({**dict_of(self._definitions[name]), **beside}, place, depth + 1, (*seen, name))
        if depth > MAX_NESTING:
            self._losses.append(place)
            return {"type": "STRING"}
        return self._converted(given, place, depth + 1, seen)

    def _converted(self, given: Json, place: str, depth: int, seen: tuple[str, ...]) -> Json:
        out: Json = {}
        unsupported: list[str] = []
        for name, value in given.items():
            match name:
                case "type":
                    self._set_type(out, value, given)
                case "properties":
                    inner = dict_of(value).items()
                    out[name] = {key: self.convert(each, f"{place}.{key}", depth, seen) for key, each in inner}
                case "items":
                    out[name] = self.convert(value, f"{place}.items", depth, seen)
                case "anyOf" | "oneOf":
                    self._set_variants(out, dicts_of(value), f"{place}.{name}", depth, seen)
                case "allOf" if len(dicts_of(value)) == 1:
                    out = {**self.convert(dicts_of(value)[0], place, depth, seen), **out}
                case "enum" if all(isinstance(each, str) for each in list_of(value)):
                    out[name] = value
                    out.setdefault("type", "STRING")
                case "const" if isinstance(value, str):
                    out |= {"type": "STRING", "enum": [value]}
                case "format" if value in _FORMATS:
                    out[name] = value
                case _ if name in _SAME:
                    out[name] = value
                case _ if name not in _IGNORED:
                    self._losses.append(f"{place}.{name}")
                    unsupported.append(f"{name}: {_encode(value).decode()}")
                case _:
                    pass
        if unsupported:
            out["description"] = f"{out.get('description') or ''} ({', '.join(unsupported)})".strip()
        if out.get("type") == "OBJECT" and not out.get("properties"):
            # Gemini rejects an object without properties, unless nothing is said of them.
            out.pop("properties", None)
            out.pop("required", None)
        if out.get("type") == "ARRAY" and "items" not in out:
            out["items"] = {"type": "STRING"}
        return out

    def _set_type(self, out: Json, kinds: Any, given: Json) -> None:
        names = [each for each in (list_of(kinds) or [kinds]) if isinstance(each, str)]
        real = [each.upper() for each in names if each.lower() != "null"]
        if len(real) < len(names):
            out["nullable"] = True
        if len(real) == 1:
            out["type"] = real[0]
        elif real and "anyOf" not in given:
            out["anyOf"] = [{"type": each} for each in real]

    def _set_variants(self, out: Json, variants: list[Json], place: str, depth: int, seen: tuple[str, ...]) -> None:
        real = [each for each in variants if text_of(each.get("type")).lower() != "null"]
        if len(real) < len(variants):
            out["nullable"] = True
        made = [self.convert(each, f"{place}[{at}]", depth, seen) for at, each in enumerate(real)]
        if len(made) == 1:
            out |= {name: value for name, value in made[0].items() if name not in out}
        elif made:
            out["anyOf"] = made


def subset_schema(schema: Json, place: str, losses: Losses) -> Json:
    """A JSON Schema in the subset."""
    return SubsetSchema(schema, losses).convert(schema, place)


def json_schema(schema: Any, depth: int = 0) -> Json:
    """A schema of the subset as JSON Schema, which contains all that the subset has."""
    given = dict_of(schema)
    if depth > MAX_NESTING:
        return {}
    out: Json = {}
    for name, value in given.items():
        match name:
            case "type":
                out["type"] = text_of(value).lower()
            case "properties" | "defs" | "$defs":
                target = "$defs" if name == "defs" else name
                out[target] = {key: json_schema(each, depth + 1) for key, each in dict_of(value).items()}
            case "ref":
                out["$ref"] = value
            case "items":
                out["items"] = json_schema(value, depth + 1)
            case "anyOf":
                out["anyOf"] = [json_schema(each, depth + 1) for each in dicts_of(value)]
            case "additionalProperties":
                out[name] = json_schema(dict_of(value), depth + 1) if isinstance(value, dict) else value
            case "nullable" | "propertyOrdering":
                pass
            case "format" if value == "enum":
                pass
            case "example":
                out["examples"] = [value]
            case _ if name in _COUNTS and isinstance(value, str):
                out[name] = int(value) if value.isdigit() else value
            case _:
                out[name] = value
    if given.get("nullable") is True:
        if isinstance(kind := out.get("type"), str) and kind:
            out["type"] = [kind, "null"]
            if isinstance(out.get("enum"), list) and None not in out["enum"]:
                out["enum"] = [*out["enum"], None]
        elif "anyOf" in out:
            out["anyOf"] = [*out["anyOf"], {"type": "null"}]
    if out.get("type") == "type_unspecified":
        del out["type"]
    return out
