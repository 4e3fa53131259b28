"""Routes as written: what a rule asks of a call, and where it may send it."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from overnight.domain import CallFacts, Forbidden
from overnight.domain.globs import Names
from overnight.domain.policies import CachePolicy, Degraded

FORMATS = ("chat", "responses", "messages", "embeddings")
STICKY = ("session", "job", "none")


class When(msgspec.Struct, frozen=True):
    """What must hold of a call, all of it. `headers` is name in lower case → the values that fit.

    A rule that names no format is for all but embeddings: what answers a chat embeds nothing.
    """

    task: Names | None = None
    agent: Names | None = None
    workflow: Names | None = None
    tag: Names | None = None
    model: Names | None = None
    headers: Mapping[str, Names] = {}
    format: Names | None = None

    def unmet_condition(self, facts: CallFacts) -> str | None:
        """The first condition that does not hold, in words; None when all do."""
        if not (self.format.matches(facts.format) if self.format else facts.format != "embeddings"):
            return f"needs format {self.format or 'chat, responses or messages'}"
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

    def __str__(self) -> str:
        named = {field: getattr(self, field) for field in ("format", "task", "agent", "workflow", "model", "tag")}
        said = [f"{field} {names}" for field, names in named.items() if names is not None]
        return ", ".join([*said, *(f"header {name}: {values}" for name, values in self.headers.items())])


class RouteVariant(msgspec.Struct, frozen=True):
    """One of the ways a route can go: a model and its fallbacks in the order they are tried.

    `name` is the model's or, on a tiered route, the tier's; `weight` counts against those of the other ways.
    """

    name: str
    targets: tuple[str, ...]
    weight: int = 1


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A named rule.

    One way; or with `kind` "weights" several of which each session (`sticky`) keeps one; or with "tier" its tier and the
    one above. `residency`: only targets whose provider has one of these. A deadline of its own holds for embeddings too.
    `max_output_tokens` holds for calls that name no cap, `output_cap` (the route's own) for all.
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
        """The first way's model and its fallbacks."""
        return self.variants[0].targets

    @property
    def model(self) -> str:
        return self.targets[0]
