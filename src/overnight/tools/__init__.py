"""What: the admission of effects: whether one may begin, by the rules of the brain, approvals and budgets.
Owns: no table; it moves effects and reviews by their own transitions.
Depends on: budgets, effects, reviews, ledger, store, domain.
Never: calls a tool, or knows who asks: job code, an attached program, or a caller over HTTP.
"""

from .effect_admission import Admission, EffectAdmission, FindRules, Refused, ToolRules, boundary_of, no_rules

__all__ = [
    "Admission",
    "EffectAdmission",
    "FindRules",
    "Refused",
    "ToolRules",
    "boundary_of",
    "no_rules",
]
