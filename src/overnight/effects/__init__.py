"""What: tool calls that change the world, each done once: claim, commit, reconcile.
Owns: effect.
Depends on: ledger, store, domain.
Never: calls a tool; it only says whether the caller may.
"""

from .claims import (
    Claim,
    ClaimResult,
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
from .rows import SQL as EFFECT_SQL

__all__ = [
    "EFFECT",
    "EFFECT_SQL",
    "Claim",
    "ClaimResult",
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
