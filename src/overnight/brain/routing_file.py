"""Read routing.yaml, and report all of its problems at once."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from overnight.brain.cache_section import read_cache
from overnight.brain.complexity import Complexity
from overnight.brain.fields import Fields, Reader, as_node, model_name, money, number, text
from overnight.brain.limits_section import (
    read_alarms,
    read_breakers,
    read_budgets,
    read_guards,
    read_limits,
    read_rate_limits,
    read_retries,
)
from overnight.brain.nodes import Entries, Items, Node, Scalar, parse_yaml
from overnight.brain.problems import Problem, clipped, did_you_mean
from overnight.brain.providers import read_providers, well_known
from overnight.brain.routes_section import (
    TIME_LIMITS,
    Model,
    Rule,
    deadline,
    key_name,
    model,
    read_rules,
    read_tiers,
    same_model,
)
from overnight.brain.routing import DEFAULT_MODEL, Price, Routing, fallback_chain
from overnight.brain.rules import Route, RouteVariant
from overnight.domain import TimeLimits
from overnight.domain.globs import is_glob

from .lint import (
    PriceSource,
    lint_prices,
    lint_routes,
    nearest_model,
)

_TOP: Fields = {
    "default_model": ("default_model", model),
    "routes": ("routes", as_node),
    "tiers": ("tiers", as_node),
    "complexity": ("complexity", as_node),
    "budgets": ("budgets", as_node),
    "rate_limits": ("rate_limits", as_node),
    "fallbacks": ("fallbacks", as_node),
    "providers": ("providers", as_node),
    "prices": ("prices", as_node),
    "hosted_tools": ("hosted_tools", as_node),
    "deadlines": ("deadlines", as_node),
    "retries": ("retries", as_node),
    "breakers": ("breakers", as_node),
    "limits": ("limits", as_node),
    "guards": ("guards", as_node),
    "alarms": ("alarms", as_node),
    "cache": ("cache", as_node),
}
_PRICE: Fields = {
    "input_usd_per_mtok": ("input_microusd_per_mtok", money),
    "cached_input_usd_per_mtok": ("cached_input_microusd_per_mtok", money),
    "cache_write_usd_per_mtok": ("cache_write_microusd_per_mtok", money),
    "cache_write_1h_usd_per_mtok": ("cache_write_1h_microusd_per_mtok", money),
    "output_usd_per_mtok": ("output_microusd_per_mtok", money),
}
_TOOL = text(r"[a-z][a-z0-9_]{0,63}", "a tool type without its date, such as web_search")
_FALLBACK: Fields = {"from": ("source", model), "to": ("target", model)}
_COMPLEXITY: Fields = {"threshold": ("threshold", number(0, 1))}


PriceSources = Callable[[Mapping[str, Price]], PriceSource]
"""The prices of all models, given the prices that a file sets."""


def built_in_routing() -> Routing:
    """The routing of a brain without routing.yaml."""
    return Routing(providers=tuple(well_known().values()))


def read_routing(file: str, content: str, books: PriceSources | None = None) -> tuple[Routing | None, list[Problem]]:
    """Parse one routing.yaml. Returns the routing, or None on errors, and all problems; with `books`, including
    missing prices."""
    root, problems = parse_yaml(file, content)
    if root is None and problems:
        return None, problems
    reader = Reader(file)
    routing = _routing(reader, reader.section(root, "", _TOP), books)
    problems += reader.problems
    return (None if any(problem.severity == "error" for problem in problems) else routing), problems


def _routing(reader: Reader, top: dict[str, Any], books: PriceSources | None) -> Routing:
    default: Model | None = top.get("default_model")
    known = well_known()
    own = {provider.name: provider for provider in read_providers(reader, top.get("providers"), known)}
    cache, embedder = read_cache(reader, top.get("cache"))
    # Sufficient to determine the known models, which the rest of the file is checked against.
    draft = Routing(
        default_model=default.name if default else DEFAULT_MODEL,
        providers=(*own.values(), *(provider for name, provider in known.items() if name not in own)),
        prices=_prices(reader, top.get("prices")),
        hosted_tools=_hosted_tools(reader, top.get("hosted_tools")),
        complexity=Complexity(**reader.section(top.get("complexity"), "complexity", _COMPLEXITY)),
        budgets=read_budgets(reader, top.get("budgets")),
        rate_limits=read_rate_limits(reader, top.get("rate_limits")),
        retries=read_retries(reader, top.get("retries")),
        breakers=read_breakers(reader, top.get("breakers")),
        limits=read_limits(reader, top.get("limits")),
        guards=read_guards(reader, top.get("guards")),
        alarms=read_alarms(reader, top.get("alarms")),
        cache=cache,
    )
    tiers = read_tiers(reader, top.get("tiers"))
    rules = read_rules(reader, top.get("routes"), tiers)
    draft, deadlines = _deadlines(reader, top.get("deadlines"), rules, draft)
    models = [each for rule in rules.values() for each in rule.models()]
    models += [each for tier in tiers.values() for each in tier]
    listed = {*draft.served, *(each.name for each in models)}
    book = books(draft.prices) if books is not None else None
    fallbacks = _fallbacks(reader, top.get("fallbacks"), draft, listed, book)
    for name, rule in rules.items():
        for each in rule.fallbacks or ():
            _check_known(reader, f"routes.{name}.fallbacks", each, draft, listed, book)
        same_model(rule, f"routes.{name}", reader)
        if rule.cache.mode not in (None, "off") and cache.semantic is None:
            reader.problem(
                rule.node, f"routes.{name}.cache.semantic needs the section cache.semantic", "name its model"
            )
    for each in (default, *models, embedder):
        if each is not None:
            _warn_unserved(reader, each, draft, listed, book)
    levels = {name: tuple(each.name for each in tier) for name, tier in tiers.items()}
    routing = msgspec.structs.replace(
        draft,
        fallbacks=fallbacks,
        tiers=levels,
        routes={
            name: _route(name, rule, deadlines.get(name, rule.deadline_ms), levels, fallbacks, draft)
            for name, rule in rules.items()
        },
    )
    if not any(problem.severity == "error" for problem in reader.problems):
        lint_routes(reader, rules, tiers, routing)
    if book is not None:
        named = [each for each in (default, embedder, *models) if each is not None]
        named += [each for rule in rules.values() for each in rule.fallbacks or ()]
        _warn_unpriced(reader, top, named, routing, book)
    return routing


def _warn_unpriced(
    reader: Reader, top: dict[str, Any], models: list[Model], routing: Routing, book: PriceSource
) -> None:
    prices = top.get("prices")
    stated = prices.entries if isinstance(prices, Entries) else ()
    models = [*models, *_listed(top.get("fallbacks"), top.get("providers"))]
    lint_prices(reader, models, routing, book, frozenset(stated))


def _listed(fallbacks: Node | None, providers: Node | None) -> Iterator[Model]:
    """The models in valid sections: in fallbacks, and by name in providers."""
    for item in fallbacks.items if isinstance(fallbacks, Items) else ():
        if isinstance(item, Entries):
            yield from _named(value for _, value in item.entries.values())
    for _, provider in (providers.entries if isinstance(providers, Entries) else {}).values():
        listed = provider.entries.get("models") if isinstance(provider, Entries) else None
        if listed is not None and isinstance(listed[1], Items):
            yield from _named(listed[1].items)


def _named(nodes: Iterable[Node]) -> Iterator[Model]:
    return (Model(each.text, each) for each in nodes if isinstance(each, Scalar) and not is_glob(each.text))


def _route(
    name: str,
    rule: Rule,
    deadline_ms: int | None,
    tiers: Mapping[str, tuple[str, ...]],
    fallbacks: Mapping[str, tuple[str, ...]],
    draft: Routing,
) -> Route:
    def variant(name: str, models: tuple[str, ...], weight: int = 1) -> RouteVariant:
        if rule.fallbacks is None:
            following = [each for model in models for each in fallback_chain(model, fallbacks)]
        else:
            # A route's own list is its complete chain, so an empty list disables fallbacks.
            following = [each.name for each in rule.fallbacks]
        return RouteVariant(name, tuple(dict.fromkeys((*models, *following))), weight)

    if rule.tier is not None:
        order = list(tiers)
        at = order.index(rule.tier.name)
        variants = tuple(variant(tier, tiers[tier]) for tier in order[at : at + 2])
    elif rule.weights:
        variants = tuple(variant(model.name, (model.name,), weight) for model, weight in rule.weights)
    else:
        variants = tuple(variant(model.name, (model.name,)) for model in rule.models())
    return Route(
        name=name,
        variants=variants,
        kind="tier" if rule.tier else "weights" if rule.weights else "model",
        deadline_ms=deadline_ms or draft.deadline_ms,
        embeddings_ms=deadline_ms or draft.embeddings_ms,
        max_output_tokens=rule.max_output_tokens or draft.limits.default_max_output_tokens,
        output_cap=rule.max_output_tokens,
        when=rule.when,
        sticky=rule.sticky,
        residency=rule.residency,
        degraded=rule.degraded,
        when_all_open=rule.when_all_open or draft.breakers.when_all_open,
        cache=draft.cache.override(rule.cache.exact_ttl_s, rule.cache.mode),
    )


def _prices(reader: Reader, node: Node | None) -> dict[str, Price]:
    prices: dict[str, Price] = {}
    for priced, (at, value) in reader.entries(node, "prices").items():
        key_name(reader, at, model_name, "a model in prices")
        if is_glob(priced[:1]):
            message = f"prices.{clipped(priced)} sets the price of every model, including those with a list price"
            reader.problem(at, message, "begin with a provider, such as house/*, or with a part of a model name")
        found = reader.section(value, f"prices.{priced}", _PRICE, ("input_usd_per_mtok", "output_usd_per_mtok"))
        if "input_microusd_per_mtok" in found and "output_microusd_per_mtok" in found:
            found.setdefault("cached_input_microusd_per_mtok", found["input_microusd_per_mtok"])
            prices[priced] = msgspec.convert(found, Price)
    return prices


def _hosted_tools(reader: Reader, node: Node | None) -> dict[str, int]:
    fees: dict[str, int] = {}
    for name, (at, value) in reader.entries(node, "hosted_tools").items():
        key_name(reader, at, _TOOL, "a tool in hosted_tools")
        if (fee := money(reader, value, f"hosted_tools.{name}")) is not None:
            fees[name] = fee
    return fees


def _deadlines(
    reader: Reader, node: Node | None, rules: Mapping[str, Rule], draft: Routing
) -> tuple[Routing, dict[str, int]]:
    """The routing with its time limits, and the deadlines of routes."""
    fields: Fields = dict.fromkeys(("default_ms", "embeddings_ms", *TIME_LIMITS, *rules), ("", deadline))
    found: dict[str, int] = {}
    entries = reader.entries(node, "deadlines")
    for name, (at, value) in entries.items():
        if name not in fields:
            message = f"deadlines.{name} is neither a time limit nor a route"
            reader.unknown(at, message, name, fields.keys())
        elif (read := deadline(reader, value, f"deadlines.{name}")) is not None:
            found[name] = read
        if name in rules and rules[name].deadline_ms is not None:
            reader.problem(at, f"the deadline of {clipped(name)} is also set in routes.{name}", "keep one of the two")
    limits = TimeLimits(**{name: found.pop(name) for name in TIME_LIMITS if name in found})
    usual = found.pop("default_ms", limits.total_ms)
    embeddings = found.pop("embeddings_ms", min(draft.embeddings_ms, limits.total_ms))
    if "total_ms" in entries:
        named = {"deadlines.default_ms": usual, "deadlines.embeddings_ms": embeddings}
        named |= {f"deadlines.{name}": each for name, each in found.items()}
        named |= {f"routes.{name}.deadline_ms": each.deadline_ms or 0 for name, each in rules.items()}
        for name, each in named.items():
            if each > limits.total_ms:
                message = f"{name} ({each}) is longer than deadlines.total_ms ({limits.total_ms})"
                hint = f"total_ms is the limit of the whole call; lower {name.split('.')[-1]} or raise total_ms"
                reader.problem(entries["total_ms"][0], message, hint)
    routing = msgspec.structs.replace(draft, deadline_ms=usual, embeddings_ms=embeddings, time_limits=limits)
    return routing, found


def _fallbacks(
    reader: Reader, node: Node | None, draft: Routing, listed: set[str], book: PriceSource | None
) -> dict[str, tuple[str, ...]]:
    fallbacks: dict[str, tuple[str, ...]] = {}
    for index, item in enumerate(reader.items(node, "fallbacks")):
        where = f"fallbacks[{index}]"
        found = reader.section(item, where, _FALLBACK, ("from", "to"))
        for key, attribute in (("from", "source"), ("to", "target")):
            if attribute in found:
                _check_known(reader, f"{where}.{key}", found[attribute], draft, listed, book)
        if len(found) < 2:
            continue
        source, target = found["source"].name, found["target"].name
        step = f"{clipped(source)} to {clipped(target)}"
        if source == target:
            reader.problem(item, f"{where} falls back from {clipped(source)} to itself", "name another model")
        elif target in fallbacks.get(source, ()):
            reader.problem(item, f"{where} repeats the fallback from {step}", "keep one of the two")
        elif source in fallback_chain(target, fallbacks):
            reader.problem(
                item,
                f"{where} creates a cycle: from {step}, which already falls back to {clipped(source)}",
                "remove one fallback of the cycle",
            )
        else:
            fallbacks[source] = (*fallbacks.get(source, ()), target)
    return fallbacks


def _check_known(
    reader: Reader, where: str, model: Model, draft: Routing, listed: set[str], book: PriceSource | None
) -> None:
    if model.name not in listed and draft.provider_for(model.name) is None and not reader.full:
        near = nearest_model(model.name, draft, book)
        hint = f"did you mean {near!r}?" if near else did_you_mean(model.name, listed)
        reader.problem(model.node, f"{where} names the unknown model {clipped(model.name)}", hint)


def _warn_unserved(reader: Reader, model: Model, draft: Routing, listed: set[str], book: PriceSource | None) -> None:
    if draft.provider_for(model.name) is None and not reader.full:
        near = nearest_model(model.name, draft, book)
        suggestion = (
            f"did you mean {near!r}?"
            if near
            else did_you_mean(model.name, (name for name in listed if draft.provider_for(name) is not None))
        )
        hint = suggestion if suggestion.startswith("did") else "list it under providers.<name>.models"
        reader.problem(model.node, f"no provider serves the model {clipped(model.name)}", hint, "warning")
