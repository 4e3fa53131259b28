"""routing.yaml → Routing, with everything that is wrong with it at once."""

from collections.abc import Mapping
from typing import Any

import msgspec

from overnight.brain.fields import ROUTE_NAME, Fields, Reader, as_node, choice, many, model_name, money, text, whole
from overnight.brain.nodes import Entries, Node, Scalar, parse_yaml
from overnight.brain.problems import Problem, clipped, did_you_mean
from overnight.brain.providers import read_providers, well_known
from overnight.brain.routing import (
    DEFAULT_MODEL,
    RESERVED_ROUTES,
    Budgets,
    Limits,
    Price,
    Retries,
    Route,
    Routing,
    chain,
)

_DAY_MS = 86_400_000
_deadline = whole(1, _DAY_MS)
_tokens = whole(1, 10_000_000)


class _Model(msgspec.Struct, frozen=True):
    """A model and where the file names it."""

    name: str
    node: Node


class _Rule(msgspec.Struct, frozen=True):
    """A route as written, before deadlines and fallbacks of other sections are known."""

    model: _Model
    fallbacks: tuple[_Model, ...] | None = None
    deadline_ms: int | None = None
    max_output_tokens: int | None = None


def _model(reader: Reader, node: Node, name: str) -> _Model | None:
    model = model_name(reader, node, name)
    return None if model is None else _Model(model, node)


_TOP: Fields = {
    "default_model": ("default_model", _model),
    "routes": ("routes", as_node),
    "budgets": ("budgets", as_node),
    "fallbacks": ("fallbacks", as_node),
    "providers": ("providers", as_node),
    "prices": ("prices", as_node),
    "deadlines": ("deadlines", as_node),
    "retries": ("retries", as_node),
    "limits": ("limits", as_node),
}
_BUDGETS: Fields = {
    "max_cost_per_job_usd": ("max_cost_per_job_microusd", money),
    "max_llm_calls_per_job": ("max_llm_calls_per_job", whole(0, 1_000_000_000)),
}
_PRICE: Fields = {
    "input_usd_per_mtok": ("input_microusd_per_mtok", money),
    "cached_input_usd_per_mtok": ("cached_input_microusd_per_mtok", money),
    "output_usd_per_mtok": ("output_microusd_per_mtok", money),
}
_RETRIES: Fields = {
    "max_attempts": ("max_attempts", whole(1, 100)),
    "backoff_ms": ("backoff_ms", whole(0, _DAY_MS)),
    "max_backoff_ms": ("max_backoff_ms", whole(0, _DAY_MS)),
    "jitter": ("jitter", choice("full", "none")),
}
_LIMITS: Fields = {
    "max_body_bytes": ("max_body_bytes", whole(1, 1 << 30)),
    "default_max_output_tokens": ("default_max_output_tokens", _tokens),
}
_ROUTE: Fields = {
    "model": ("model", _model),
    "deadline_ms": ("deadline_ms", _deadline),
    "max_output_tokens": ("max_output_tokens", _tokens),
    "fallbacks": ("fallbacks", many(_model)),
}
_FALLBACK: Fields = {"from": ("source", _model), "to": ("target", _model)}
_route_name = text(ROUTE_NAME, "letters, digits and _ . : / @ + - (up to 128, the first a letter or digit)")


def built_in_routing() -> Routing:
    """The routing of a brain without routing.yaml."""
    return Routing(providers=tuple(well_known().values()))


def read_routing(file: str, content: str) -> tuple[Routing | None, list[Problem]]:
    """The routing of one routing.yaml, None when it holds an error, and every problem in it."""
    root, problems = parse_yaml(file, content)
    if root is None and problems:
        return None, problems
    reader = Reader(file)
    routing = _routing(reader, reader.section(root, "", _TOP))
    problems += reader.problems
    return (None if any(problem.severity == "error" for problem in problems) else routing), problems


def _routing(reader: Reader, top: dict[str, Any]) -> Routing:
    default: _Model | None = top.get("default_model")
    known = well_known()
    own = {provider.name: provider for provider in read_providers(reader, top.get("providers"), known)}
    limits = msgspec.convert(reader.section(top.get("limits"), "limits", _LIMITS), Limits)
    # enough to say which models are known; the rest of the file is checked against it
    draft = Routing(
        default_model=default.name if default else DEFAULT_MODEL,
        providers=(*own.values(), *(provider for name, provider in known.items() if name not in own)),
        prices=_prices(reader, top.get("prices")),
        budgets=msgspec.convert(reader.section(top.get("budgets"), "budgets", _BUDGETS), Budgets),
        retries=_retries(reader, top.get("retries")),
        limits=limits,
    )
    rules = _rules(reader, top.get("routes"))
    default_ms, deadlines = _deadlines(reader, top.get("deadlines"), rules, draft.deadline_ms)
    models = [rule.model for rule in rules.values()]
    listed = {*draft.served, *(model.name for model in models)}
    fallbacks = _fallbacks(reader, top.get("fallbacks"), draft, listed)
    for name, rule in rules.items():
        for model in rule.fallbacks or ():
            _must_be_known(reader, f"routes.{name}.fallbacks", model, draft, listed)
            if model.name == rule.model.name:
                reader.problem(model.node, f"routes.{name} falls back to its own model {clipped(model.name)}")
    for model in [default, *models] if default else models:
        _warn_unserved(reader, model, draft, listed)
    return msgspec.structs.replace(
        draft,
        fallbacks=fallbacks,
        deadline_ms=default_ms,
        routes={
            name: Route(
                name,
                _targets(rule, fallbacks),
                deadlines.get(name, rule.deadline_ms) or default_ms,
                rule.max_output_tokens or limits.default_max_output_tokens,
            )
            for name, rule in rules.items()
        },
    )


def _targets(rule: _Rule, fallbacks: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    if rule.fallbacks is None:
        return chain(rule.model.name, fallbacks)
    # a route's own list is its whole chain, so that an empty one can say: no fallback
    return tuple(dict.fromkeys(model.name for model in (rule.model, *rule.fallbacks)))


def _prices(reader: Reader, node: Node | None) -> dict[str, Price]:
    prices: dict[str, Price] = {}
    for model, (at, value) in reader.entries(node, "prices").items():
        _name(reader, at, model_name, "a model in prices")
        found = reader.section(value, f"prices.{model}", _PRICE, ("input_usd_per_mtok", "output_usd_per_mtok"))
        if "input_microusd_per_mtok" in found and "output_microusd_per_mtok" in found:
            found.setdefault("cached_input_microusd_per_mtok", found["input_microusd_per_mtok"])
            prices[model] = msgspec.convert(found, Price)
    return prices


def _retries(reader: Reader, node: Node | None) -> Retries:
    retries = msgspec.convert(reader.section(node, "retries", _RETRIES), Retries)
    if node is not None and retries.backoff_ms > retries.max_backoff_ms:
        message = f"retries.backoff_ms ({retries.backoff_ms}) is above max_backoff_ms ({retries.max_backoff_ms})"
        reader.problem(node, message)
    return retries


def _rules(reader: Reader, node: Node | None) -> dict[str, _Rule]:
    rules: dict[str, _Rule] = {}
    for name, (at, value) in reader.entries(node, "routes").items():
        where = f"routes.{name}"
        _name(reader, at, _route_name, "a route's name")
        if name in RESERVED_ROUTES or name == "default_ms":
            reader.problem(at, f"{name!r} cannot be a route's name: it has a meaning of its own", "choose another name")
        if isinstance(value, Entries):
            found = reader.section(value, where, _ROUTE, ("model",))
            if "model" in found:
                rules[name] = _Rule(**found)
        elif (model := _model(reader, value, where)) is not None:
            rules[name] = _Rule(model)
    return rules


def _deadlines(
    reader: Reader, node: Node | None, rules: Mapping[str, _Rule], default_ms: int
) -> tuple[int, dict[str, int]]:
    fields: Fields = dict.fromkeys(("default_ms", *rules), ("", _deadline))
    found: dict[str, int] = {}
    for name, (at, value) in reader.entries(node, "deadlines").items():
        if name not in fields:
            reader.unknown(at, f"deadlines.{name} is neither 'default_ms' nor a route", name, fields.keys())
        elif (deadline := _deadline(reader, value, f"deadlines.{name}")) is not None:
            found[name] = deadline
        if name in rules and rules[name].deadline_ms is not None:
            reader.problem(at, f"the deadline of {clipped(name)} is also set in routes.{name}", "keep one of the two")
    return found.pop("default_ms", default_ms), found


def _fallbacks(reader: Reader, node: Node | None, draft: Routing, listed: set[str]) -> dict[str, tuple[str, ...]]:
    fallbacks: dict[str, tuple[str, ...]] = {}
    for index, item in enumerate(reader.items(node, "fallbacks")):
        where = f"fallbacks[{index}]"
        found = reader.section(item, where, _FALLBACK, ("from", "to"))
        for key, attribute in (("from", "source"), ("to", "target")):
            if attribute in found:
                _must_be_known(reader, f"{where}.{key}", found[attribute], draft, listed)
        if len(found) < 2:
            continue
        source, target = found["source"].name, found["target"].name
        shown = f"{clipped(source)} to {clipped(target)}"
        if source == target:
            reader.problem(item, f"{where} falls back from {clipped(source)} to itself", "name another model")
        elif target in fallbacks.get(source, ()):
            reader.problem(item, f"{where} repeats the fallback from {shown}", "keep one of the two")
        elif source in chain(target, fallbacks):
            reader.problem(
                item,
                f"{where} closes a circle: from {shown}, which already falls back to {clipped(source)}",
                "take one of the circle's fallbacks out",
            )
        else:
            fallbacks[source] = (*fallbacks.get(source, ()), target)
    return fallbacks


def _name(reader: Reader, at: Scalar, reads: Any, what: str) -> None:
    # a key such as 4.1 is a name here, whatever YAML takes it for
    reads(reader, msgspec.structs.replace(at, kind="text"), what)


def _must_be_known(reader: Reader, where: str, model: _Model, draft: Routing, listed: set[str]) -> None:
    if model.name not in listed and draft.provider_for(model.name) is None:
        reader.unknown(model.node, f"{where} names the unknown model {clipped(model.name)}", model.name, listed)


def _warn_unserved(reader: Reader, model: _Model, draft: Routing, listed: set[str]) -> None:
    if draft.provider_for(model.name) is None and not reader.full:
        near = did_you_mean(model.name, (name for name in listed if draft.provider_for(name) is not None))
        hint = near if near.startswith("did") else "list it under providers.<name>.models"
        reader.problem(model.node, f"no provider serves the model {clipped(model.name)}", hint, "warning")
