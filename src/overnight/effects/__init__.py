"""What: tool calls that change something outside, each done once: claim, commit, reconcile.
Owns: the table effect.
Depends on: reviews, ledger, store, domain.
Never: calls a tool; it only decides whether the caller may.
"""

from .claims import (
    ClaimResult,
    EffectClaim,
    begins,
    claim,
    claim_digest,
    claim_of,
    extend,
    is_outdated,
    new_claim_token,
    refuse,
    repeat,
    wait,
)
from .late_reports import ReportVerdict, report_done, report_not_done, report_unknown
from .reviewed_effects import ExpireReview, end_reviews, expire_reviews, waiting_effect
from .rows import EFFECT, EffectRow, effect_key
from .transitions import (
    EFFECT_STATES,
    TRANSITIONS,
    EffectPosition,
    Source,
    answer,
    approve,
    commit,
    expire,
    fail,
    mark_expired,
    mark_unknown,
    reject,
    release,
    renew,
    supersede,
)

__all__ = [
    "EFFECT",
    "EFFECT_STATES",
    "TRANSITIONS",
    "ClaimResult",
    "EffectClaim",
    "EffectPosition",
    "EffectRow",
    "ExpireReview",
    "ReportVerdict",
    "Source",
    "answer",
    "approve",
    "begins",
    "claim",
    "claim_digest",
    "claim_of",
    "commit",
    "effect_key",
    "end_reviews",
    "expire",
    "expire_reviews",
    "extend",
    "fail",
    "is_outdated",
    "mark_expired",
    "mark_unknown",
    "new_claim_token",
    "refuse",
    "reject",
    "release",
    "renew",
    "repeat",
    "report_done",
    "report_not_done",
    "report_unknown",
    "supersede",
    "wait",
    "waiting_effect",
]
