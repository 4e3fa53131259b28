"""What: effects over HTTP: the transactions of claims and reports, the job of an effect, and waiting for its state.
Owns: no table; it moves effects by the transitions of `effects`.
Depends on: the jobs and budgets of model calls (`admission`, `identity`), effects, reviews, ledger, store, domain.
Never: calls a tool; it decides whether the caller may, and keeps what the caller reports.
"""

from .claim import EffectRequest
from .outcomes import ClaimAnswer, EffectRefused, ReportAnswer
from .report import Report
from .service import HttpEffects

__all__ = ["ClaimAnswer", "EffectRefused", "EffectRequest", "HttpEffects", "Report", "ReportAnswer"]
