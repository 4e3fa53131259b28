"""Reviews of tests: jobs with effects that wait for an approval, and requests of their decisions."""

from collections.abc import Sequence
from typing import Any

from machine_parts import UnderJob, make_job
from overnight import effects
from overnight.ledger import JobRow
from overnight.reviews import REVIEW, ReviewRow, request_review, supersede_review
from overnight.store import Store, Unit

MINUTE_US = 60_000_000


class Clock:
    """A clock of microseconds that tests move."""

    def __init__(self, now: int = 1_800_000_000_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


class Card:
    """One effect that waits for the approval of a job."""

    def __init__(
        self,
        store: Store,
        *,
        tenant: str = "default",
        key: str = "pay_7",
        expires_in_us: int | None = None,
        deciders: Sequence[str] = (),
        key_id: str | None = None,
        job_key_id: str | None = None,
        job_id: str | None = None,
    ) -> None:
        self.store, self.tenant, self.key = store, tenant, key
        self.job_id = job_id or make_job(store, tenant, key_id=job_key_id)
        self.expires_in_us, self.deciders, self.key_id = expires_in_us, deciders, key_id
        self.review = self.under_job(self._request)

    def under_job(self, act: Any, *further: Any) -> Any:
        locks = [(effects.EFFECT, (self.tenant, self.key)), *further]
        return self.store.commit_blocking(UnderJob(self.job_id, act, locks))

    def _request(self, unit: Unit, job: JobRow) -> ReviewRow:
        wanted = effects.EffectClaim(
            effect_key=self.key, tool="refund", arguments=b'{"usd":250}', arguments_sha256="asked", owner="worker-1"
        )
        detail = {"tool": "refund", "arguments": {"payment": "pay_7", "usd": 250}, "why": "more than 100 USD"}
        review = request_review(
            unit,
            job,
            "approval",
            "Refund 250 USD?",
            detail,
            None,
            effect_key=self.key,
            arguments_sha256="asked",
            rule_digest="rule-1",
            expires_at=None if self.expires_in_us is None else unit.now + self.expires_in_us,
            deciders=self.deciders,
            key_id=self.key_id,
        )
        row = unit.get(effects.EFFECT, (self.tenant, self.key))
        effects.wait(unit, job, row, wanted, review.review_id)
        return review

    def tighten(self) -> None:
        """A stricter rule: the review and its effect's wait end."""

        def act(unit: Unit, job: JobRow) -> None:
            row = unit.get(REVIEW, self.review.review_id)
            effect = unit.get(effects.EFFECT, (self.tenant, self.key))
            assert row is not None
            if effect is not None and effect.state in {"waiting", "approved"}:
                effects.supersede(unit, job, effect)
                supersede_review(unit, job, row, "a stricter rule applies", approved_too=True)

        self.under_job(act, (REVIEW, self.review.review_id))

    def effect(self) -> effects.EffectRow:
        return self.under_job(lambda unit, _: unit.get(effects.EFFECT, (self.tenant, self.key)))
