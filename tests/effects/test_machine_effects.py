"""Effects and reviews against simple models: no effect runs twice, no review is decided twice."""

import itertools
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from machine_parts import UnderJob, examples, make_job, rows
from overnight import effects
from overnight.domain import Conflict, ErrorFacts, NotFound
from overnight.ledger import JOB, JobRow
from overnight.reviews import REVIEW, Decision, decide_review, request_review
from overnight.store import Store, Unit, open_store

OWNERS = ("worker-1", "worker-2")
keys = st.sampled_from(["mail", "post", "pay"])
SETTLED = {"committed", "failed", "released", "rejected"}


class Effects(RuleBasedStateMachine):
    """One job whose lease and attempt rise; callers of two processes claim and settle. The model is a state per key."""

    numbers = itertools.count()

    def __init__(self, stores: tuple[Store, Store], url: str) -> None:
        super().__init__()
        self.stores, self.url = stores, url
        self.tenant = f"t{next(self.numbers)}"
        self.attempt, self.epoch = 1, 0
        self.model: dict[str, dict[str, Any]] = {}
        self.job_id = ""
        self.words: dict[str, list[str]] = {}
        """What was said of each key: run, and what its run came to."""

    @initialize()
    def start(self) -> None:
        self.job_id = make_job(self.stores[0], self.tenant)

    def under_job(self, key: str, act: Any, mine: bool = True) -> Any:
        return self.stores[mine].commit_blocking(UnderJob(self.job_id, act, [(effects.EFFECT, (self.tenant, key))]))

    def row(self, unit: Unit, key: str) -> effects.EffectRow:
        row = unit.get(effects.EFFECT, (self.tenant, key))
        assert row is not None
        return row

    @rule(key=keys, owner=st.sampled_from(OWNERS), digest=st.sampled_from(["a", "a", "a", "b"]), mine=st.booleans())
    def claim(self, key: str, owner: str, digest: str, mine: bool) -> None:
        wanted = effects.EffectClaim(key, "send", b"{}", digest, owner)
        held = self.model.get(key)
        holder = (owner, self.attempt, self.epoch)

        def act(unit: Unit, job: JobRow) -> str:
            return effects.claim(unit, job, wanted, None).verdict

        if held is not None and held["state"] in {"claimed", "committed", "unknown"} and held["digest"] != digest:
            with pytest.raises(Conflict, match="use another key for other arguments"):
                self.under_job(key, act, mine)
            return
        verdict = self.under_job(key, act, mine)
        if held is None or held["state"] in {"failed", "released"}:
            wanted_verdict = "run"
        elif held["state"] == "rejected":
            wanted_verdict = "rejected" if held["holder"][1] == self.attempt else "run"
        elif held["state"] == "claimed":
            wanted_verdict = "in_progress" if held["holder"] == holder else "unknown"
        else:
            wanted_verdict = held["state"]
        assert verdict == wanted_verdict
        if verdict == "run":
            self.model[key] = {"state": "claimed", "holder": holder, "digest": digest}
            self.words.setdefault(key, []).append("run")
        elif verdict == "unknown" and held is not None:
            held["state"] = "unknown"

    def settle(self, key: str, state: str, act: Any) -> None:
        self.under_job(key, act)
        self.model[key]["state"] = state
        if state == "rejected":
            self.model[key]["holder"] = (*self.model[key]["holder"][:1], self.attempt, self.epoch)
        self.words[key].append(state)

    def in_state(self, key: str, *states: str) -> bool:
        return key in self.model and self.model[key]["state"] in states

    @rule(key=keys, state=st.sampled_from(["committed", "failed", "unknown", "lost"]))
    def the_call_ends(self, key: str, state: str) -> None:
        """Its caller knows, or knows that it does not; or nobody hears of it again."""
        if not self.in_state(key, "claimed") or self.model[key]["holder"][1:] != (self.attempt, self.epoch):
            return
        if state == "committed":
            self.settle(
                key, state, lambda unit, job: effects.commit(unit, job, self.row(unit, key), b'"id"', "p-1", None)
            )
        elif state == "failed":
            error = ErrorFacts("Refused", "mailbox full")
            self.settle(key, state, lambda unit, job: effects.fail(unit, job, self.row(unit, key), error, None))
        elif state == "unknown":
            self.under_job(
                key, lambda unit, job: effects.mark_unknown(unit, job, self.row(unit, key), "timeout", "too late")
            )
            self.model[key]["state"] = "unknown"

    @rule(key=keys, state=st.sampled_from(["committed", "released", "rejected"]))
    def it_is_found_out(self, key: str, state: str) -> None:
        """A status check or a person settles what was unknown."""
        if not self.in_state(key, "unknown"):
            return
        if state == "committed":
            self.settle(
                key,
                state,
                lambda unit, job: effects.commit(unit, job, self.row(unit, key), b"1", None, None, why="seen"),
            )
        elif state == "released":
            self.settle(key, state, lambda unit, job: effects.release(unit, job, self.row(unit, key), "not there"))
        else:
            self.settle(key, state, lambda unit, job: effects.reject(unit, job, self.row(unit, key), "no", None, "ann"))

    @rule(attempt=st.booleans())
    def the_job_moves_on(self, attempt: bool) -> None:
        def act(unit: Unit, job: JobRow) -> None:
            job.lease_epoch += 1
            job.attempt += attempt
            unit.change(JOB, job)

        self.stores[0].commit_blocking(UnderJob(self.job_id, act))
        self.epoch += 1
        self.attempt += attempt

    @invariant()
    def holds(self) -> None:
        sql = f"SELECT effect_key, state, arguments_sha256, result FROM effect WHERE tenant_id = '{self.tenant}'"
        found = {row[0]: row[1:] for row in rows(self.url, sql)}
        assert {key: row[:2] for key, row in found.items()} == {
            key: (held["state"], held["digest"]) for key, held in self.model.items()
        }
        for key, words in self.words.items():
            for before, after in itertools.pairwise(words):
                assert (before, after) != ("run", "run"), f"{key} was run twice without a word in between: {words}"
                assert before != "committed", f"{key}: {after} after it was committed"
            assert (found[key][2] is not None) == ("committed" in words)


def test_effects_agree_with_the_model(store_url: str) -> None:
    with open_store(store_url) as one, open_store(store_url) as other:
        run_state_machine_as_test(
            lambda: Effects((one, other), store_url), settings=examples(20, 600, stateful_step_count=25)
        )


def test_parallel_claims_of_one_key_run_it_once(store: Store, store_url: str) -> None:
    """Callers of two processes at the same moment: one is told to run, everybody else that it is unknown or under way."""
    import asyncio

    from machine_parts import all_of

    async def claims(other: Store) -> None:
        for n in range(15):
            job_id = make_job(store, "t")

            def claim(owner: str, job_id: str = job_id, key: str = f"key-{n}") -> UnderJob:
                wanted = effects.EffectClaim(key, "send", b"{}", "a", owner)
                return UnderJob(
                    job_id,
                    lambda unit, job: effects.claim(unit, job, wanted, None).verdict,
                    [(effects.EFFECT, ("t", key))],
                )

            verdicts = await asyncio.gather(
                all_of(store, [claim("worker-1") for _ in range(5)]),
                all_of(other, [claim("worker-2") for _ in range(5)]),
            )
            flat = [verdict for each in verdicts for verdict in each]
            assert flat.count("run") == 1, flat
            assert set(flat) <= {"run", "in_progress", "unknown"}

    with open_store(store_url) as other:
        asyncio.run(claims(other))


# ── reviews ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Reviews(RuleBasedStateMachine):
    """Questions are asked and answered by several people at once; each is answered once, by the first."""

    asked = Bundle("asked")
    numbers = itertools.count()

    def __init__(self, stores: tuple[Store, Store], url: str) -> None:
        super().__init__()
        self.stores, self.url = stores, url
        self.tenant = f"r{next(self.numbers)}"
        self.states: dict[str, tuple[str, str | None]] = {}
        self.job_id = ""

    @initialize()
    def start(self) -> None:
        self.job_id = make_job(self.stores[0], self.tenant)

    @rule(target=asked, question=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=300))
    def ask(self, question: str) -> str:
        def act(unit: Unit, job: JobRow) -> str:
            return request_review(unit, job, "approval", question, {"amount": 5}, None).review_id

        review_id = self.stores[0].commit_blocking(UnderJob(self.job_id, act))
        self.states[review_id] = ("open", None)
        return review_id

    @rule(review_id=asked, approved=st.booleans(), by=st.sampled_from(["ann", "bob"]), mine=st.booleans())
    def answer(self, review_id: str, approved: bool, by: str, mine: bool) -> None:
        def act(unit: Unit, job: JobRow) -> None:
            row = unit.get(REVIEW, review_id)
            decide_review(row, Decision("approve" if approved else "reject", by), unit.now)
            unit.change(REVIEW, row)

        command = UnderJob(self.job_id, act, [(REVIEW, review_id)])
        if self.states[review_id][0] == ("approved" if approved else "rejected"):
            self.stores[mine].commit_blocking(command)  # the same answer again changes nothing
            return
        if self.states[review_id][0] != "open":
            with pytest.raises(Conflict, match=f"already .* by {self.states[review_id][1]}"):
                self.stores[mine].commit_blocking(command)
            return
        self.stores[mine].commit_blocking(command)
        self.states[review_id] = ("approved" if approved else "rejected", by)

    @rule(review_id=consumes(asked))
    def answer_what_nobody_asked(self, review_id: str) -> None:
        def act(unit: Unit, job: JobRow) -> None:
            decide_review(unit.get(REVIEW, review_id + "x"), Decision("approve", "ann"), unit.now)

        with pytest.raises(NotFound, match="review"):
            self.stores[0].commit_blocking(UnderJob(self.job_id, act, [(REVIEW, review_id + "x")]))

    @invariant()
    def holds(self) -> None:
        found = rows(self.url, f"SELECT review_id, state, decided_by FROM review WHERE tenant_id = '{self.tenant}'")
        assert {row[0]: tuple(row[1:]) for row in found} == self.states


def test_reviews_agree_with_the_model(store_url: str) -> None:
    with open_store(store_url) as one, open_store(store_url) as other:
        run_state_machine_as_test(
            lambda: Reviews((one, other), store_url), settings=examples(8, 200, stateful_step_count=15)
        )
