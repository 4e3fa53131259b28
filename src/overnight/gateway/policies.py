"""What the routing says about limits, tries, circuits and caches, as the gateway reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from overnight.circuit_breakers.state import Breaker


class BudgetLimit(Protocol):
    """What each `scope` (job, step, agent, session, tenant, workflow, key) may use per total, day or month; None is no limit."""

    @property
    def scope(self) -> str: ...
    @property
    def per(self) -> str: ...
    @property
    def max_cost_microusd(self) -> int | None: ...
    @property
    def max_tokens(self) -> int | None: ...
    @property
    def max_llm_calls(self) -> int | None: ...
    @property
    def max_tool_calls(self) -> int | None: ...
    @property
    def max_wall_clock_s(self) -> int | None: ...
    @property
    def place(self) -> str: ...

    def covers(self, name: str | None) -> bool: ...


class RateLimit(Protocol):
    """A speed for each `scope` (key, agent, tenant, target: a model's name); None is no limit."""

    @property
    def scope(self) -> str: ...
    @property
    def requests_per_minute(self) -> int | None: ...
    @property
    def tokens_per_minute(self) -> int | None: ...
    @property
    def concurrency(self) -> int | None: ...
    @property
    def place(self) -> str: ...

    def covers(self, name: str | None) -> bool: ...


class Tries(Protocol):
    """`max_attempts` of one target counts the first try; waits double from `backoff_ms` to `max_backoff_ms`."""

    @property
    def max_attempts(self) -> int: ...
    @property
    def backoff_ms(self) -> int: ...
    @property
    def max_backoff_ms(self) -> int: ...
    @property
    def jitter(self) -> str: ...


class Breakers(Breaker, Protocol):
    """0 `failures` switches them off; `when_all_open` is wait, fail or last_resort."""

    @property
    def when_all_open(self) -> str: ...


class Guards(Protocol):
    """0 switches one off."""

    @property
    def same_call(self) -> int: ...
    @property
    def no_progress_turns(self) -> int: ...


class Alarms(Protocol):
    """0 as a factor is off."""

    @property
    def cost_factor(self) -> float: ...
    @property
    def least_jobs(self) -> int: ...


class AgentCache(Protocol):
    """`mode` is off, shadow or on."""

    @property
    def mode(self) -> str: ...
    @property
    def threshold(self) -> float: ...


class SemanticCache(Protocol):
    """`of` gives the mode and threshold for an agent."""

    @property
    def model(self) -> str: ...
    @property
    def ttl_s(self) -> int: ...
    @property
    def tool_turns(self) -> bool: ...

    def of(self, agent_id: str | None) -> AgentCache: ...


class CachePolicy(Protocol):
    """`exact_ttl_s` 0 and no `semantic` are off. `exact_tool_turns`: also answers that ask for tools."""

    @property
    def exact_ttl_s(self) -> int: ...
    @property
    def semantic(self) -> SemanticCache | None: ...
    @property
    def prompt_markers(self) -> bool: ...
    @property
    def exact_tool_turns(self) -> bool: ...


class Degraded(Protocol):
    """How a chain may end: an older answer from the cache, then a fixed one."""

    @property
    def answer(self) -> str | None: ...
    @property
    def cache(self) -> bool: ...


class Policies(Protocol):
    """The sections of routing.yaml beside routes, providers and prices."""

    @property
    def rate_limits(self) -> Sequence[RateLimit]: ...
    @property
    def breakers(self) -> Breakers: ...
    @property
    def guards(self) -> Guards: ...
    @property
    def alarms(self) -> Alarms: ...
    @property
    def cache(self) -> CachePolicy: ...
    @property
    def hosted_tools(self) -> Mapping[str, int]: ...
