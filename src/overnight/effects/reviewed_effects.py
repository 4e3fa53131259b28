"""The ends of reviews that effects wait for: a review expires, or its job ends."""

from __future__ import annotations

from typing import Any

import msgspec

from overnight.ledger import JOB, JobRow, lifecycle
from overnight.reviews import (
    REVIEW,
    ReviewRow,
    expire_review,
    list_expired,
    supersede_ended,
)
from overnight.store import Store, Unit

from .rows import EFFECT, EffectRow
from .transitions import expire, supersede

MAX_EXPIRED = 500


def waiting_effect(unit: Unit, row: ReviewRow) -> EffectRow | None:
    """The locked effect that waits for this review; None if it has none, or waits for another one."""
    if row.effect_key is None:
        return None
    key = (row.tenant_id, row.effect_key)
    unit.lock([(EFFECT, key)])
    effect = unit.get(EFFECT, key)
    return effect if effect is not None and effect.review_id == row.review_id else None


def end_reviews(unit: Unit, job: JobRow) -> None:
    """Supersede the open reviews of a job that has just ended, and release the effects that wait for them.

    Commands that end a job call it in the same transaction; they lock `reviews.OPEN_REVIEWS` of the job beforehand.
    """
    for row in supersede_ended(unit, job):
        effect = waiting_effect(unit, row)
        if effect is not None and effect.state == "waiting":
            supersede(unit, job, effect)


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
