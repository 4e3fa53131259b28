"""The section `cache:` of routing.yaml."""

from typing import Any

import msgspec

from overnight.brain.fields import Fields, Reader, as_node, choice, flag, integer, number, text
from overnight.brain.nodes import Node, Scalar
from overnight.brain.routes_section import YEAR_S, Model, key_name, model
from overnight.domain.globs import Names
from overnight.domain.policies import (
    CACHE_MODES,
    AgentCache,
    CachePolicy,
    SemanticCache,
)

_ttl = integer(1, YEAR_S)
_threshold = number(0, 1)
_CACHE: Fields = {
    "exact": ("exact", as_node),
    "semantic": ("semantic", as_node),
    "prompt_markers": ("prompt_markers", flag),
}
_EXACT: Fields = {"ttl_s": ("ttl_s", _ttl), "tool_turns": ("tool_turns", flag)}
_SEMANTIC: Fields = {
    "model": ("model", model),
    "threshold": ("threshold", _threshold),
    "mode": ("mode", choice(*CACHE_MODES)),
    "ttl_s": ("ttl_s", _ttl),
    "tool_turns": ("tool_turns", flag),
    "agents": ("agents", as_node),
}
_AGENT: Fields = {"mode": ("mode", choice(*CACHE_MODES)), "threshold": ("threshold", _threshold)}
_agent_name = text(r"[ -~]{1,256}", "an agent name, or a glob such as support-*")


def read_cache(reader: Reader, node: Node | None) -> tuple[CachePolicy, Model | None]:
    """The policy, and the embedding model with its place in the file."""
    found = reader.section(node, "cache", _CACHE)
    exact: dict[str, Any] = {}
    if "exact" in found and not _left_out(found["exact"]):
        exact = reader.section(found["exact"], "cache.exact", _EXACT, ("ttl_s",))
    semantic, embedder = None, None
    if "semantic" in found and not _left_out(found["semantic"]):
        semantic, embedder = _semantic(reader, found["semantic"])
    tool_turns, markers = exact.get("tool_turns", False), found.get("prompt_markers", False)
    return CachePolicy(exact.get("ttl_s", 0), semantic, markers, tool_turns), embedder


def _left_out(node: Node) -> bool:
    return isinstance(node, Scalar) and node.kind == "null"


def _semantic(reader: Reader, node: Node) -> tuple[SemanticCache | None, Model | None]:
    found = reader.section(node, "cache.semantic", _SEMANTIC, ("model",))
    agents = found.pop("agents", None)
    embedder: Model | None = found.get("model")
    if embedder is None:
        return None, None
    found["model"] = embedder.name
    usual = SemanticCache(**found)
    own: list[tuple[Names, AgentCache]] = []
    for name, (at, value) in reader.entries(agents, "cache.semantic.agents").items():
        if key_name(reader, at, _agent_name, "an agent in cache.semantic.agents") is not None:
            values = reader.section(value, f"cache.semantic.agents.{name}", _AGENT)
            mode, threshold = values.get("mode", usual.mode), values.get("threshold", usual.threshold)
            own.append((Names((name,)), AgentCache(mode, threshold)))
    return msgspec.structs.replace(usual, agents=tuple(own)), embedder
