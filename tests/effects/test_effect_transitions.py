"""States of effects: only transitions of the table happen, each with its event, and a refused one changes nothing."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from machine_parts import newjob
from overnight import effects
from overnight.domain import Conflict, ErrorFacts, new_id
from overnight.effects import EFFECT, EFFECT_STATES, TRANSITIONS, EffectClaim, EffectRow
from overnight.ledger import JobRow, Ledger, open_job
from overnight.store import Store, Unit

KEY = "mail"
LEASE_US = 60_000_000
NOT_DONE = ErrorFacts("Refused", "mailbox full")
TOKEN, DIGEST = effects.new_claim_token()
OTHER_TOKEN, OTHER_DIGEST = effects.new_claim_token()


def wanted(digest: str = "a", **facts: Any) -> EffectClaim:
    return EffectClaim(KEY, "send", b'{"to":"ann"}', digest, facts.pop("owner", "p1"), **facts)


def claimed(unit: Unit, job: JobRow, **facts: Any) -> effects.ClaimResult:
    return effects.claim(unit, job, wanted(**facts), None)


def row_of(unit: Unit, job: JobRow) -> EffectRow:
    row = unit.get(EFFECT, (job.tenant_id, KEY))
    assert row is not None
    return row


REACH: dict[str, tuple[str, ...]] = {
    "none": (),
    "waiting": ("wait",),
    "approved": ("wait", "approve"),
    "expired": ("wait", "expire"),
    "claimed": ("claim",),
    "committed": ("claim", "commit"),
    "failed": ("claim", "fail"),
    "unknown": ("claim", "mark_unknown"),
    "released": ("claim", "mark_unknown", "release"),
    "rejected": ("wait", "reject"),
}

CALLS: dict[str, Callable[[Unit, JobRow, EffectRow | None], Any]] = {
    "refuse": lambda u, j, row: effects.refuse(u, j, row, wanted(), ErrorFacts("denied", "no"), {"why": "no"}, None),
    "wait": lambda u, j, row: effects.wait(u, j, row, wanted(), "rev_1"),
    "approve": lambda u, j, row: effects.approve(u, j, row, "mia"),
    "answer": lambda u, j, row: effects.answer(u, j, row, b'"yes"', None, "mia"),
    "expire": effects.expire,  # type: ignore[dict-item]
    "renew": lambda u, j, row: effects.renew(u, row),  # type: ignore[arg-type]
    "supersede": effects.supersede,  # type: ignore[dict-item]
    "repeat": lambda u, j, row: effects.repeat(u, j, row, wanted(), "the provider ignores a repeated key", None),
    "commit": lambda u, j, row: effects.commit(u, j, row, b"1", "re_1", None),
    "fail": lambda u, j, row: effects.fail(u, j, row, NOT_DONE, None),
    "mark_unknown": lambda u, j, row: effects.mark_unknown(u, j, row, "TimeoutError", "no answer"),
    "release": lambda u, j, row: effects.release(u, j, row, "not there"),
    "reject": lambda u, j, row: effects.reject(u, j, row, "fraud", None, "mia"),
    "extend": lambda u, j, row: effects.extend(u, row, LEASE_US),
}
SPECIAL = {"claim", "commit_late", "duplicate"}
"""These are decided by other functions, which have tests of their own below."""

EVENTS = {
    "refuse": "tool_refused",
    "answer": "tool_succeeded",
    "repeat": "tool_called",
    "commit": "tool_succeeded",
    "fail": "tool_failed",
    "mark_unknown": "tool_unknown",
    "release": "tool_failed",
    "reject": "tool_failed",
    "claim": "tool_called",
}
"""The others come with an event of their review, or extend a claim, which is none."""


class Try(msgspec.Struct):
    """An effect of a new job is brought into a state, then something is tried. Outcome: what `then` returns."""

    job_id: str
    state: str
    then: Callable[[Unit, JobRow, EffectRow | None], Any]
    runtime: str = "python"

    def locks(self) -> list[object]:
        return []

    def decide(self, unit: Unit) -> Any:
        new = msgspec.structs.replace(newjob(self.job_id), job_id=self.job_id, runtime=self.runtime)
        job, _ = open_job(unit, new)
        unit.lock([(EFFECT, (job.tenant_id, KEY))])
        row = None
        for name in REACH[self.state]:
            if name == "claim":
                assert claimed(unit, job).verdict == "run"
            else:
                CALLS[name](unit, job, row)
            row = row_of(unit, job)
        assert (row.state if row is not None else "none") == self.state
        return self.then(unit, job, row)


def tried(store: Store, state: str, then: Any, **options: Any) -> Any:
    return store.commit_blocking(Try(new_id("job"), state, then, **options))


@pytest.mark.parametrize("name", CALLS)
def test_transition_table_is_what_the_code_allows(store: Store, name: str) -> None:
    allowed = TRANSITIONS[name]

    def attempt(unit: Unit, job: JobRow, row: EffectRow | None) -> str | None:
        seq, before = job.last_seq, msgspec.structs.astuple(row) if row is not None else None
        try:
            CALLS[name](unit, job, row)
        except Conflict:
            after = msgspec.structs.astuple(row) if row is not None else None
            assert (job.last_seq, after) == (seq, before), "a refused transition changes nothing"
            return None
        assert job.last_seq - seq == (name in EVENTS), "one event, or that of the review"
        held = unit.get(EFFECT, (job.tenant_id, KEY))
        return "none" if held is None else held.state

    for state in ("none", *EFFECT_STATES):
        if state == "none" and name not in {"refuse", "wait"}:
            continue  # there is no row to change
        reached = tried(store, state, attempt)
        assert (reached is not None) == (state in allowed.sources), (name, state)
        assert reached is None or reached in allowed.targets


VERDICTS = {
    "none": "run",
    "waiting": "waiting",
    "approved": "run",
    "expired": "expired",
    "claimed": "in_progress",
    "committed": "committed",
    "failed": "run",
    "unknown": "unknown",
    "released": "run",
    "rejected": "rejected",
}


@pytest.mark.parametrize("state", VERDICTS)
def test_claim_answers_in_every_state(store: Store, state: str) -> None:
    assert set(VERDICTS) == {"none", *EFFECT_STATES}

    def again(unit: Unit, job: JobRow, row: EffectRow | None) -> tuple[str, str]:
        result = claimed(unit, job)
        return result.verdict, result.row.state

    def in_a_new_attempt(unit: Unit, job: JobRow, row: EffectRow | None) -> str:
        job.attempt += 1
        return claimed(unit, job).verdict

    verdict, reached = tried(store, state, again)
    assert verdict == VERDICTS[state]
    assert reached == ("claimed" if verdict == "run" else state)
    later = {"claimed": "unknown", "expired": "run", "rejected": "run"}
    assert tried(store, state, in_a_new_attempt) == later.get(state, verdict)
    later["rejected"] = "rejected"  # an external program begins a new attempt at every start
    assert tried(store, state, in_a_new_attempt, runtime="foreign") == later.get(state, verdict)


def test_every_transition_and_state_is_covered() -> None:
    assert {*CALLS, *SPECIAL} == set(TRANSITIONS)
    states = {"none", *EFFECT_STATES}
    for each in TRANSITIONS.values():
        assert each.sources <= states
        assert each.targets <= states
    reached = {state for each in TRANSITIONS.values() for state in each.targets}
    assert reached == states


@pytest.mark.parametrize("state", ["waiting", "approved", "claimed", "committed", "unknown"])
def test_other_arguments_conflict_once_it_has_begun(store: Store, state: str) -> None:
    def other(unit: Unit, job: JobRow, row: EffectRow | None) -> None:
        assert effects.is_outdated(row, "b") == (state in {"waiting", "approved"})
        with pytest.raises(Conflict, match="use another key for other arguments"):
            claimed(unit, job, digest="b")

    tried(store, state, other)


# ── tokens and expiry ────────────────────────────────────────────────────────────────────────────────────────────────


def token_claim(unit: Unit, job: JobRow, digest: bytes, owner: str = "p7") -> str:
    return claimed(unit, job, owner=owner, claim_digest=digest, lease_us=LEASE_US).verdict


def test_same_holder_extends_and_another_waits(store: Store) -> None:
    def act(unit: Unit, job: JobRow, row: EffectRow | None) -> None:
        assert token_claim(unit, job, DIGEST) == "run"
        held, seq = row_of(unit, job), job.last_seq
        assert held.expires_at == unit.now + LEASE_US
        assert effects.claim_of(held, TOKEN) == "current"
        unit.now += 1000
        assert token_claim(unit, job, OTHER_DIGEST, "p8") == "in_progress"
        assert token_claim(unit, job, OTHER_DIGEST) == "run"
        assert held.expires_at == unit.now + LEASE_US
        assert (effects.claim_of(held, OTHER_TOKEN), effects.claim_of(held, TOKEN)) == ("current", "current")
        assert effects.claim_of(held, "clm_" + "0" * 64) is None
        assert job.last_seq == seq, "an extension is no event"

    tried(store, "none", act)


def test_expired_claim_is_unknown_also_for_its_holder(store: Store) -> None:
    def act(unit: Unit, job: JobRow, row: EffectRow | None) -> None:
        token_claim(unit, job, DIGEST)
        held = row_of(unit, job)
        assert not effects.mark_expired(unit, job, held)
        unit.now += LEASE_US
        assert token_claim(unit, job, OTHER_DIGEST) == "unknown"
        assert (held.state, held.expires_at) == ("unknown", None)
        assert effects.claim_of(held, TOKEN) == "current", "its holder may still report"

    tried(store, "none", act)


def test_newer_attempt_makes_a_claim_unknown(store: Store) -> None:
    def act(unit: Unit, job: JobRow, row: EffectRow | None) -> None:
        token_claim(unit, job, DIGEST)
        job.attempt += 1
        assert token_claim(unit, job, OTHER_DIGEST) == "unknown"

    tried(store, "none", act)


# ── late reports ─────────────────────────────────────────────────────────────────────────────────────────────────────


def done(unit: Unit, job: JobRow, row: EffectRow | None, provider_id: str | None, **facts: Any) -> str:
    assert row is not None
    return effects.report_done(unit, job, row, b'"r"', provider_id, **({"is_current": False} | facts))


@pytest.mark.parametrize("state", sorted(TRANSITIONS["commit_late"].sources))
def test_late_report_commits_whatever_was_thought(store: Store, state: str) -> None:
    def act(unit: Unit, job: JobRow, row: EffectRow | None) -> None:
        assert done(unit, job, row, "re_1") == "recorded"
        assert row is not None
        assert (row.state, row.provider_id, row.source) == ("committed", "re_1", "reported")
        seq = job.last_seq
        assert done(unit, job, row, "re_1") == "repeated"
        assert job.last_seq == seq

    tried(store, state, act)


async def test_late_report_with_another_id_is_a_duplicate(store: Store) -> None:
    def act(unit: Unit, job: JobRow, row: EffectRow | None) -> str:
        assert done(unit, job, row, "re_2") == "duplicated"
        assert row is not None
        assert (row.state, row.provider_id) == ("committed", "re_1"), "the first one stays"
        return job.job_id

    job_id = tried(store, "committed", act)
    events = await Ledger(store).events(job_id)
    assert [each.facts.event for each in events[-2:]] == ["tool_duplicated", "review_requested"]
    event = events[-2].facts
    assert event.detail is not None
    assert event.detail["provider_ids"] == ["re_1", "re_2"]


@pytest.mark.parametrize("end", ["same id", "other id", "failed", "unknown", "expired"])
def test_late_report_while_another_holds_the_claim(store: Store, end: str) -> None:
    """Its word is kept until the second call ends: whatever that comes to, the effect was done."""

    def act(unit: Unit, job: JobRow, row: EffectRow | None) -> None:
        token_claim(unit, job, DIGEST)
        held = row_of(unit, job)
        unit.now += LEASE_US
        effects.mark_expired(unit, job, held)
        effects.release(unit, job, held, "not there yet")
        assert token_claim(unit, job, OTHER_DIGEST, "p8") == "run"
        assert done(unit, job, held, "re_1") == "duplicated"
        assert done(unit, job, held, "re_1") == "repeated"
        assert held.state == "claimed"
        if end in {"same id", "other id"}:
            known = "re_1" if end == "same id" else "re_2"
            verdict = done(unit, job, held, known, is_current=True, source="executed")
            assert verdict == ("recorded" if end == "same id" else "duplicated")
            assert held.provider_id == known
        elif end == "failed":
            assert effects.report_not_done(unit, job, held, NOT_DONE, is_current=True) == "recorded"
        elif end == "unknown":
            assert effects.report_unknown(unit, job, held, "TimeoutError", "no answer", is_current=True) == "recorded"
        else:
            unit.now += LEASE_US
            assert token_claim(unit, job, DIGEST, "p9") == "committed"
        assert held.state == "committed"
        assert held.provider_id is not None

    tried(store, "none", act)


def test_late_no_says_nothing_about_another_call(store: Store) -> None:
    def act(unit: Unit, job: JobRow, row: EffectRow | None) -> None:
        assert row is not None
        seq = job.last_seq
        assert effects.report_not_done(unit, job, row, NOT_DONE, is_current=False) == "stale"
        assert effects.report_unknown(unit, job, row, "x", "y", is_current=False) == "stale"
        assert (row.state, job.last_seq) == ("claimed", seq)

    tried(store, "claimed", act)


def test_holder_of_the_last_claim_may_still_say_that_nothing_was_done(store: Store) -> None:
    def act(unit: Unit, job: JobRow, row: EffectRow | None) -> None:
        assert row is not None
        assert effects.report_not_done(unit, job, row, NOT_DONE, is_current=True) == "recorded"
        assert row.state == "failed"
        assert effects.report_not_done(unit, job, row, NOT_DONE, is_current=True) == "repeated"

    tried(store, "unknown", act)


# ── approvals ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_edited_approval_is_claimed_with_the_edited_arguments(store: Store) -> None:
    def act(unit: Unit, job: JobRow, row: EffectRow | None) -> str:
        assert row is not None
        effects.approve(unit, job, row, "mia", "edited")
        with pytest.raises(Conflict, match="edited arguments"):
            claimed(unit, job)
        assert row.state == "approved"
        assert claimed(unit, job, done_arguments=b'{"to":"bob"}').verdict == "run"
        assert (row.arguments_sha256, row.done_sha256, row.approval_id) == ("a", "edited", "rev_1")
        return job.job_id

    job_id = tried(store, "waiting", act)
    event = (await Ledger(store).events(job_id))[-1]
    assert (event.facts.event, event.content) == ("tool_called", b'{"to":"bob"}')


def test_superseded_approval_permits_nothing(store: Store) -> None:
    def act(unit: Unit, job: JobRow, row: EffectRow | None) -> None:
        assert row is not None
        assert effects.supersede(unit, job, row) == "rev_1"
        assert (row.state, row.approval_id, row.done_sha256) == ("released", None, None)

    tried(store, "approved", act)
