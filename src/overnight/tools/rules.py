"""The records of rules about tools. TEMPORARY: until those of `domain` are merged."""

from typing import Any, Protocol

import msgspec


class ToolCallFacts(msgspec.Struct, frozen=True, kw_only=True):
    tool: str
    tool_class: str = "write"
    tenant_id: str
    agent_id: str | None
    workflow: str | None
    arguments: Any
    first_use: bool = False


class Allowed(msgspec.Struct, frozen=True):
    pass


class Denied(msgspec.Struct, frozen=True):
    rule_name: str
    why: str


class NeedsApproval(msgspec.Struct, frozen=True):
    rule_name: str
    why: str
    by: tuple[str, ...]
    expires_ms: int
    rule_digest: str


Verdict = Allowed | Denied | NeedsApproval


class ToolRules(Protocol):
    def decide(self, facts: ToolCallFacts) -> Verdict: ...
