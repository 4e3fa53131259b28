"""What: the admission of effects: whether one may begin, by the rules of the brain, approvals and budgets; and whether arguments,
keys and results fit the contract of a tool.
Owns: no table; it moves effects and reviews by their own transitions.
Depends on: budgets, effects, reviews, ledger, store, domain.
Never: calls a tool, or knows who asks: job code, an attached program, or a caller over HTTP.
"""

from .effect_admission import Admission, EffectAdmission, FindRules, Refused, ToolRules, boundary_of, no_rules
from .templates import TemplateMismatch, render_key
from .validation import Drift, Violation, check_arguments, check_result, told, trim_result

__all__ = [
    "Admission",
    "Drift",
    "EffectAdmission",
    "FindRules",
    "Refused",
    "TemplateMismatch",
    "ToolRules",
    "Violation",
    "boundary_of",
    "check_arguments",
    "check_result",
    "no_rules",
    "render_key",
    "told",
    "trim_result",
]
