"""What: whether a tool call may be made, and whether its arguments, key and result fit its contract.
Owns: no table; the evaluation of contracts and rules, and the admission of effects, which moves effects and reviews.
Depends on: budgets, effects, reviews, ledger, store, domain.
Never: calls a tool, knows who asks (job code, an attached program, a caller over HTTP), or repeats an argument in an error.
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

from .effect_admission import Admission, EffectAdmission, FindRules, Refused, ToolRules, boundary_of, no_rules
from .policy import Explanation, RuleOutcome, ToolPolicy, policy_of
from .templates import TemplateMismatch, render_key
from .validation import Drift, Violation, check_arguments, check_result, told, trim_result

__all__ = [
    "Admission",
    "Allowed",
    "Denied",
    "Drift",
    "EffectAdmission",
    "Explanation",
    "FindRules",
    "NeedsApproval",
    "Refused",
    "RuleOutcome",
    "TemplateMismatch",
    "ToolCallFacts",
    "ToolContract",
    "ToolDefinitions",
    "ToolPolicy",
    "ToolRule",
    "ToolRules",
    "Verdict",
    "Violation",
    "boundary_of",
    "check_arguments",
    "check_result",
    "no_rules",
    "policy_of",
    "render_key",
    "told",
    "trim_result",
]
