"""Which model answers a call, and within what: definitions and one pure decision."""

from collections import deque
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import msgspec

from overnight.brain.problems import clipped, nearest
from overnight.brain.providers import ProviderDef, is_glob

DEFAULT_MODEL = "gpt-5.4-mini"
DEFAULT_ROUTE = "default"
AS_ASKED = "as_asked"
RESERVED_ROUTES = ("auto", DEFAULT_ROUTE, AS_ASKED)
MAX_NAME = 256
_ASKS_FOR_DEFAULT = frozenset({"", "auto", "default"})


class Budgets(msgspec.Struct, frozen=True):
    """What one job may use. None is no limit; 0 lets nothing through."""

    max_cost_per_job_microusd: int | None = None
    max_llm_calls_per_job: int | None = None


class Price(msgspec.Struct, frozen=True):
    """Micro-dollars per million tokens."""

    input_microusd_per_mtok: int
    cached_input_microusd_per_mtok: int
    output_microusd_per_mtok: int


class Retries(msgspec.Struct, frozen=True):
    """`max_attempts` counts the first try. The wait doubles from `backoff_ms` up to `max_backoff_ms`.

    `jitter` "full" waits a random part of it, "none" all of it.
    """

    max_attempts: int = 3
    backoff_ms: int = 200
    max_backoff_ms: int = 5_000
    jitter: str = "full"


class Limits(msgspec.Struct, frozen=True):
    """Hard counts: bytes of a request's body, output tokens of a call that names no cap."""

    max_body_bytes: int = 33_554_432
    default_max_output_tokens: int = 8_192


class Route(msgspec.Struct, frozen=True):
    """A named rule. `targets` is the model and then its fallbacks, in the order they are tried."""

    name: str
    targets: tuple[str, ...]
    deadline_ms: int
    max_output_tokens: int

    @property
    def model(self) -> str:
        return self.targets[0]


class RouteDecision(msgspec.Struct, frozen=True):
    """Where a call goes and why. `route` is the rule's name, "default" or "as_asked"; `requested_model` as it came."""

    route: str
    targets: tuple[str, ...]
    why: str
    requested_model: str
    deadline_ms: int
    max_output_tokens: int


class UnknownModel(LookupError):
    """The brain knows neither a model nor a route of this name. `nearest` are up to three that it knows."""

    def __init__(self, model: str, known: Iterable[str]) -> None:
        self.model = model
        self.nearest = tuple(nearest(model, known, 3))
        meant = f" Nearest known: {', '.join(self.nearest)}." if self.nearest else ""
        super().__init__(
            f"model {clipped(model)} is not known to this brain.{meant} Ask for a known model, a route's name or 'auto'; "
            "or change routing.yaml: use the model in `routes`, or list it under `providers.<name>.models`"
        )


def chain(model: str, fallbacks: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """`model`, then its fallbacks, then theirs: nearest first, each once."""
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
    """routing.yaml, checked and resolved. `providers` are in the order in which they are asked.

    `fallbacks` is model → the models named after it; `prices` are those the brain sets itself.
    """

    default_model: str = DEFAULT_MODEL
    routes: Mapping[str, Route] = {}
    budgets: Budgets = Budgets()
    fallbacks: Mapping[str, tuple[str, ...]] = {}
    providers: tuple[ProviderDef, ...] = ()
    prices: Mapping[str, Price] = {}
    deadline_ms: int = 30_000
    retries: Retries = Retries()
    limits: Limits = Limits()
    # derived once, so that a decision is a few dict look-ups
    chains: Mapping[str, tuple[str, ...]] = {}
    served: Mapping[str, ProviderDef | None] = {}
    globs: tuple[tuple[str, str, ProviderDef], ...] = ()

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
        named = {self.default_model, *self.prices, *self.fallbacks, *exact}
        named.update(*self.fallbacks.values(), *(route.targets for route in self.routes.values()))
        setting = msgspec.structs.force_setattr
        setting(self, "globs", globs)
        setting(self, "chains", {model: chain(model, self.fallbacks) for model in self.fallbacks})
        setting(self, "served", {model: exact.get(model) or self._by_glob(model) for model in named})

    def _by_glob(self, model: str) -> ProviderDef | None:
        for start, pattern, provider in self.globs:
            if model.startswith(start) and fnmatchcase(model, pattern):
                return provider
        return None

    def provider_for(self, model: str) -> ProviderDef | None:
        """Who serves `model`: a provider that lists its name, else the first with a glob that fits, else None."""
        if model in self.served:
            return self.served[model]
        # a name from outside ends up in headers and URLs: only plain ones may match a glob
        if len(model) > MAX_NAME or not (model.isascii() and model.isprintable()) or " " in model:
            return None
        return self._by_glob(model)

    def known_models(self) -> list[str]:
        """Every model this brain names, sorted; models that only a glob covers are not listed."""
        return sorted(self.served)

    def decide(self, model: str | None, task: str | None) -> RouteDecision:
        """The rule and the targets for a call that asks for `model` under the task `task` (`x-task`).

        Raises `UnknownModel` when `model` is neither a route, nor known, nor a way to ask for the default.
        """
        asked = model or ""
        if len(asked) > MAX_NAME:
            raise UnknownModel(asked[: MAX_NAME + 1], ())
        if task:
            route = self.routes.get(task)
            if route is not None:
                return self._by_rule(route, asked, f"x-task {task} names the route")
            ignored = f"x-task {clipped(task)} names no route; "
        else:
            ignored = ""
        route = self.routes.get(asked)
        if route is not None:
            return self._by_rule(route, asked, f"{ignored}the model asked for is the name of a route")
        if asked in _ASKS_FOR_DEFAULT:
            why = f"{ignored}model {asked!r} asks for the default" if asked else f"{ignored}no model was asked for"
            return self._without_rule(DEFAULT_ROUTE, self.default_model, asked, why)
        if asked in self.served or self.provider_for(asked) is not None:
            return self._without_rule(AS_ASKED, asked, asked, f"{ignored}the model asked for is known")
        raise UnknownModel(asked, [*self.served, *self.routes])

    @staticmethod
    def _by_rule(route: Route, asked: str, why: str) -> RouteDecision:
        return RouteDecision(route.name, route.targets, why, asked, route.deadline_ms, route.max_output_tokens)

    def _without_rule(self, name: str, model: str, asked: str, why: str) -> RouteDecision:
        targets = self.chains.get(model) or (model,)
        tokens = self.limits.default_max_output_tokens
        return RouteDecision(name, targets, why, asked, self.deadline_ms, tokens)
