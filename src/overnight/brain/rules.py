"""Rules: conditions on a call, and the targets of a matching call."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from overnight.domain import CallFacts, Forbidden
from overnight.domain.formats import ROUTED_FORMATS
from overnight.domain.globs import Names
from overnight.domain.policies import CachePolicy, Degraded

_OTHERS = ", ".join(each for each in ROUTED_FORMATS if each != "embeddings")
STICKY = ("session", "job", "none")
Rejected = tuple[tuple[str, str], ...]


class When(msgspec.Struct, frozen=True):
    """Conditions that must all be met. `headers` maps lower-case names to matching values.

    A rule without a format excludes embeddings, because chat models cannot serve them.
    """

    task: Names | None = None
    agent: Names | None = None
    workflow: Names | None = None
    tag: Names | None = None
    model: Names | None = None
    headers: Mapping[str, Names] = {}
    format: Names | None = None

    def unmet_condition(self, facts: CallFacts) -> str | None:
        """The first condition that is not met, as text; None if all are."""
        if not (self.format.matches(facts.format) if self.format else facts.format != "embeddings"):
            return f"needs format {self.format or _OTHERS}"
        if self.task is not None and not self.task.matches(facts.task):
            return f"needs task {self.task}"
        if self.agent is not None and not self.agent.matches(facts.agent):
            return f"needs agent {self.agent}"
        if self.workflow is not None and not self.workflow.matches(facts.workflow):
            return f"needs workflow {self.workflow}"
        if self.model is not None and not self.model.matches(facts.model or ""):
            return f"needs model {self.model}"
        if self.tag is not None and not any(map(self.tag.matches, facts.tags)):
            return f"needs tag {self.tag}"
        for name, values in self.headers.items():
            if not values.matches(facts.headers.get(name)):
                return f"needs header {name}: {values}"
        return None

    def check_key(self, facts: CallFacts, route: str) -> None:
        """Raises Forbidden if the caller's key is bound to another agent or workflow than the route is for. Holds also where the
        call names the route: a header selects no route that the identity of its key does not."""
        for kind, names, bound in (
            ("agent", self.agent, facts.key_agent),
            ("workflow", self.workflow, facts.key_workflow),
        ):
            if names is not None and bound is not None and not names.matches(bound):
                raise Forbidden(f"route {route} is for {kind} {names}; the key is bound to {kind} {bound}")

    def unconfirmed(self, facts: CallFacts) -> str | None:
        """The first condition on an agent or workflow that the caller's key does not meet, as text; None without a key."""
        if not facts.has_key:
            return None
        for kind, names, bound in (
            ("agent", self.agent, facts.key_agent),
            ("workflow", self.workflow, facts.key_workflow),
            ("agent", self.headers.get("x-agent-name"), facts.key_agent),
            ("workflow", self.headers.get("x-workflow"), facts.key_workflow),
        ):
            if names is not None and not names.matches(bound):
                return f"{kind} {names}"
        return None

    def __str__(self) -> str:
        named = {field: getattr(self, field) for field in ("format", "task", "agent", "workflow", "model", "tag")}
        conditions = [f"{field} {names}" for field, names in named.items() if names is not None]
        return ", ".join([*conditions, *(f"header {name}: {values}" for name, values in self.headers.items())])


class RouteVariant(msgspec.Struct, frozen=True):
    """One alternative of a route: a model and its fallbacks, in the order of attempts.

    `name` is that of the model or, on a tiered route, of the tier. `weight` is relative to the other variants.
    """

    name: str
    targets: tuple[str, ...]
    weight: int = 1


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A named rule.

    - `variants`: one; with `kind` "weights" several, of which each session (`sticky`) keeps one; with "tier" its tier
    and the next.
    - `residency`: allows only targets whose provider has one of these. The route's deadline also applies to
    embeddings.
    - `max_output_tokens`: for calls without an output limit; `output_cap`: for all calls of the route.
    """

    name: str
    variants: tuple[RouteVariant, ...]
    deadline_ms: int
    embeddings_ms: int
    max_output_tokens: int
    kind: Literal["model", "weights", "tier"] = "model"
    when: When | None = None
    sticky: str = "session"
    residency: tuple[str, ...] = ()
    degraded: Degraded | None = None
    when_all_open: str = "last_resort"
    cache: CachePolicy = CachePolicy()
    output_cap: int | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The models of the first variant."""
        return self.variants[0].targets

    @property
    def model(self) -> str:
        return self.targets[0]


class PreparedRoute(NamedTuple):
    """A prepared route: the variants within its residency, the end of each one's share of 0 to 1, and the excluded
    targets."""

    route: Route
    variants: tuple[RouteVariant, ...]
    shares: tuple[float, ...]
    rejected: Rejected
