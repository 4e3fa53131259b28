"""What: the rules about tools: whether an effect may begin, and what happens when it may not.
Owns: no table; it moves effects and reviews by their own transitions.
Depends on: budgets, effects, reviews, ledger, store, domain.
Never: calls a tool, and never knows who asks: job code, an attached program, or a caller over HTTP.
"""

from .effect_admission import Admission, EffectAdmission, FindRules, Refused, boundary_of, no_rules
from .rules import Allowed, Denied, NeedsApproval, ToolCallFacts, ToolRules, Verdict

__all__ = [
    "Admission",
    "Allowed",
    "Denied",
    "EffectAdmission",
    "FindRules",
    "NeedsApproval",
    "Refused",
    "ToolCallFacts",
    "ToolRules",
    "Verdict",
    "boundary_of",
    "no_rules",
]
