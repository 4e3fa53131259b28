"""The sections `routes:` and `tiers:` as written, before other sections are applied."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from overnight.brain.fields import (
    ROUTE_NAME,
    Fields,
    Reader,
    choice,
    flag,
    integer,
    list_of,
    model_name,
    names,
    one_or_many,
    text,
)
from overnight.brain.nodes import Entries, Node, Scalar
from overnight.brain.problems import clipped
from overnight.brain.providers import RESIDENCY
from overnight.brain.rules import STICKY, Degraded, When
from overnight.domain.formats import ROUTED_FORMATS
from overnight.domain.globs import Names
from overnight.domain.policies import CACHE_MODES, WHEN_ALL_OPEN

DAY_MS = 86_400_000
MAX_TOKENS = 10_000_000
YEAR_S = 31_536_000
TIME_LIMITS = ("queue_ms", "connect_ms", "first_byte_ms", "silence_ms", "total_ms")
RESERVED_NAMES = ("auto", "default", "as_asked", "default_ms", "embeddings_ms", *TIME_LIMITS)
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "api-key", "x-api-key"})
route_name = text(ROUTE_NAME, "letters, digits and _ . : / @ + - (up to 128, the first a letter or digit)")
deadline = integer(1, DAY_MS)
output_tokens = integer(1, MAX_TOKENS)
_header_name = text(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", "a header name such as x-plan")
_header_value = names(200)


class Model(msgspec.Struct, frozen=True):
    """A model and its place in the file."""

    name: str
    node: Node


class RouteCache(msgspec.Struct, frozen=True):
    """The cache settings of a route; None inherits the section `cache`."""

    exact_ttl_s: int | None = None
    mode: str | None = None


class Rule(msgspec.Struct, frozen=True):
    """A route as written, before deadlines, fallbacks and tiers are resolved: exactly one of model, tier, weights."""

    node: Node
    model: Model | None = None
    tier: Model | None = None
    weights: tuple[tuple[Model, int], ...] = ()
    fallbacks: tuple[Model, ...] | None = None
    deadline_ms: int | None = None
    max_output_tokens: int | None = None
    when: When | None = None
    sticky: str = "session"
    residency: tuple[str, ...] = ()
    degraded: Degraded | None = None
    when_all_open: str | None = None
    cache: RouteCache = RouteCache()

    def models(self) -> Iterator[Model]:
        """The models that the rule names directly."""
        if self.model is not None:
            yield self.model
        for model, _ in self.weights:
            yield model


def model(reader: Reader, node: Node, name: str) -> Model | None:
    """A model name."""
    found = model_name(reader, node, name)
    return None if found is None else Model(found, node)


def key_name(reader: Reader, at: Scalar, reads: Any, what: str) -> str | None:
    """A key as a name, regardless of its YAML type (4.1 is valid)."""
    return reads(reader, msgspec.structs.replace(at, kind="text"), what)


def _weights(reader: Reader, node: Node, name: str) -> tuple[tuple[Model, int], ...] | None:
    weight = integer(0, 1_000_000)
    found: list[tuple[Model, int]] = []
    for key, (at, value) in reader.entries(node, name).items():
        named = key_name(reader, at, model_name, f"a model in {name}")
        share = weight(reader, value, f"{name}.{key}")
        if named is not None and share is not None:
            found.append((Model(named, at), share))
    if isinstance(node, Entries) and len(found) == len(node.entries) and not any(share for _, share in found):
        reader.problem(node, f"{name} gives no model a weight above 0", "for example {model-a: 70, model-b: 30}")
        return None
    return tuple(found) or None


def _headers(reader: Reader, node: Node, name: str) -> dict[str, Names] | None:
    found: dict[str, Names] = {}
    for key, (at, value) in reader.entries(node, name).items():
        if key_name(reader, at, _header_name, f"a header in {name}") is None:
            continue
        if key.lower() in _SECRET_HEADERS:
            reader.problem(at, f"{name} uses {key}, which contains secrets", "use a dedicated header, such as x-plan")
        elif (values := _header_value(reader, value, f"{name}.{key}")) is not None:
            found[key.lower()] = values
    return found


def _formats(reader: Reader, node: Node, name: str) -> Names | None:
    found = one_or_many(choice(*ROUTED_FORMATS))(reader, node, name)
    return None if found is None else Names(found)


_WHEN: Fields = {
    "task": ("task", names()),
    "agent": ("agent", names()),
    "workflow": ("workflow", names()),
    "tag": ("tag", names()),
    "model": ("model", names()),
    "header": ("headers", _headers),
    "format": ("format", _formats),
}


def _when(reader: Reader, node: Node, name: str) -> When | None:
    found = reader.section(node, name, _WHEN)
    if not found and not (isinstance(node, Entries) and node.entries):
        reader.problem(node, f"{name} has no condition", f"use one or more of {', '.join(_WHEN)}")
    return When(**found) if found else None


_DEGRADED: Fields = {
    "answer": ("answer", text(r"[\s\S]{1,10000}", "the text to answer with (up to 10,000 characters)")),
    "cache": ("cache", flag),
}


def _degraded(reader: Reader, node: Node, name: str) -> Degraded | None:
    found = reader.section(node, name, _DEGRADED)
    if "answer" not in found and not found.get("cache"):
        if found or not (isinstance(node, Entries) and node.entries):
            reader.problem(node, f"{name} is empty", "{answer: …}, {cache: true}, or both")
        return None
    return Degraded(**found)


_CACHE: Fields = {
    "exact": ("exact_ttl_s", integer(0, YEAR_S)),
    "semantic": ("mode", choice(*CACHE_MODES)),
}


def _cache(reader: Reader, node: Node, name: str) -> RouteCache:
    return RouteCache(**reader.section(node, name, _CACHE))


_ROUTE: Fields = {
    "model": ("model", model),
    "tier": (
        "tier",
        lambda reader, node, name: Model(found, node) if (found := route_name(reader, node, name)) else None,
    ),
    "weights": ("weights", _weights),
    "when": ("when", _when),
    "sticky": ("sticky", choice(*STICKY)),
    "residency": ("residency", one_or_many(text(RESIDENCY, "lower-case letters, digits, - or _, such as eu"))),
    "deadline_ms": ("deadline_ms", deadline),
    "max_output_tokens": ("max_output_tokens", output_tokens),
    "fallbacks": ("fallbacks", list_of(model)),
    "degraded": ("degraded", _degraded),
    "when_all_open": ("when_all_open", choice(*WHEN_ALL_OPEN)),
    "cache": ("cache", _cache),
}
_TARGETS = ("model", "tier", "weights")


def read_tiers(reader: Reader, node: Node | None) -> dict[str, tuple[Model, ...]]:
    """The models of each tier, in order of precedence; lowest tier first."""
    tiers: dict[str, tuple[Model, ...]] = {}
    for name, (at, value) in reader.entries(node, "tiers").items():
        if key_name(reader, at, route_name, "a tier name") is None:
            continue
        models = one_or_many(model)(reader, value, f"tiers.{name}")
        if models is not None:
            tiers[name] = models
    return tiers


def read_rules(reader: Reader, node: Node | None, tiers: Mapping[str, Any]) -> dict[str, Rule]:
    """The routes by name, in the order of the file."""
    rules: dict[str, Rule] = {}
    for name, (at, value) in reader.entries(node, "routes").items():
        where = f"routes.{name}"
        key_name(reader, at, route_name, "a route name")
        if name in RESERVED_NAMES:
            reader.problem(at, f"{name!r} is reserved and cannot be a route name", "choose another name")
        if not isinstance(value, Entries):
            if (named := model(reader, value, where)) is not None:
                rules[name] = Rule(value, named)
            continue
        found = reader.section(value, where, _ROUTE)
        given = [key for key in _TARGETS if key in value.entries]
        if not given:
            reader.problem(value, f"{where} needs the key 'model'", "or 'tier', or 'weights'")
        elif len(given) > 1:
            reader.problem(
                value.entries[given[1]][0], f"{where} has both {given[0]!r} and {given[1]!r}", "keep one of the two"
            )
        elif given[0] in found:
            rule = Rule(value, **found)
            if rule.tier is not None and rule.tier.name not in tiers:
                reader.unknown(rule.tier.node, f"{where}.tier names no tier of `tiers`", rule.tier.name, tiers)
            else:
                rules[name] = rule
    return rules


def same_model(rule: Rule, where: str, reader: Reader) -> None:
    """Report fallbacks that repeat the route's own model."""
    for fallback in rule.fallbacks or ():
        if rule.model is not None and fallback.name == rule.model.name:
            reader.problem(fallback.node, f"{where} falls back to its own model {clipped(fallback.name)}")
