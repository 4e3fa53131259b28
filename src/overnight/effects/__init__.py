"""What: tool calls that change something outside, each done once: claim, commit, reconcile.
Owns: the table effect.
Depends on: ledger, store, domain.
Never: calls a tool; it only decides whether the caller may.
"""

from .claims import (
    ClaimResult,
    EffectClaim,
    EffectPosition,
    begins,
    claim,
    commit,
    fail,
    mark_unknown,
    reject,
    release,
)
from .rows import EFFECT, EffectRow, effect_key

__all__ = [
    "EFFECT",
    "ClaimResult",
    "EffectClaim",
    "EffectPosition",
    "EffectRow",
    "begins",
    "claim",
    "commit",
    "effect_key",
    "fail",
    "mark_unknown",
    "reject",
    "release",
]
