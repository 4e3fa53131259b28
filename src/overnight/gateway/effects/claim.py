"""The claim of an effect over HTTP: job, attempt, rules, budgets, claim and event in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from overnight.budgets import Limit, Policy, locks
from overnight.domain import FINISHED, BudgetStopped, Conflict, ErrorFacts, Event, Fenced
from overnight.effects import (
    EFFECT,
    EffectClaim,
    EffectRow,
    http_effect_key,
    quarantine,
)
from overnight.ledger import JobRow, append
from overnight.reviews import REVIEW
from overnight.store import Unit
from overnight.tools import EffectAdmission, FindRules, Refused

from ..admission.decision import needs_ancestors
from ..admission.external_job_lifecycle import (
    admit_call,
    close_unattributed,
    find_or_create_job,
    job_identity,
    job_locks,
)
from ..identity import NO_IDENTITY, Subject, caller_of
from .outcomes import ClaimAnswer, ClaimOutcome, NeedsAncestors, Refusal, why_not


class EffectRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The request to execute an effect.

    Fields:
        tool: its name. client_key: the idempotency key that the caller gave.
        arguments: as JSON, as they were sent; arguments_sha256: their digest; asked: their value.
        holder: the name of the caller in its claim; the same name claims again. lease_us: how long a claim lasts.
    """

    tool: str
    client_key: str
    arguments: bytes
    arguments_sha256: str
    asked: Any
    holder: str
    lease_us: int


class ClaimEffect(msgspec.Struct, frozen=True, kw_only=True):
    """Claim an effect, or say why not.

    Fields:
        subject: the job and the caller. request: the effect. claim_digest: that of the secret of a new claim.
        policy: the budgets. rules: the rules about tools, as they are now. now: the time of the command, in microseconds.
    """

    subject: Subject
    request: EffectRequest
    claim_digest: bytes
    policy: Policy
    rules: FindRules
    now: int

    def locks(self) -> list[tuple[Any, Any]]:
        found = [*job_locks(self.subject), (EFFECT, self._key(self.subject.job_id))]
        if self.policy.counts_tools:
            caller = caller_of(self.subject, None)
            found += locks(self.subject.who.tenant_id, _counting(self.policy.limits(caller, self.now)))
        return found

    def _key(self, job_id: str) -> tuple[str, str]:
        who, request = self.subject.who, self.request
        tenant_id = who.tenant_id
        return tenant_id, http_effect_key(tenant_id, who.key_scope, request.tool, request.client_key, job_id)

    def decide(self, unit: Unit) -> ClaimOutcome:
        subject = self.subject
        job, is_new = find_or_create_job(unit, subject)
        if needs_ancestors(job, subject):
            return NeedsAncestors(job.job_id)
        key = self._key(job.job_id)
        unit.lock([(EFFECT, key)])
        row = unit.get(EFFECT, key)
        if row is not None and _is_plain_repeat(job, row, self.request, subject.who.attempt):
            return _committed(row)
        if not is_new:
            try:
                admit_call(unit, job, subject)
            except (Fenced, Conflict) as error:
                return Refusal(code="fenced", message=str(error), effect_id=row and row.effect_id)
        limits: Sequence[Limit] = ()
        if self.policy.counts_tools:
            identity = NO_IDENTITY if is_new else job_identity(unit, job, subject.who)
            limits = _counting(self.policy.limits(caller_of(subject, None, job, identity), unit.now))
            unit.lock(locks(job.tenant_id, limits))
        return self._claim(unit, job, row, key[1], limits)

    def _claim(self, unit: Unit, job: JobRow, row: EffectRow | None, key: str, limits: Sequence[Limit]) -> ClaimOutcome:
        request, who = self.request, self.subject.who
        wanted = EffectClaim(
            effect_key=key,
            tool=request.tool,
            arguments=request.arguments,
            arguments_sha256=request.arguments_sha256,
            owner=request.holder,
            step=who.step,
            about=who.about,
            claim_digest=self.claim_digest,
            lease_us=request.lease_us,
            tool_class="write",
            key_id=who.key_id,
            client_key=request.client_key,
        )
        admission = EffectAdmission(wanted, request.asked, None, self.rules)
        try:
            found = admission.decide(unit, job, limits, asks_again=False, settles=False)
        except Conflict as error:
            return Refusal(code="key_reused", message=str(error), effect_id=row and row.effect_id)
        if isinstance(found, BudgetStopped):
            return _stopped(unit, job, Refusal(code="budget", message=str(found)))
        if isinstance(found, Refused):
            return _stopped(unit, job, Refusal(code="denied", message=found.error.message))
        row = found.row
        match found.verdict:
            case "committed":
                if row.job_id != job.job_id or row.attempt != job.attempt:
                    _record_replay(unit, job, row, who.about)
                return _committed(row)
            case "run":
                used = request.arguments if admission.done_arguments is None else admission.done_arguments
                return _running(row, job, used)
            case "waiting":
                return _waiting(unit, row)
            case "unknown":
                quarantine(unit, job, row, "its holder did not report its outcome", who.about)
            case _:
                pass
        return why_not(row, unit.now)


def _stopped(unit: Unit, job: JobRow, refusal: Refusal) -> Refusal:
    """A refusal before the effect began, which ends a job of its own."""
    close_unattributed(unit, job, ErrorFacts(refusal.code, refusal.message))
    return refusal


def _running(row: EffectRow, job: JobRow, arguments: bytes) -> ClaimAnswer:
    return ClaimAnswer(
        verdict="run",
        effect_id=row.effect_id,
        job_id=job.job_id,
        attempt=job.attempt,
        arguments=arguments,
        expires_at=row.expires_at,
    )


def _waiting(unit: Unit, row: EffectRow) -> ClaimAnswer:
    expires_at = None
    if row.review_id is not None:
        unit.lock([(REVIEW, row.review_id)])
        review = unit.get(REVIEW, row.review_id)
        expires_at = review.expires_at if review is not None else None
    return ClaimAnswer(
        verdict="waiting",
        effect_id=row.effect_id,
        job_id=row.job_id,
        attempt=row.attempt,
        review_id=row.review_id,
        expires_at=expires_at,
    )


def _is_plain_repeat(job: JobRow, row: EffectRow, request: EffectRequest, attempt: int | None) -> bool:
    """Whether the effect is done, and the claim neither begins an attempt nor reopens the job to be told so."""
    is_same = row.state == "committed" and row.arguments_sha256 == request.arguments_sha256
    return is_same and row.job_id == job.job_id and attempt in (None, job.attempt) and job.state in FINISHED


def _committed(row: EffectRow) -> ClaimAnswer:
    return ClaimAnswer(
        verdict="committed",
        effect_id=row.effect_id,
        job_id=row.job_id,
        attempt=row.attempt,
        provider_id=row.provider_id,
        result=row.result,
    )


def _record_replay(unit: Unit, job: JobRow, row: EffectRow, about: str | None) -> None:
    event = Event("tool_succeeded", name=row.tool, kind="effect", idempotency_key=row.effect_key, attempt=job.attempt)
    event.about = about
    event.decision = {"why": "replayed from an earlier attempt"}
    event.detail = {"effect_id": row.effect_id, "replayed": True}
    append(unit, job, event)


def _counting(limits: Sequence[Limit]) -> list[Limit]:
    """The limits that count tool calls, or bound the time of a job."""
    return [limit for limit in limits if limit.limit_tool_calls is not None or limit.wall_clock_s is not None]
