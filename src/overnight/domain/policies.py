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
"""The classes of failed attempts."""


class BudgetLimit(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one scope (an agent, a tenant, …) per period. None is no limit; 0 rejects every call.

    Days and months are those of the tenant's time zone. With `only`, the limit applies to each scope that matches.
    `place` names the entry in messages, such as `budgets.limits[0]`.
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
        """Whether the limit applies to the scope of this id. It never applies to a call without an id in this scope."""
        return name is not None and (self.only is None or self.only.matches(name))


class Budgets(msgspec.Struct, frozen=True):
    """The limits of one job, and further limits. None is no limit; 0 rejects every call.

    `time_zones` maps tenants to IANA zones that differ from `time_zone`.
    """

    max_cost_per_job_microusd: int | None = None
    max_llm_calls_per_job: int | None = None
    time_zone: str = "UTC"
    time_zones: Mapping[str, str] = {}
    limits: tuple[BudgetLimit, ...] = ()

    def time_zone_of(self, tenant_id: str) -> str:
        return self.time_zones.get(tenant_id, self.time_zone)


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A rate limit per key, agent, tenant or target (model name). None is no limit. `concurrency` limits calls in
    flight."""

    scope: str
    only: Names | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    place: str = "rate_limits"

    def applies_to(self, name: str | None) -> bool:
        """Whether the limit applies to the scope of this id."""
        return name is not None and (self.only is None or self.only.matches(name))


class Guards(msgspec.Struct, frozen=True):
    """Loop detection: repetitions of the same call in a job, and turns without progress. 0 disables a rule.

    Disabled by default, since polling repeats calls legitimately.
    """

    same_call: int = 0
    no_progress_turns: int = 0


class Alarms(msgspec.Struct, frozen=True):
    """Alert when a job costs `cost_factor` times the usual cost of similar jobs, once `least_jobs` of them are known.
    0 disables it."""

    cost_factor: float = 3.0
    least_jobs: int = 10


class Limits(msgspec.Struct, frozen=True):
    """Limits of a request: bytes of its body, and output tokens of a call without a cap. `external_abandoned_hours`: hours
    without a call after which an external job ends as failed."""

    max_body_bytes: int = 33_554_432
    default_max_output_tokens: int = 8_192
    external_abandoned_hours: int = 24


class ClassRetries(msgspec.Struct, frozen=True):
    """The retries for one failure class, with defaults resolved."""

    max_attempts: int
    backoff_ms: int
    max_backoff_ms: int
    jitter: str


class Retries(msgspec.Struct, frozen=True):
    """`max_attempts` includes the first attempt. The wait doubles from `backoff_ms` up to `max_backoff_ms`.

    `jitter` "full" waits a random part of it, "none" all of it. `by_class` maps failure classes to their retries.
    """

    max_attempts: int = 3
    backoff_ms: int = 200
    max_backoff_ms: int = 5_000
    jitter: str = "full"
    by_class: Mapping[str, ClassRetries] = {}

    def of(self, error_class: str) -> "Retries | ClassRetries":
        """The retries for a failure class."""
        return self.by_class.get(error_class, self)


class Breakers(msgspec.Struct, frozen=True):
    """A target's circuit opens after `failures` within `window_ms`. It admits a probe after `cool_down_ms`, which
    doubles up to `max_cool_down_ms`. 0 failures disables circuit breakers. `when_all_open`: wait, fail or
    last_resort.
    """

    failures: int = 5
    window_ms: int = 30_000
    cool_down_ms: int = 10_000
    max_cool_down_ms: int = 300_000
    when_all_open: str = "last_resort"


CACHE_MODES = ("off", "shadow", "on")


class AgentCache(msgspec.Struct, frozen=True):
    """The mode and threshold of the semantic cache for one agent."""

    mode: str
    threshold: float


class SemanticCache(msgspec.Struct, frozen=True, kw_only=True):
    """Cached answers to similar questions. `model` computes the embeddings; a similarity of `threshold` (0 to 1) or more
    is a hit.

    `mode`: off, shadow (look up and record, but do not answer), on. `tool_turns`: include calls with tools. `agents`:
    names or globs; the first match applies.
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
    """The default is no caching: `exact_ttl_s` 0 and no `semantic`.

    `exact_tool_turns`: whether answers with tool calls are reused for an identical request.
    `prompt_markers`: whether markers for the provider's prompt cache are added to requests.
    """

    exact_ttl_s: int = 0
    semantic: SemanticCache | None = None
    prompt_markers: bool = False
    exact_tool_turns: bool = False

    def override(self, exact_ttl_s: int | None, mode: str | None) -> "CachePolicy":
        """This policy with the settings of a route. The route's mode applies to all agents."""
        semantic = self.semantic
        if semantic is not None and mode is not None:
            agents = tuple((names, AgentCache(mode, own.threshold)) for names, own in semantic.agents)
            semantic = msgspec.structs.replace(semantic, mode=mode, agents=agents)
        ttl_s = self.exact_ttl_s if exact_ttl_s is None else exact_ttl_s
        return msgspec.structs.replace(self, exact_ttl_s=ttl_s, semantic=semantic)


class Degraded(msgspec.Struct, frozen=True):
    """Alternatives to an error at the end of a fallback chain: an older answer from the cache, then a fixed one."""

    answer: str | None = None
    cache: bool = False


class Price(msgspec.Struct, frozen=True):
    """Micro-dollars per million tokens. Writes to the provider's cache, for 5 minutes or 1 hour, cost as other input if None,
    and those for 1 hour as those for 5 minutes."""

    input_microusd_per_mtok: int
    cached_input_microusd_per_mtok: int
    output_microusd_per_mtok: int
    cache_write_microusd_per_mtok: int | None = None
    cache_write_1h_microusd_per_mtok: int | None = None


DIALECTS = (
    "openai", "azure", "mistral", "groq", "cerebras", "google", "together", "fireworks", "deepseek", "moonshot", "openrouter",
    "plain",
)  # fmt: skip
"""The dialects of the chat format, by the providers that speak them; `plain` has no deviations."""


class ProviderDef(msgspec.Struct, frozen=True):
    """A provider. `base_url` has no trailing slash. Without `api_key_env`, no key is sent.

    `models` are names or globs (`*`, `?`, `[0-9]`), compared case-sensitively. `apis` are the accepted formats
    (`API_FORMATS`). `residency` is the location of its data. A `library` may have no base_url: "".
    `proxy` is a URL without credentials, or "none"; `proxy_env` names a variable with such a URL, which may have credentials.
    Without either, the environment decides. `ca`, `client_cert` and `client_key` are paths of PEM files. `dialect` names the
    deviations from the chat format; without it, host and model decide.
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
    dialect: str | None = None
    ca: str | None = None
    client_cert: str | None = None
    client_key: str | None = None

    def upstream_name(self, model: str) -> str:
        """The provider's own name for `model`."""
        return model.removeprefix(self.model_prefix)


class RouteDecision(msgspec.Struct, frozen=True):
    """The targets of a call and the reasons. `route` is the rule's name, "default" or "as_asked"; `requested_model` as
    received.

    `deadline_ms` limits a complete answer, or a stream until its first chunk, without time in queues; `time_limits`
    are the others. `rejected` are (rule or target, reason) in the order of the file. `tier` and `complexity` (0 to 1)
    belong to a tiered route. `cache` is the policy with the settings of the route. `max_output_tokens` is the output
    limit of a call that sets none; `output_cap` is the limit of the route for all calls.
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
