"""What: read models of what jobs did to the world: the receipt, and the audit of effects.
Owns: no table; the JSON of a receipt.
Depends on: jobs (status checks), effects, wire_formats, brain, ledger, store, domain.
Never: writes, or decides a state: a receipt says what is recorded and how that is known.
"""

from .effect_audit import AuditedEffect, AuditFilter, audit_effects
from .loader import load_day, load_effects_of_key, load_entries, load_receipt
from .public import public_day, public_effect, public_receipt, sum_counts
from .records import (
    OPEN,
    CheckedClaim,
    EffectEntry,
    Receipt,
    ReviewEntry,
    UnexecutedCall,
    Verification,
    WaitsFor,
)

__all__ = [
    "OPEN",
    "AuditFilter",
    "AuditedEffect",
    "CheckedClaim",
    "EffectEntry",
    "Receipt",
    "ReviewEntry",
    "UnexecutedCall",
    "Verification",
    "WaitsFor",
    "audit_effects",
    "load_day",
    "load_effects_of_key",
    "load_entries",
    "load_receipt",
    "public_day",
    "public_effect",
    "public_receipt",
    "sum_counts",
]
