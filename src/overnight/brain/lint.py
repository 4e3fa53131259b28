"""Warnings about valid but probably unintended content of routing.yaml, which involve more than one section."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from overnight.brain.fields import Reader
from overnight.brain.nodes import Node
from overnight.brain.problems import clipped, did_you_mean, nearest, similarity
from overnight.brain.routes_section import Model, Rule
from overnight.brain.routing import Routing
from overnight.brain.rules import When
from overnight.domain.formats import ROUTED_FORMATS
from overnight.domain.globs import Names, is_glob
from overnight.domain.policies import PERIODS, BudgetLimit, Budgets, RateLimit

MIN_SIMILARITY = 0.8
"""The similarity from which an unknown name counts as a typing error. Own models are not misspelt public ones."""


def lint_routes(
    reader: Reader, rules: Mapping[str, Rule], tiers: Mapping[str, Sequence[Model]], routing: Routing
) -> None:
    """Warn of unreachable rules, unused tiers, and residencies without a provider."""
    _unreached(reader, rules)
    named = next((models[0].node for models in tiers.values() if models), None)
    if named is not None and not any(route.kind == "tier" for route in routing.routes.values()):
        reader.problem(named, "no route uses these tiers", "set the first tier of a route", "warning")
    places = {place for provider in routing.providers for place in provider.residency}
    for name, rule in rules.items():
        plan = routing.plans.get(name)
        if plan is None:
            continue
        for place in rule.residency:
            if place not in places:
                hint = did_you_mean(place, places) or "set the residency of a provider in providers.<name>.residency"
                reader.problem(rule.node, f"no provider has the residency {clipped(place)}", hint, "warning")
        if not plan.variants:
            message = f"routes.{name} has no target in {' or '.join(rule.residency)}: its calls are rejected"
            reader.problem(rule.node, message, "add a model of a provider with this residency", "warning")


class PriceSource(Protocol):
    """The prices of models."""

    def price(self, model: str, provider_hint: str | None = None, /) -> object:
        """Raises LookupError for a model without a known price."""

    def names(self, provider: str | None = None, /) -> Sequence[str]:
        """The models with a list price."""
        ...


def lint_prices(
    reader: Reader, models: Iterable[Model], routing: Routing, book: PriceSource, stated: Collection[str]
) -> None:
    """Warn of served models without a price: budgets cannot limit their calls, so they are rejected.

    A model that is `stated` under prices has a price, even if it was invalid and is reported elsewhere.
    """
    seen = set(stated)
    for model in models:
        provider = routing.provider_for(model.name)
        if provider is None or model.name in seen:
            continue
        seen.add(model.name)
        try:
            book.price(model.name, provider.name)
        except LookupError:
            message = f"unknown price of model {clipped(model.name)} at {provider.name}: its calls are rejected"
            reader.problem(model.node, message, _price_hint(model.name, provider.name, routing, book))


def _price_hint(model: str, provider: str, routing: Routing, book: PriceSource) -> str:
    """The hint for a missing price: the corrected name if it looks misspelt, else the entry to add."""
    entry = f"prices: {{{model!r}: {{input_usd_per_mtok: 0, output_usd_per_mtok: 0}}}}"
    near = nearest_model(model, routing, book, provider)
    if near is not None and (near in routing.prices or near.rpartition("/")[2] in set(book.names(provider))):
        return f"did you mean {near!r}? If the name is correct, set its price under `prices`"
    return f"set it, 0 if calls are free: {entry}"


def nearest_model(model: str, routing: Routing, book: PriceSource | None, provider: str | None = None) -> str | None:
    """The known model with the most similar name, with the same prefix `provider/`."""
    prefix, slash, rest = model.rpartition("/")
    served = (name for name, by in routing.served.items() if by is not None)
    known = {*served, *routing.prices, *(book.names(provider) if book is not None else ())}
    known = {name for name in known if not is_glob(name) and name not in {model, rest}}
    found = nearest(model, known) or nearest(rest, known)
    if not found or similarity(rest, found[0].rpartition("/")[2]) < MIN_SIMILARITY:
        return None
    return found[0] if found[0].startswith(prefix) else f"{prefix}{slash}{found[0]}"


def _unreached(reader: Reader, rules: Mapping[str, Rule]) -> None:
    earlier: list[tuple[str, When]] = []
    for name, rule in rules.items():
        when = rule.when
        if when is None:
            continue
        first = next((before for before, other in earlier if _subsumes(other, when)), None)
        named = _always_named(when, rules)
        if named:
            message = (
                f"the conditions of routes.{name} are never evaluated: {named} is a route name, which takes precedence"
            )
            reader.problem(rule.node, message, severity="warning")
        elif first is not None:
            message = (
                f"the conditions of routes.{name} are never evaluated: routes.{first} matches all of its calls first"
            )
            reader.problem(rule.node, message, "put the narrower rule first", "warning")
        earlier.append((name, when))


def _always_named(when: When, rules: Mapping[str, Rule]) -> str | None:
    """The condition that is met only by calls which name a route, and so never reach the conditions."""
    if when.format is None or not when.format.matches("embeddings"):
        for field, names in (("task", when.task), ("model", when.model)):
            if names is not None and all(not is_glob(each) and each in rules for each in names.patterns):
                return f"{field} {names}"
    return None


def _subsumes(wider: When, narrower: When) -> bool:
    """Whether every call that meets `narrower` certainly meets `wider`."""
    formats = [form for form in ROUTED_FORMATS if _format_fits(narrower, form)]
    return (
        all(_format_fits(wider, form) for form in formats)
        and all(
            _covers(getattr(wider, field), getattr(narrower, field))
            for field in ("task", "agent", "workflow", "tag", "model")
        )
        and all(_covers(names, narrower.headers.get(header)) for header, names in wider.headers.items())
    )


def _format_fits(when: When, form: str) -> bool:
    return when.format.matches(form) if when.format is not None else form != "embeddings"


def _covers(wider: Names | None, narrower: Names | None) -> bool:
    if wider is None:
        return True
    if narrower is None:
        return False
    return all(any(_covers_one(pattern, wider, each) for pattern in wider.patterns) for each in narrower.patterns)


def _covers_one(pattern: str, wider: Names, each: str) -> bool:
    if not is_glob(each):
        return wider.matches(each)
    # Of globs, only open-ended prefixes are compared; the intersection of "a?" and "[ab]*" is not computed.
    start = pattern.removesuffix("*")
    return each == pattern or (start != pattern and not is_glob(start) and each.startswith(start))


def lint_limits(
    reader: Reader,
    listed: Iterable[tuple[BudgetLimit | RateLimit, Node]],
    measures: Mapping[str, str],
    budgets: Budgets | None = None,
) -> None:
    """Warn of limits that can never take effect. `measures` maps keys in the file to attributes."""
    seen: dict[tuple[str, str, tuple[str, ...], str], tuple[int, str]] = {}
    if budgets is not None:
        for measure, per_job in _PER_JOB.items():
            if (value := getattr(budgets, per_job[0])) is not None:
                seen["job", "total", (), measure] = (value, f"budgets.{per_job[1]}")
    for index, (limit, node) in enumerate(listed):
        per: str = getattr(limit, "per", "total")
        whom = limit.only.patterns if limit.only is not None else ()
        place: str = getattr(limit, "place", f"[{index}]")
        for measure, attribute in measures.items():
            value: int | None = getattr(limit, attribute)
            if value is None:
                continue
            _lint_limit(reader, node, seen, (limit.scope, per, whom, measure), value, place)
            seen.setdefault((limit.scope, per, whom, measure), (value, place))


def _lint_limit(
    reader: Reader,
    node: Node,
    seen: Mapping[tuple[str, str, tuple[str, ...], str], tuple[int, str]],
    what: tuple[str, str, tuple[str, ...], str],
    value: int,
    place: str,
) -> None:
    scope, per, whom, measure = what
    if what in seen:
        before = seen[what][1]
        reader.problem(node, f"{place} and {before} both limit {measure}: the lower one applies", "keep one", "warning")
    for other in PERIODS:
        limited, where = seen.get((scope, other, whom, measure), (None, ""))
        if limited is None or other == per:
            continue
        longer, shorter = (per, other) if _LENGTHS[per] > _LENGTHS[other] else (other, per)
        of_longer, of_shorter = (value, limited) if longer == per else (limited, value)
        if of_shorter > of_longer:
            message = f"{place} and {where}: {measure} per {shorter} is above that per {longer}, and so never reached"
            reader.problem(node, message, "lower the first, or raise the second", "warning")


_LENGTHS = {"day": 0, "month": 1, "total": 2}
_PER_JOB = {
    "max_cost_usd": ("max_cost_per_job_microusd", "max_cost_per_job_usd"),
    "max_llm_calls": ("max_llm_calls_per_job", "max_llm_calls_per_job"),
}
