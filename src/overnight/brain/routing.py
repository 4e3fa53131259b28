"""The routing decision: definitions, and one pure function from the facts of a call to its targets."""

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import accumulate

import msgspec

from overnight.brain.claims import confirmed
from overnight.brain.complexity import Complexity, score
from overnight.brain.problems import clipped, nearest
from overnight.brain.rules import PreparedRoute, Rejected, Route, RouteVariant
from overnight.domain import CallFacts, TimeLimits
from overnight.domain.globs import is_glob
from overnight.domain.policies import (
    Alarms,
    Breakers,
    Budgets,
    CachePolicy,
    Guards,
    Limits,
    Price,
    ProviderDef,
    RateLimit,
    Retries,
    RouteDecision,
)

DEFAULT_MODEL = "gpt-5.4-mini"
DEFAULT_ROUTE = "default"
AS_ASKED = "as_asked"
MAX_NAME = 256
EMBEDDINGS = "embeddings"
_ASKS_FOR_DEFAULT = frozenset({"", "auto", "default"})
_chance = random.Random().random  # noqa: S311 - spreads calls, hides nothing


class UnknownModel(LookupError):
    """The name is neither a known model nor a route. `nearest` are up to three similar known names."""

    def __init__(self, model: str, known: Iterable[str]) -> None:
        self.model = model
        self.nearest = tuple(nearest(model, known, 3))
        meant = f" Similar: {', '.join(self.nearest)}." if self.nearest else ""
        super().__init__(
            f"unknown model {clipped(model)}.{meant} Request a known model, a route name or 'auto'; "
            "or add the model to routing.yaml, in `routes` or under `providers.<name>.models`"
        )


def fallback_chain(model: str, fallbacks: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """`model` and its fallbacks, recursively: breadth first, each once."""
    targets = [model]
    waiting = deque(fallbacks.get(model, ()))
    seen = {model}
    while waiting:
        following = waiting.popleft()
        if following not in seen:
            seen.add(following)
            targets.append(following)
            waiting.extend(fallbacks.get(following, ()))
    return tuple(targets)


class Routing(msgspec.Struct, frozen=True, kw_only=True):
    """A valid, resolved routing.yaml. `providers` are in order of precedence.

    - `fallbacks`: model → its fallback models.
    - `tiers`: tier → its models, lowest first.
    - `prices`: prices set by the file; `hosted_tools`: fees of provider-executed tools in micro-dollars per use.
    - `header_names`: request headers that rules refer to.
    """

    default_model: str = DEFAULT_MODEL
    routes: Mapping[str, Route] = {}
    tiers: Mapping[str, tuple[str, ...]] = {}
    complexity: Complexity = Complexity()
    budgets: Budgets = Budgets()
    rate_limits: tuple[RateLimit, ...] = ()
    fallbacks: Mapping[str, tuple[str, ...]] = {}
    providers: tuple[ProviderDef, ...] = ()
    prices: Mapping[str, Price] = {}
    hosted_tools: Mapping[str, int] = {}
    deadline_ms: int = 600_000
    embeddings_ms: int = 10_000
    time_limits: TimeLimits = TimeLimits()
    retries: Retries = Retries()
    breakers: Breakers = Breakers()
    limits: Limits = Limits()
    guards: Guards = Guards()
    alarms: Alarms = Alarms()
    cache: CachePolicy = CachePolicy()
    # Derived once, so that a decision takes a few dict look-ups.
    chains: Mapping[str, tuple[str, ...]] = {}
    served: Mapping[str, ProviderDef | None] = {}
    globs: tuple[tuple[str, str, ProviderDef], ...] = ()
    plans: Mapping[str, PreparedRoute] = {}
    rules: tuple[PreparedRoute, ...] = ()
    header_names: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        globs = tuple(
            (pattern[: min(map(pattern.index, filter(pattern.__contains__, "*?[")))], pattern, provider)
            for provider in self.providers
            for pattern in provider.models
            if is_glob(pattern)
        )
        exact: dict[str, ProviderDef] = {}
        for provider in self.providers:
            for pattern in provider.models:
                if not is_glob(pattern):
                    exact.setdefault(pattern, provider)
        named = {self.default_model, *self.fallbacks, *exact, *(name for name in self.prices if not is_glob(name))}
        named.update(*self.fallbacks.values(), *self.tiers.values())
        named.update(*(variant.targets for route in self.routes.values() for variant in route.variants))
        setting = msgspec.structs.force_setattr
        setting(self, "globs", globs)
        setting(self, "chains", {model: fallback_chain(model, self.fallbacks) for model in self.fallbacks})
        setting(self, "served", {model: exact.get(model) or self._by_glob(model) for model in named})
        setting(self, "plans", {name: self._plan(route) for name, route in self.routes.items()})
        rules = tuple(plan for plan in self.plans.values() if plan.route.when is not None)
        setting(self, "rules", rules)
        setting(
            self,
            "header_names",
            frozenset(name for plan in rules if plan.route.when for name in plan.route.when.headers),
        )

    def _plan(self, route: Route) -> PreparedRoute:
        closed = {
            model: why
            for variant in route.variants
            for model in variant.targets
            if (why := self._residency_violation(model, route))
        }
        variants: list[RouteVariant] = []
        for variant in route.variants:
            targets = tuple(model for model in variant.targets if model not in closed)
            if targets and variant.weight:
                variants.append(RouteVariant(variant.name, targets, variant.weight))
        total = sum(variant.weight for variant in variants)
        shares = tuple(end / total for end in accumulate(variant.weight for variant in variants))
        return PreparedRoute(route, tuple(variants), shares, tuple(closed.items()))

    def _residency_violation(self, model: str, route: Route) -> str | None:
        """Why this target is outside of the route's residency; None if it is within."""
        provider = self.served[model]
        if not route.residency or (provider is not None and not provider.residency.isdisjoint(route.residency)):
            return None
        wanted = " or ".join(route.residency)
        if provider is None:
            return f"no provider serves it, so its residency is not known to be {wanted}"
        has = ", ".join(sorted(provider.residency)) or "none"
        return f"provider {provider.name} has residency {has}, not {wanted}"

    def _by_glob(self, model: str) -> ProviderDef | None:
        for start, pattern, provider in self.globs:
            if model.startswith(start) and fnmatchcase(model, pattern):
                return provider
        return None

    def provider_for(self, model: str) -> ProviderDef | None:
        """The provider of `model`: one that lists the name, else the first with a matching glob, else None."""
        if model in self.served:
            return self.served[model]
        # External names end up in headers and URLs, so only plain ones may match a glob.
        if len(model) > MAX_NAME or not (model.isascii() and model.isprintable()) or " " in model:
            return None
        return self._by_glob(model)

    def known_models(self) -> list[str]:
        """Every model named by this brain, sorted. Models that only a glob matches are absent."""
        return sorted(self.served)

    def decide(self, facts: CallFacts, /, *, chance: Callable[[], float] = _chance) -> RouteDecision:
        """Select the rule and the targets of a call. Without a target within the residency, `rejected` lists all of
        them.

        Pure except for `chance` (0 to 1), which selects a weighted variant for a call without an id to hash.

        A rule for an agent or workflow that the caller claims, but its key is not bound to, gives the call nothing that it
        could not have without the claim: see `confirmed`.

        Raises:
            UnknownModel: the requested model is neither a route, nor known, nor a name of the default.
            Forbidden: the route belongs to another agent or workflow than the key's.
        """
        decision = self._decide(facts, chance)
        plan = self.plans.get(decision.route)
        when = plan.route.when if plan is not None else None
        unconfirmed = when.unconfirmed(facts) if when is not None else None
        if unconfirmed is None:
            return decision
        return confirmed(decision, facts, unconfirmed, lambda own: self._decide(own, chance), self.plans)

    def _decide(self, facts: CallFacts, chance: Callable[[], float]) -> RouteDecision:
        asked = facts.model or ""
        if len(asked) > MAX_NAME:
            raise UnknownModel(asked[: MAX_NAME + 1], ())
        prefix = ""
        if facts.task:
            plan = self.plans.get(facts.task)
            if plan is None:
                prefix = f"x-task {clipped(facts.task)} matches no route; "
            elif facts.format != EMBEDDINGS or self._serves_embeddings(plan.route, asked):
                return self._by_name(plan, facts, f"x-task {facts.task} matches the route", chance)
            else:
                prefix = f"x-task {facts.task} matches a route that does not serve embeddings; "
        plan = self.plans.get(asked)
        if plan is not None:
            return self._by_name(plan, facts, f"{prefix}the requested model is a route name", chance)
        rejected: list[tuple[str, str]] = []
        for plan in self.rules:
            when = plan.route.when
            unmet_condition = when.unmet_condition(facts) if when is not None else None
            if unmet_condition is None:
                return self._by_plan(plan, facts, f"{prefix}matched {when}", tuple(rejected), chance)
            rejected.append((plan.route.name, unmet_condition))
        if asked in _ASKS_FOR_DEFAULT:
            why = f"{prefix}model {asked!r} selects the default" if asked else f"{prefix}no model requested"
            return self._without_rule(DEFAULT_ROUTE, self.default_model, facts, why, tuple(rejected))
        if asked in self.served or self.provider_for(asked) is not None:
            return self._without_rule(AS_ASKED, asked, facts, f"{prefix}the requested model is known", tuple(rejected))
        raise UnknownModel(asked, [*self.served, *self.routes])

    def _serves_embeddings(self, route: Route, asked: str) -> bool:
        """Whether the route of the task may serve embeddings: if it declares so, or if no known model is requested."""
        if route.when is not None and route.when.format is not None:
            return route.when.format.matches(EMBEDDINGS)
        return asked in _ASKS_FOR_DEFAULT or self.provider_for(asked) is None

    def _by_name(self, plan: PreparedRoute, facts: CallFacts, why: str, chance: Callable[[], float]) -> RouteDecision:
        if plan.route.when is not None:
            plan.route.when.check_key(facts, plan.route.name)
        return self._by_plan(plan, facts, why, (), chance)

    def _by_plan(
        self, plan: PreparedRoute, facts: CallFacts, why: str, rejected: Rejected, chance: Callable[[], float]
    ) -> RouteDecision:
        route, variants = plan.route, plan.variants
        variant = variants[0] if variants else None
        complexity = None
        if variant is None:
            why = f"{why}; no target available"
        elif route.kind == "weights":
            variant, how = _select_by_weight(plan, facts, chance)
            why = f"{why}; {how}"
        elif route.kind == "tier" and len(variants) > 1:
            complexity = score(facts.text())
            if complexity > self.complexity.threshold:
                variant = variants[1]
                why = f"{why}; complexity {complexity:g} exceeds {self.complexity.threshold:g}: tier {variant.name}"
        return RouteDecision(
            route=route.name,
            targets=variant.targets if variant is not None else (),
            why=why,
            requested_model=facts.model or "",
            deadline_ms=route.embeddings_ms if facts.format == EMBEDDINGS else route.deadline_ms,
            max_output_tokens=route.max_output_tokens,
            rejected=rejected + plan.rejected if plan.rejected else rejected,
            degraded=route.degraded,
            when_all_open=route.when_all_open,
            cache=route.cache,
            tier=variant.name if variant is not None and route.kind == "tier" else None,
            complexity=complexity,
            time_limits=self.time_limits,
            output_cap=route.output_cap,
        )

    def _without_rule(self, name: str, model: str, facts: CallFacts, why: str, rejected: Rejected) -> RouteDecision:
        return RouteDecision(
            route=name,
            targets=self.chains.get(model) or (model,),
            why=why,
            requested_model=facts.model or "",
            deadline_ms=self.embeddings_ms if facts.format == EMBEDDINGS else self.deadline_ms,
            max_output_tokens=self.limits.default_max_output_tokens,
            rejected=rejected,
            degraded=None,
            when_all_open=self.breakers.when_all_open,
            cache=self.cache,
            time_limits=self.time_limits,
        )


def _select_by_weight(plan: PreparedRoute, facts: CallFacts, chance: Callable[[], float]) -> tuple[RouteVariant, str]:
    """Select a weighted variant, the same for the same session or job. Returns the variant and how it was selected."""
    sticky, kept_by, name = plan.route.sticky, "session", facts.session
    if sticky == "job" or (sticky == "session" and name is None):
        kept_by, name = "job", facts.job
    if sticky == "none" or name is None:
        share, how = chance(), "selected randomly by weight"
    else:
        # The hash includes the route, so that two routes divide sessions independently.
        digest = hashlib.blake2b(f"{plan.route.name}\0{name}".encode(), digest_size=6).digest()
        share, how = int.from_bytes(digest) / (1 << 48), f"selected by weight, sticky by {kept_by}"
    # The last share ends at 1.0 up to rounding, and a chance of exactly 1.0 is possible.
    variant = next(
        (variant for variant, end in zip(plan.variants, plan.shares, strict=True) if share < end), plan.variants[-1]
    )
    return variant, f"{variant.name} {how}"
