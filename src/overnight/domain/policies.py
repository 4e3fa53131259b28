"""The records of routing.yaml that other packages read: limits, retries, circuit breakers, caches, providers, decisions."""

from collections.abc import Mapping

import msgspec

from .globs import Names
from .time_limits import TimeLimits

BUDGET_SCOPES = ("job", "step", "agent", "session", "tenant", "workflow", "key")
RATE_SCOPES = ("key", "agent", "tenant", "target")
PERIODS = ("total", "day", "month")
WHEN_ALL_OPEN = ("wait", "fail", "last_resort")
FAILURE_CLASSES = (
    "rate_limited", "quota", "overloaded", "server_error", "timeout", "connection", "lost", "cut", "malformed",
    "invalid_request", "auth", "not_found", "content_filter", "context_length",
)  # fmt: skip
"""What the gateway calls the ways in which a try fails."""


class BudgetLimit(msgspec.Struct, frozen=True, kw_only=True):
    """What one scope (one agent, one tenant, …) may use per period; None is no limit, 0 lets nothing through.

    A day or month is one of the tenant's time zone. With `only`, the limit is one for each scope that fits it.
    `place` names the entry in messages: `budgets.limits[0]`.
    """

    scope: str
    per: str = "total"
    only: Names | None = None
    max_cost_microusd: int | None = None
    max_tokens: int | None = None
    max_llm_calls: int | None = None
    max_tool_calls: int | None = None
    max_wall_clock_s: int | None = None
    place: str = "budgets.limits"

    def applies_to(self, name: str | None) -> bool:
        """Does it hold for the scope of this id? A call without one (no agent, no key) is under no limit of that scope."""
        return name is not None and (self.only is None or self.only.matches(name))


class Budgets(msgspec.Struct, frozen=True):
    """What one job may use, and the further limits. None is no limit; 0 lets nothing through.

    `time_zones` is tenant → IANA zone where it is not `time_zone`.
    """

    max_cost_per_job_microusd: int | None = None
    max_llm_calls_per_job: int | None = None
    time_zone: str = "UTC"
    time_zones: Mapping[str, str] = {}
    limits: tuple[BudgetLimit, ...] = ()

    def time_zone_of(self, tenant_id: str) -> str:
        return self.time_zones.get(tenant_id, self.time_zone)


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A speed for each key, agent, tenant or target (a model's name); None is no limit. `concurrency` counts calls in flight."""

    scope: str
    only: Names | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    place: str = "rate_limits"

    def applies_to(self, name: str | None) -> bool:
        """Does it hold for the scope of this id?"""
        return name is not None and (self.only is None or self.only.matches(name))


class Guards(msgspec.Struct, frozen=True):
    """Stops for loops: the same call so often in one job, turns without progress. 0 is no such stop.

    Without a word there is none: programs that poll repeat themselves honestly, and only their owner knows it of them.
    """

    same_call: int = 0
    no_progress_turns: int = 0


class Alarms(msgspec.Struct, frozen=True):
    """A job that costs `cost_factor` times what its like usually do, once `least_jobs` of them are known. 0 is off."""

    cost_factor: float = 3.0
    least_jobs: int = 10


class Limits(msgspec.Struct, frozen=True):
    """Hard counts: bytes of a request's body, output tokens of a call that names no cap, hours without a call after which an
    external job is ended as failed."""

    max_body_bytes: int = 33_554_432
    default_max_output_tokens: int = 8_192
    external_abandoned_hours: int = 24


class ClassRetries(msgspec.Struct, frozen=True):
    """The tries for one class of failure: complete, whatever the file leaves out."""

    max_attempts: int
    backoff_ms: int
    max_backoff_ms: int
    jitter: str


class Retries(msgspec.Struct, frozen=True):
    """`max_attempts` counts the first try. The wait doubles from `backoff_ms` up to `max_backoff_ms`.

    `jitter` "full" waits a random part of it, "none" all of it. `by_class` is failure class → its own tries.
    """

    max_attempts: int = 3
    backoff_ms: int = 200
    max_backoff_ms: int = 5_000
    jitter: str = "full"
    by_class: Mapping[str, ClassRetries] = {}

    def of(self, error_class: str) -> "Retries | ClassRetries":
        """The tries for this class of failure."""
        return self.by_class.get(error_class, self)


class Breakers(msgspec.Struct, frozen=True):
    """A target's circuit opens after `failures` within `window_ms`, and is tried again after `cool_down_ms`, which doubles
    up to `max_cool_down_ms`. 0 failures switches the breakers off. `when_all_open`: wait, fail or last_resort.
    """

    failures: int = 5
    window_ms: int = 30_000
    cool_down_ms: int = 10_000
    max_cool_down_ms: int = 300_000
    when_all_open: str = "last_resort"


CACHE_MODES = ("off", "shadow", "on")


class AgentCache(msgspec.Struct, frozen=True):
    """How the semantic cache treats one agent."""

    mode: str
    threshold: float


class SemanticCache(msgspec.Struct, frozen=True, kw_only=True):
    """Answers to like questions. `model` makes the embeddings; a likeness of `threshold` (0 to 1) or more is a hit.

    `mode`: off, shadow (look and record, answer nothing), on. `tool_turns`: also calls in which tools take part.
    `agents` are names or globs, in the order in which they are tried.
    """

    model: str
    threshold: float = 0.95
    mode: str = "shadow"
    ttl_s: int = 86_400
    tool_turns: bool = False
    agents: tuple[tuple[Names, AgentCache], ...] = ()

    def of(self, agent_id: str | None) -> AgentCache:
        """The mode and threshold for this agent."""
        for names, own in self.agents:
            if names.matches(agent_id):
                return own
        return AgentCache(self.mode, self.threshold)


class CachePolicy(msgspec.Struct, frozen=True):
    """Off unless asked for: `exact_ttl_s` 0 and no `semantic` answer nothing from a cache.

    `exact_tool_turns`: may answers that ask for tools be given again to the very same question?
    `prompt_markers`: may markers for the provider's own prompt cache be added to what is sent?
    """

    exact_ttl_s: int = 0
    semantic: SemanticCache | None = None
    prompt_markers: bool = False
    exact_tool_turns: bool = False

    def override(self, exact_ttl_s: int | None, mode: str | None) -> "CachePolicy":
        """This policy with a route's own words in it; its mode counts for all agents."""
        semantic = self.semantic
        if semantic is not None and mode is not None:
            agents = tuple((names, AgentCache(mode, own.threshold)) for names, own in semantic.agents)
            semantic = msgspec.structs.replace(semantic, mode=mode, agents=agents)
        ttl_s = self.exact_ttl_s if exact_ttl_s is None else exact_ttl_s
        return msgspec.structs.replace(self, exact_ttl_s=ttl_s, semantic=semantic)


class Degraded(msgspec.Struct, frozen=True):
    """How a chain may end instead of in an error: an older answer from the cache, then a fixed one."""

    answer: str | None = None
    cache: bool = False


class Price(msgspec.Struct, frozen=True):
    """Micro-dollars per million tokens."""

    input_microusd_per_mtok: int
    cached_input_microusd_per_mtok: int
    output_microusd_per_mtok: int


class ProviderDef(msgspec.Struct, frozen=True):
    """A provider. `base_url` has no trailing slash; without `api_key_env` it is called without a key.

    `models` are names or globs (`*`, `?`, `[0-9]`), compared with their case. `apis` are the formats it speaks (chat,
    responses, messages, embeddings); `residency` where it keeps data. A `library` may have no base_url: "".
    `proxy` is a URL without credentials, or "none" for no proxy; `proxy_env` names a variable with such a URL, which may
    have credentials; without either, the environment decides. `ca`, `client_cert` and `client_key` are paths of PEM files.
    """

    name: str
    base_url: str
    models: tuple[str, ...]
    api_key_env: str | None = None
    kind: str = "openai"
    model_prefix: str = ""
    apis: tuple[str, ...] = ("chat", "embeddings")
    residency: frozenset[str] = frozenset()
    proxy: str | None = None
    proxy_env: str | None = None
    ca: str | None = None
    client_cert: str | None = None
    client_key: str | None = None

    def upstream_name(self, model: str) -> str:
        """The name the provider itself knows `model` by."""
        return model.removeprefix(self.model_prefix)


class RouteDecision(msgspec.Struct, frozen=True):
    """Where a call goes and why. `route` is the rule's name, "default" or "as_asked"; `requested_model` as it came.

    `deadline_ms` bounds a whole answer, or a stream until its first piece, without time in queues; `time_limits` are the others.
    `rejected` are (rule or target, why not) in the order of the file; `tier` and `complexity` (0 to 1) those of a tiered
    route; `cache` the policy with the route's own words in it. `max_output_tokens` is the cap of a call that names none,
    `output_cap` that of the route, for all calls.
    """

    route: str
    targets: tuple[str, ...]
    why: str
    requested_model: str
    deadline_ms: int
    max_output_tokens: int
    rejected: tuple[tuple[str, str], ...] = ()
    degraded: Degraded | None = None
    when_all_open: str = "last_resort"
    cache: CachePolicy = CachePolicy()
    tier: str | None = None
    complexity: float | None = None
    time_limits: TimeLimits = TimeLimits()
    output_cap: int | None = None
