"""What: whether a tool call may be made, and whether its arguments, key and result fit its contract.
Owns: no table; the evaluation of contracts and rules.
Depends on: domain.
Never: reads a file or the store, calls a tool, or repeats a value of an argument in an error.
"""

from overnight.domain.tools import (
    Allowed,
    Denied,
    NeedsApproval,
    ToolCallFacts,
    ToolContract,
    ToolDefinitions,
    ToolRule,
    Verdict,
)

from .policy import Explanation, RuleOutcome, ToolPolicy, policy_of
from .templates import TemplateMismatch, render_key
from .validation import Drift, Violation, check_arguments, check_result, trim_result

__all__ = [
    "Allowed",
    "Denied",
    "Drift",
    "Explanation",
    "NeedsApproval",
    "RuleOutcome",
    "TemplateMismatch",
    "ToolCallFacts",
    "ToolContract",
    "ToolDefinitions",
    "ToolPolicy",
    "ToolRule",
    "Verdict",
    "Violation",
    "check_arguments",
    "check_result",
    "policy_of",
    "render_key",
    "trim_result",
]
