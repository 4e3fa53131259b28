"""TEMPORARY: the records of rules, until their users import them from `tools`."""

from overnight.tools import Allowed, Denied, NeedsApproval, ToolCallFacts, ToolRules, Verdict

__all__ = ["Allowed", "Denied", "NeedsApproval", "ToolCallFacts", "ToolRules", "Verdict"]
