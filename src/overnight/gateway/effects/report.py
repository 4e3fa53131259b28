"""The report of a holder over HTTP: it was done, it failed, or its outcome is unknown. One transaction."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from overnight.domain import ErrorFacts, KeyScope
from overnight.effects import (
    EFFECT,
    EffectPlace,
    EffectRow,
    claim_by,
    quarantine,
    report_done,
    report_not_done,
    report_unknown,
)
from overnight.ledger import JOB, JobRow
from overnight.reviews import OPEN_REVIEWS
from overnight.store import Unit

from ..admission.external_job_lifecycle import close_unattributed
from .outcomes import Moved, Refusal, ReportAnswer, ReportOutcome


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a holder says about its call.

    Fields:
        kind: done, failed or unknown. provider_id, result (JSON): of done. error: of failed. why: of unknown, in words.
    """

    kind: Literal["done", "failed", "unknown"]
    provider_id: str | None = None
    result: bytes = b"null"
    error: ErrorFacts | None = None
    why: str = ""


class ReportEffect(msgspec.Struct, frozen=True, kw_only=True):
    """Take a report, by the secret of a claim. None: there is no such effect, job or claim for this caller."""

    place: EffectPlace
    effect_id: str
    claim_digest: bytes
    key_scope: KeyScope
    report: Report

    def locks(self) -> list[tuple[Any, Any]]:
        place = self.place
        return [(JOB, place.job_id), (EFFECT, place[:2]), (OPEN_REVIEWS, place.job_id)]

    def decide(self, unit: Unit) -> ReportOutcome:
        row, job = unit.get(EFFECT, self.place[:2]), unit.get(JOB, self.place.job_id)
        if row is None or row.effect_id != self.effect_id:
            return None
        if row.job_id != self.place.job_id:
            return Moved(row.job_id)
        if job is None or not self.key_scope.allows(job.agent_id, job.workflow, job.scope_name):
            return None
        claim = claim_by(row, self.claim_digest)
        if claim is None:
            return None
        verdict = self._take(unit, job, row, is_current=claim == "current")
        if verdict in ("duplicated", "stale"):
            return _lost(row, verdict)
        return ReportAnswer(msgspec.structs.replace(row), verdict == "repeated")

    def _take(self, unit: Unit, job: JobRow, row: EffectRow, *, is_current: bool) -> str:
        report = self.report
        if report.kind == "done":
            latency_ms = (unit.now - row.claimed_at) / 1000 if is_current else None
            verdict = report_done(
                unit, job, row, report.result, report.provider_id, is_current=is_current, latency_ms=latency_ms
            )
            if verdict == "recorded":
                close_unattributed(unit, job, None)
            return verdict
        if report.kind == "failed":
            error = report.error or ErrorFacts("failed")
            verdict = report_not_done(unit, job, row, error, is_current=is_current)
            if verdict == "recorded":
                close_unattributed(unit, job, error if row.state == "failed" else None)
            return verdict
        why = report.why or "the holder does not know"
        verdict = report_unknown(unit, job, row, "reported", why, is_current=is_current)
        if verdict == "recorded":
            quarantine(unit, job, row, f"its holder reports: {why}")
        return verdict


def _lost(row: EffectRow, verdict: str) -> Refusal:
    facts: dict[str, Any] = {"effect_id": row.effect_id, "review_id": row.review_id}
    if verdict == "duplicated":
        message = f"the claim was lost, and effect {row.tool} was done a second time: the report is kept, and a person decides"
        return Refusal(code="claim_lost", message=message, next_step="undo one of them at the provider", **facts)
    return Refusal(
        code="claim_lost",
        message=f"the claim was lost: effect {row.tool} is {row.state}. The report changes nothing",
        next_step=f"GET /api/v1/effects/{row.effect_id} shows its state",
        **facts,
    )
