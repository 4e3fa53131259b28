"""Decisions of people on reviews: each closes its review, writes its consequences and wakes its job, in one transaction."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from overnight import effects
from overnight.budgets import Limit, TopUp
from overnight.domain import FINISHED, BadInput, Conflict, Forbidden, NotFound
from overnight.domain.globs import Names
from overnight.domain.json_text import encode_json
from overnight.domain.scopes import ROLES
from overnight.keys import Requester, VirtualKey, check_decision
from overnight.ledger import JOB, JobRow, Ledger, lifecycle, locked_job
from overnight.reviews import (
    OPEN_REVIEWS,
    REVIEW,
    Decision,
    DecisionOutcome,
    ReviewRow,
    decide_review,
    public_state,
    record_decision,
    renew_review,
)
from overnight.store import Unit

from .commands import Cancel
from .encoding import fingerprint

LimitOf = Callable[[TopUp, JobRow], Limit]
CANCELS = frozenset({"budget", "code", "divergence"})
"""Kinds of reviews whose no cancels the job."""


class Decided(msgspec.Struct, frozen=True):
    """What a decision did. `cancelled`: the job was cancelled, or asked to stop. `top_up`: what it added to which budget."""

    review: ReviewRow
    outcome: DecisionOutcome
    cancelled: bool = False
    top_up: TopUp | None = None
    budget: Any = None


class Decide(msgspec.Struct):
    """Decide a review. Outcome: `Decided`.

    - `decision`: as `check_answer` returns it. `edited_sha256`: the digest of edited arguments.
    - `top_up`: of `continue`, what it adds to the budget.
    """

    review_id: str
    job_id: str
    parent_job_id: str | None
    effect_key: str | None
    tenant_id: str
    decision: Decision
    edited_sha256: str | None = None
    top_up: TopUp | None = None

    def locks(self) -> list[tuple[Any, Any]]:
        wanted: list[tuple[Any, Any]] = [(JOB, self.job_id), (REVIEW, self.review_id)]
        if self.effect_key is not None:
            wanted.append((effects.EFFECT, (self.tenant_id, self.effect_key)))
        if self.parent_job_id is not None:
            wanted.append((JOB, self.parent_job_id))
        if self.top_up is not None:
            wanted += self.top_up.locks()
        return [*wanted, (OPEN_REVIEWS, self.job_id)]

    def decide(self, unit: Unit) -> Decided:
        job, decision = locked_job(unit, self.job_id), self.decision
        row = unit.get(REVIEW, self.review_id)
        # On a copy: a command that raises has changed nothing.
        outcome = decide_review(None if row is None else msgspec.structs.replace(row), decision, unit.now)
        if row is None or outcome == "repeated":
            return Decided(msgspec.structs.replace(_found(row)), outcome)
        effect = self._effect(unit, row) if outcome == "decided" else None
        budget = None
        if self.top_up is not None and outcome == "decided":
            budget = self.top_up.decide(unit)
        decide_review(row, decision, unit.now)
        record_decision(unit, job, row, decision, outcome)
        if outcome == "kept":
            return Decided(msgspec.structs.replace(row), outcome)
        if effect is not None:
            self._move_effect(unit, job, row, effect)
        cancelled = row.state == "rejected" and row.kind in CANCELS and job.state not in FINISHED
        if cancelled:
            Cancel(self.job_id, self.parent_job_id, decision.by).decide(unit)
        else:
            lifecycle.wake(unit, job)
        return Decided(msgspec.structs.replace(row), outcome, cancelled, self.top_up, budget)

    def _effect(self, unit: Unit, row: ReviewRow) -> effects.EffectRow | None:
        """The effect that the decision moves. Raises Conflict if it does not wait for this review any more."""
        if self.effect_key is None or row.kind not in {"approval", "quarantine"}:
            return None
        effect = unit.get(effects.EFFECT, (self.tenant_id, self.effect_key))
        if row.kind == "quarantine":
            # The outcome may have been found since; then the decision is kept, and moves nothing.
            return effect if effect is not None and effect.state == "unknown" else None
        waits = effect is not None and effect.state in {"waiting", "expired"} and effect.review_id == row.review_id
        if effect is None or not waits or effect.arguments_sha256 != row.arguments_sha256:
            state = effect.state if effect is not None else "gone"
            raise Conflict(f"{row.review_id} does not apply any more: its effect is {state}")
        return effect

    def _move_effect(self, unit: Unit, job: JobRow, row: ReviewRow, effect: effects.EffectRow) -> None:
        decision = self.decision
        position = None
        # An effect over HTTP has no position, even if it belongs to a job that Overnight runs.
        if job.runtime == "python" and effect.client_key is None:
            position = effects.EffectPosition(row.path, row.ordinal, fingerprint(effect.tool))
        match decision.answer:
            case "approve" | "edit":
                effects.approve(unit, job, effect, decision.by, self.edited_sha256)
            case "answer":
                effects.answer(unit, job, effect, encode_json(decision.text), position, decision.by)
            case "done":
                result, why = decision.result or b"null", f"confirmed by {decision.by}"
                provider = decision.provider_id
                effects.commit(unit, job, effect, result, provider, position, why=why, actor=decision.by)
            case "not_done":
                effects.release(unit, job, effect, f"{decision.by} reports that it was not done", decision.by)
            case _:
                why = decision.note or f"{decision.by} rejected it"
                effects.reject(unit, job, effect, why, position, decision.by)


def _found(row: ReviewRow | None) -> ReviewRow:
    if row is None:
        raise NotFound("review; `overnight reviews` lists pending reviews")
    return row


class Renew(msgspec.Struct):
    """Renew an expired review, or extend an open one, by `extend_us` microseconds. Outcome: its row."""

    review_id: str
    job_id: str
    tenant_id: str
    effect_key: str | None
    by: str
    extend_us: int | None = None

    def locks(self) -> list[tuple[Any, Any]]:
        wanted: list[tuple[Any, Any]] = [(JOB, self.job_id), (REVIEW, self.review_id)]
        if self.effect_key is not None:
            wanted.append((effects.EFFECT, (self.tenant_id, self.effect_key)))
        return wanted

    def decide(self, unit: Unit) -> ReviewRow:
        job, row = locked_job(unit, self.job_id), _found(unit.get(REVIEW, self.review_id))
        effect = effects.waiting_effect(unit, row)
        if public_state(row) in {"pending", "expired"} and row.expires_at is not None:
            if job.state in FINISHED:
                raise Conflict(f"{row.review_id} cannot be renewed: {job.job_id} is {job.state}")
            if row.effect_key is not None and (effect is None or effect.state not in {"waiting", "expired"}):
                raise Conflict(f"{row.review_id} cannot be renewed: its effect does not wait for it any more")
        renew_review(unit, job, row, self.by, self.extend_us)
        lifecycle.mark_wait(unit, job, row.review_id, None)
        if effect is not None and effect.state == "expired":
            effects.renew(unit, effect)
        return msgspec.structs.replace(row)


# ── who may decide ───────────────────────────────────────────────────────────────────────────────────────────────────


async def check_decider(ledger: Ledger, review: ReviewRow, by: str, key: VirtualKey | None, *, over_http: bool) -> None:
    """Raise Forbidden if the caller may not decide a review: the key that asked, one of an agent, or one that the rule does
    not name. Without a key, `by` is the person on the operator's command line."""
    if over_http:
        for creator in await _creators(ledger, review) or [None]:
            check_decision(key, Requester(creator, review.key_id))
    deciders: list[str] = msgspec.json.decode(review.deciders) if review.deciders else []
    if not is_named(deciders, by, key):
        who = f"the key {key.name}" if key is not None else f"{by!r}"
        named = ", ".join(deciders)
        raise Forbidden(f"{review.review_id} is decided by {named}, as its rule says; {who} is none of them")


def is_named(deciders: Sequence[str], by: str, key: VirtualKey | None) -> bool:
    """Whether a rule permits the caller: by the name of the key, a role whose scopes it has, or without a key the person's name.
    A rule without names permits anyone."""
    if not deciders or Names(tuple(deciders)).matches(key.name if key is not None else by):
        return True
    roles = [ROLES[name] for name in deciders if name in ROLES]
    return key is not None and any(key.scopes.issuperset(scopes) for scopes in roles)


async def _creators(ledger: Ledger, review: ReviewRow) -> list[str]:
    """The API keys that created the job of a review and the first of the jobs above it."""
    job = await ledger.job(review.job_id)
    created = [await ledger.events(job_id, most=1) for job_id in {job.job_id, job.root_job_id}]
    details = [events[0].facts.detail or {} for events in created if events]
    return [detail["key_id"] for detail in details if detail.get("key_id")]


# ── preparation ──────────────────────────────────────────────────────────────────────────────────────────────────────


def top_up_of(review: ReviewRow, decision: Decision, job: JobRow, limit_of: LimitOf | None) -> TopUp | None:
    """What `continue` adds to the budget of a review. None without amounts. Raises BadInput for a budget without a name."""
    amounts = decision.amounts
    if amounts is None:
        return None
    budget: dict[str, Any] = msgspec.json.decode(review.detail)
    if not budget.get("name") or not budget.get("row"):
        raise BadInput(f"amounts: {budget.get('limit')} has no name to add to; raise it in the brain's routing.yaml")
    wanted = TopUp(
        tenant_id=review.tenant_id,
        scope=str(budget["scope"]),
        scope_id=str(budget["row"]),
        actor=decision.by,
        why=decision.note or f"review {review.review_id}",
        microusd=amounts.microusd,
        tokens=amounts.tokens,
        calls=amounts.calls,
        tool_calls=amounts.tool_calls,
        wall_clock_s=amounts.seconds,
        key_id=decision.key_id,
    )
    if limit_of is not None:
        wanted.operator_limit = limit_of(wanted, job)
    return wanted


async def prepared(
    ledger: Ledger, review: ReviewRow, decision: Decision, limit_of: LimitOf | None, edited_sha256: str | None
) -> Decide:
    """The command of a decision that fits its question."""
    job = await ledger.job(review.job_id)
    detail: dict[str, Any] = msgspec.json.decode(review.detail)
    key = review.effect_key or detail.get("effect_key")
    return Decide(
        review_id=review.review_id,
        job_id=review.job_id,
        parent_job_id=job.parent_job_id,
        effect_key=key if isinstance(key, str) else None,
        tenant_id=review.tenant_id,
        decision=decision,
        edited_sha256=edited_sha256,
        top_up=top_up_of(review, decision, job, limit_of),
    )
