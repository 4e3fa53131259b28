"""A review against a trivial model: decided once, expired, renewed, superseded; and several parties at once."""

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from machine_parts import examples, rows
from overnight.domain import Conflict
from overnight.effects import expire_reviews
from overnight.jobs import Decision, Operations
from overnight.jobs.commands import Cancel
from overnight.ledger import Ledger
from overnight.reviews import ReviewRow, public_state, read_review
from overnight.store import Store, open_store
from review_cards import MINUTE_US, Card, Clock

ANSWERS = st.sampled_from(["approve", "reject", "answer"])
PEOPLE = st.sampled_from(["ann", "bob"])
EFFECTS = {"approve": "approved", "reject": "rejected", "answer": "committed"}


class OneCard(RuleBasedStateMachine):
    """The model is the state, the answer and who gave it. Time stands still unless a rule moves it."""

    numbers = itertools.count()

    def __init__(self, stores: tuple[Store, Store], url: str, clock: Clock) -> None:
        super().__init__()
        self.stores, self.url, self.clock = stores, url, clock
        self.tenant = f"t{next(self.numbers)}"
        self.state, self.answer, self.by = "pending", "", ""
        self.effect, self.ended = "waiting", False

    @initialize()
    def ask(self) -> None:
        self.card = Card(self.stores[0], tenant=self.tenant, expires_in_us=10 * MINUTE_US)
        self.until = self.clock.now + 10 * MINUTE_US

    @property
    def expired(self) -> bool:
        return self.state == "pending" and self.until <= self.clock.now

    @rule(minutes=st.integers(0, 8))
    def time_passes(self, minutes: int) -> None:
        self.clock.now += minutes * MINUTE_US

    @rule(mine=st.booleans())
    def sweep(self, mine: bool) -> None:
        asyncio.run(expire_reviews(self.stores[mine]))
        if self.expired:
            self.state, self.effect = "expired", "expired"

    @rule(answer=ANSWERS, by=PEOPLE, mine=st.booleans(), stale=st.booleans())
    def decide(self, answer: str, by: str, mine: bool, stale: bool) -> None:
        digest = "0" * 64 if stale else self.card.review.digest
        decision = Decision(answer, by, text="by hand" if answer == "answer" else None, digest=digest)
        run = Operations(self.stores[mine]).decide(self.card.review.review_id, decision)
        late = self.expired or self.state in {"expired", "superseded"}
        if stale or (self.answer and answer != self.answer) or (late and not self.answer and answer != "reject"):
            with pytest.raises(Conflict) as refused:
                asyncio.run(run)
            if not stale and self.answer:
                assert f"already answered {self.answer!r} by {self.by}" in str(refused.value)
            return
        row = asyncio.run(run)
        if self.answer:
            assert row.decided_by == self.by
            return
        self.answer, self.by = answer, by
        if self.state != "superseded":
            self.state, self.effect = "decided", EFFECTS[answer]
        assert (row.decided_by, public_state(row)) == (by, self.state)

    @rule(mine=st.booleans())
    def renew(self, mine: bool) -> None:
        run = Operations(self.stores[mine]).renew(self.card.review.review_id, "ann", 5 * MINUTE_US)
        if self.ended or self.state in {"decided", "superseded"}:
            with pytest.raises(Conflict):
                asyncio.run(run)
            return
        asyncio.run(run)
        self.state, self.effect, self.until = "pending", "waiting", self.clock.now + 5 * MINUTE_US

    @rule(mine=st.booleans())
    def job_ends(self, mine: bool) -> None:
        if self.ended:
            return
        self.stores[mine].commit_blocking(Cancel(self.card.job_id, None, "ann"))
        self.ended = True
        # One that expired before stays expired, and cannot be renewed.
        if self.state == "pending":
            self.state, self.effect = "superseded", "released"

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "card"):
            return
        row = asyncio.run(read_review(self.stores[1], self.card.review.review_id))
        assert (public_state(row), row.decided_by) == (self.state, self.by or None)
        [(effect,)] = rows(self.url, f"SELECT state FROM effect WHERE tenant_id = '{self.tenant}'")
        assert effect == self.effect


def test_card_agrees_with_the_model(store_url: str) -> None:
    clock = Clock()
    with open_store(store_url, clock) as one, open_store(store_url, clock) as other:
        run_state_machine_as_test(
            lambda: OneCard((one, other), store_url, clock), settings=examples(12, 300, stateful_step_count=15)
        )


ENDS = {"approved", "rejected", "expired", "superseded"}
LAST = ("review_decided", "review_superseded")


@pytest.mark.parametrize("turn", range(3))
async def test_several_parties_have_one_outcome(store_url: str, turn: int) -> None:
    """Two people, the expiry and a stricter rule on one card at once, in two processes."""
    clock = Clock()
    with open_store(store_url, clock) as one, open_store(store_url, clock) as other:
        cards = [Card(one, key=f"pay_{number}", expires_in_us=MINUTE_US) for number in range(8)]
        people = [Operations(one), Operations(other)]

        async def parties(card: Card, place: int) -> list[Any]:
            clock.now += MINUTE_US // 4
            review = card.review.review_id
            acts = [
                people[0].decide(review, Decision("approve", "ann", digest=card.review.digest)),
                people[1].decide(review, Decision("reject", "bob", digest=card.review.digest)),
                asyncio.to_thread(card.tighten),
                expire_reviews((one, other)[place % 2]),
            ]
            order = [(step + place + turn) % 4 for step in range(4)]
            return await asyncio.gather(*(acts[step] for step in order), return_exceptions=True)

        outcomes = await asyncio.gather(*(parties(card, place) for place, card in enumerate(cards)))
        await expire_reviews(one)
        for card, found in zip(cards, outcomes, strict=True):
            assert all(
                each is None or isinstance(each, Conflict) or not isinstance(each, BaseException) for each in found
            )
            row = await read_review(other, card.review.review_id)
            assert row.state in ENDS, row.state
            effect = card.effect()
            allowed = {
                "approved": {"approved"},
                "rejected": {"rejected"},
                "expired": {"expired"},
                "superseded": {"released"},
            }
            assert effect.state in allowed[row.state]
            events = [event.facts for event in await Ledger(one).events(card.job_id)]
            ends = [event.event for event in events if event.event in LAST and not (event.detail or {}).get("late")]
            # A yes can still be superseded before its effect begins; nothing else comes after an end.
            assert ends in (["review_decided"], ["review_superseded"], [*LAST], []), ends
            assert (row.state == "superseded") == ("review_superseded" in ends)
            answered = [each for each in found if not isinstance(each, BaseException) and isinstance(each, ReviewRow)]
            assert all(each.decided_by == row.decided_by for each in answered)


async def test_end_of_the_job_supersedes_its_cards(store: Store) -> None:
    card = Card(store)
    await store.commit(Cancel(card.job_id, None, "ann"))
    row = await read_review(store, card.review.review_id)
    assert (public_state(row), card.effect().state) == ("superseded", "released")
    with pytest.raises(Conflict, match="superseded"):
        await Operations(store).decide(row.review_id, Decision("approve", "ann"))
    kept = await Operations(store).decide(row.review_id, Decision("reject", "ann", "too late"))
    assert (public_state(kept), kept.note) == ("superseded", "too late")
