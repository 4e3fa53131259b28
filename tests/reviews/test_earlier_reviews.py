"""Reviews as earlier versions wrote them: without an answer, an expiry or a key of the digest."""

from typing import Any

import pytest

from machine_parts import UnderJob, make_job
from overnight.domain import Conflict
from overnight.jobs import Decision, Operations
from overnight.ledger import JobRow
from overnight.reviews import (
    REVIEW,
    ReviewFilter,
    ReviewRow,
    digest_of,
    find_reviews,
    given_answer,
    public_review,
    public_state,
)
from overnight.store import Store, Unit

STATES = {"open": "pending", "approved": "decided", "rejected": "decided", "withdrawn": "superseded"}


def write(store: Store, state: str) -> ReviewRow:
    job_id = make_job(store)

    def act(unit: Unit, job: JobRow) -> ReviewRow:
        decided = state != "open"
        row = ReviewRow(
            review_id=f"rev_{state}",
            tenant_id=job.tenant_id,
            job_id=job.job_id,
            kind="approval",
            path="",
            ordinal=0,
            question="Go on?",
            detail='{"amount":3}',
            digest=digest_of("approval", "Go on?", '{"amount":3}', None),
            state=state,
            decided_by="ann" if decided else None,
            note=None,
            requested_at=unit.now,
            decided_at=unit.now if decided else None,
        )
        unit.insert(REVIEW, row)
        return row

    return store.commit_blocking(UnderJob(job_id, act))


async def test_earlier_states_are_shown_in_the_public_ones(store: Store) -> None:
    rows = {state: write(store, state) for state in STATES}
    for state, shown in STATES.items():
        assert public_state(rows[state]) == shown
        public: dict[str, Any] = public_review(rows[state])
        assert (public["state"], public["detail"], public["expires_at"]) == (shown, {"amount": 3}, None)
        page = await find_reviews(store, ReviewFilter(tenant_id="default", state=shown))
        assert rows[state].review_id in [row.review_id for row in page]
    assert [given_answer(row) and given_answer(row).answer for row in rows.values()] == [  # type: ignore[union-attr]
        None,
        "approve",
        "reject",
        None,
    ]


async def test_earlier_decisions_hold(store: Store) -> None:
    for state in STATES:
        write(store, state)
    operations = Operations(store)
    assert (await operations.decide("rev_approved", Decision("approve", "bob"))).decided_by == "ann"
    with pytest.raises(Conflict, match="already answered 'approve' by ann"):
        await operations.decide("rev_approved", Decision("reject", "bob"))
    with pytest.raises(Conflict, match="superseded"):
        await operations.decide("rev_withdrawn", Decision("approve", "bob"))
    decided = await operations.decide("rev_open", Decision("approve", "bob"))
    assert (decided.state, decided.decided_by) == ("approved", "bob"), "as processes of earlier versions read it"
