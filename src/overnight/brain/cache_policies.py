"""Which answers may be given again."""

import msgspec

from .globs import Names

MODES = ("off", "shadow", "on")


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
            if names.fit(agent_id):
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
