"""The ends of reviews that effects wait for: a review expires, or its job ends."""

from __future__ import annotations

from typing import Any

import msgspec

from overnight.ledger import JOB, JobRow, lifecycle
from overnight.reviews import (
    OPEN_REVIEWS,
    REVIEW,
    ReviewRow,
    expire_review,
    list_expired,
    supersede_ended,
)
from overnight.store import Store, Table, Unit

from .rows import EFFECT, SQL, EffectRow
from .transitions import end_review, expire, supersede

MAX_EXPIRED = 500


def waiting_effect(unit: Unit, row: ReviewRow) -> EffectRow | None:
    """The locked effect that waits for this review; None if it has none, or waits for another one."""
    if row.effect_key is None:
        return None
    key = (row.tenant_id, row.effect_key)
    unit.lock([(EFFECT, key)])
    effect = unit.get(EFFECT, key)
    return effect if effect is not None and effect.review_id == row.review_id else None


class ApprovedEffects(msgspec.Struct):
    """The keys of the effects of a job that were approved and have not begun, as JSON; read under the job's lock."""

    job_id: str
    effect_keys: str


def _job_of(row: ApprovedEffects) -> str:
    return row.job_id


_READ = SQL["read_approved"]
APPROVED_EFFECTS: Table[ApprovedEffects] = Table(53, ApprovedEffects, _job_of, lock=_READ, insert=_READ, update=_READ)


def end_locks(job_id: str) -> list[tuple[Any, Any]]:
    """The further locks of a command that ends a job and calls `end_reviews`."""
    return [(OPEN_REVIEWS, job_id), (APPROVED_EFFECTS, job_id)]


def end_reviews(unit: Unit, job: JobRow) -> None:
    """Supersede the open reviews of a job that has just ended, and release the effects that wait for them or were approved.

    Commands that end a job call it in the same transaction; they lock `end_locks` beforehand.
    """
    for row in supersede_ended(unit, job):
        effect = waiting_effect(unit, row)
        if effect is not None and effect.state == "waiting":
            supersede(unit, job, effect)
    for effect in _approved(unit, job):
        end_review(unit, job, effect, f"its job has ended: {job.state}", approved_too=True)
        supersede(unit, job, effect)


def _approved(unit: Unit, job: JobRow) -> list[EffectRow]:
    """The approved effects of a locked job. Also those that earlier commands of this transaction changed."""
    unit.lock([(APPROVED_EFFECTS, job.job_id)])
    if (stored := unit.get(APPROVED_EFFECTS, job.job_id)) is not None:
        keys: list[str] = msgspec.json.decode(stored.effect_keys)
        unit.lock([(EFFECT, (job.tenant_id, key)) for key in keys])
    return [row for row in unit.loaded(EFFECT) if row.job_id == job.job_id and row.state == "approved"]


class ExpireReview(msgspec.Struct, frozen=True):
    """End an open review whose time is over, and its effect's wait. The job keeps waiting. Outcome: whether it was ended."""

    review_id: str
    job_id: str
    tenant_id: str
    effect_key: str | None

    def locks(self) -> list[tuple[Any, Any]]:
        locks: list[tuple[Any, Any]] = [(JOB, self.job_id), (REVIEW, self.review_id)]
        return locks if self.effect_key is None else [*locks, (EFFECT, (self.tenant_id, self.effect_key))]

    def decide(self, unit: Unit) -> bool:
        job, row = unit.get(JOB, self.job_id), unit.get(REVIEW, self.review_id)
        if job is None or row is None or not expire_review(unit, job, row):
            return False
        lifecycle.mark_wait(unit, job, row.review_id, row.expires_at)
        effect = waiting_effect(unit, row)
        if effect is not None and effect.state == "waiting":
            expire(unit, job, effect)
        return True


async def expire_reviews(store: Store) -> int:
    """End all reviews whose time is over; every gateway and worker calls it. Returns their number. Raises StoreUnavailable."""
    ended = 0
    while found := await list_expired(store, store.clock(), MAX_EXPIRED):
        # A page is one batch for the writer; another process may end the same ones.
        done = [store.submit(ExpireReview(*each)) for each in found]
        count = sum([await outcome for outcome in done])
        ended += count
        if not count or len(found) < MAX_EXPIRED:
            break
    return ended
