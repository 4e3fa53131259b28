"""The table of effects against a trivial model: claims, approvals, expiry, late reports, on two connections at once."""

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from machine_parts import UnderJob, examples, make_job, rows
from overnight import effects
from overnight.domain import Conflict, ErrorFacts
from overnight.effects import EFFECT, EffectClaim, EffectRow
from overnight.ledger import JOB, JobRow
from overnight.store import Store, Unit, open_store

KEY = "mail"
LEASE_US = 3_600_000_000
HOLDERS = st.sampled_from(["p7", "p8"])
DIGESTS = st.sampled_from(["a", "a", "a", "b"])
IDS = st.sampled_from(["re_1", "re_2", None])
BEGUN = {"claimed", "committed", "unknown"}
RESULT = b'"r"'
NOT_DONE = ErrorFacts("Refused", "mailbox full")


DECISIONS = ["approve", "edit", "expire", "renew", "supersede", "reject", "answer", "release"]


def _transition(decision: str) -> str:
    return "approve" if decision == "edit" else decision


class Held(msgspec.Struct):
    """What the model knows of the effect."""

    state: str = "none"
    digest: str = ""
    edited: str | None = None
    holder: str = ""
    attempt: int = 0
    asked: int = 0
    token: str = ""
    reported: bool = False
    provider_id: str | None = None
    executions: int = 0
    """How often a holder was told to run it."""


class EffectTable(RuleBasedStateMachine):
    """One effect of one job. Holders claim by token, people decide, and everybody may report late."""

    numbers = itertools.count()

    def __init__(self, stores: tuple[Store, Store], url: str) -> None:
        super().__init__()
        self.stores, self.url = stores, url
        self.tenant = f"e{next(self.numbers)}"
        self.held = Held()
        self.attempt, self.reviews = 1, 0
        self.tokens: list[str] = []
        self.job_id = ""
        self.log: list[str] = []

    @initialize()
    def start(self) -> None:
        self.job_id = make_job(self.stores[0], self.tenant)

    def act(self, do: Callable[[Unit, JobRow, EffectRow | None], Any], mine: bool = True) -> Any:
        def under(unit: Unit, job: JobRow) -> Any:
            return do(unit, job, unit.get(EFFECT, (self.tenant, KEY)))

        return self.stores[mine].commit_blocking(UnderJob(self.job_id, under, [(EFFECT, (self.tenant, KEY))]))

    # ── claims ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(holder=HOLDERS, digest=DIGESTS, mine=st.booleans(), again=st.booleans())
    def claim(self, holder: str, digest: str, mine: bool, again: bool) -> None:
        held = self.held
        token, hashed = effects.new_claim_token()
        edited = b'{"to":"bob"}' if held.edited is not None and held.digest == digest else None
        wanted = EffectClaim(
            KEY, "send", b"{}", digest, holder, claim_digest=hashed, lease_us=LEASE_US, done_arguments=edited,
            asks_again=again,
        )  # fmt: skip

        def do(unit: Unit, job: JobRow, row: EffectRow | None) -> str:
            return effects.claim(unit, job, wanted, None).verdict

        if held.state in BEGUN | {"waiting", "approved"} and held.digest != digest:
            with pytest.raises(Conflict, match="use another key for other arguments"):
                self.act(do, mine)
            return
        verdict = self.act(do, mine)
        assert verdict == self.expected(holder, again)
        if verdict != "run":
            if held.state == "claimed" and verdict in {"unknown", "committed"}:
                held.state = verdict
            return
        self.tokens.append(token)
        if held.state != "claimed":
            if held.digest != digest:
                held.edited = None
            held.executions += 1
            held.reported, held.provider_id = False, None
        held.state, held.digest, held.holder, held.token = "claimed", digest, holder, token
        held.attempt, held.asked = self.attempt, self.attempt

    def expected(self, holder: str, again: bool) -> str:
        held = self.held
        match held.state:
            case "none" | "failed" | "released" | "approved":
                return "run"
            case "expired":
                return "run" if again or held.asked != self.attempt else "expired"
            case "rejected":
                return "run" if held.attempt != self.attempt else "rejected"
            case "claimed" if held.attempt != self.attempt:
                return "committed" if held.reported else "unknown"
            case "claimed":
                return "run" if held.holder == holder else "in_progress"
            case _:
                return held.state

    @rule()
    def newer_attempt(self) -> None:
        def under(unit: Unit, job: JobRow) -> None:
            job.attempt += 1
            unit.change(JOB, job)

        self.stores[0].commit_blocking(UnderJob(self.job_id, under))
        self.attempt += 1

    @precondition(lambda self: self.held.state == "claimed")
    @rule()
    def the_claim_expires(self) -> None:
        def do(unit: Unit, job: JobRow, row: EffectRow | None) -> None:
            assert row is not None
            assert row.expires_at is not None
            now, unit.now = unit.now, row.expires_at
            assert effects.mark_expired(unit, job, row)
            unit.now = now

        self.act(do)
        self.held.state = "committed" if self.held.reported else "unknown"

    # ── people ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: self.held.state in effects.TRANSITIONS["wait"].sources)
    @rule(digest=DIGESTS)
    def it_needs_approval(self, digest: str) -> None:
        held = self.held
        self.reviews += 1
        review_id = f"rev_{self.reviews}"
        wanted = EffectClaim(KEY, "send", b"{}", digest, "p7")
        self.act(lambda unit, job, row: effects.wait(unit, job, row, wanted, review_id) and None)
        held.state, held.digest, held.edited, held.asked, held.attempt = (
            "waiting",
            digest,
            None,
            self.attempt,
            self.attempt,
        )
        held.reported, held.provider_id = False, None

    @precondition(lambda self: self.held.state != "none")
    @rule(data=st.data(), mine=st.booleans())
    def somebody_decides(self, data: st.DataObject, mine: bool) -> None:
        held = self.held
        fitting = [name for name in DECISIONS if held.state in effects.TRANSITIONS[_transition(name)].sources]
        name = data.draw(st.sampled_from([*fitting * 4, *DECISIONS]))
        calls: dict[str, Callable[[Unit, JobRow, Any], Any]] = {
            "approve": lambda unit, job, row: effects.approve(unit, job, row, "mia"),
            "edit": lambda unit, job, row: effects.approve(unit, job, row, "mia", "edited"),
            "expire": effects.expire,
            "renew": lambda unit, job, row: effects.renew(unit, row),
            "supersede": lambda unit, job, row: effects.supersede(unit, job, row) and None,
            "reject": lambda unit, job, row: effects.reject(unit, job, row, "fraud", None, "mia"),
            "answer": lambda unit, job, row: effects.answer(unit, job, row, RESULT, None, "mia"),
            "release": lambda unit, job, row: effects.release(unit, job, row, "not there"),
        }
        transition = effects.TRANSITIONS[_transition(name)]
        if held.state not in transition.sources:
            with pytest.raises(Conflict):
                self.act(calls[name], mine)
            return
        self.act(calls[name], mine)
        (held.state,) = transition.targets
        if name in {"approve", "edit", "supersede"}:
            held.edited = "edited" if name == "edit" else None
        if name == "reject":
            held.attempt = self.attempt

    # ── reports ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: self.tokens)
    @rule(number=st.integers(0, 5), provider_id=IDS, mine=st.booleans())
    def a_holder_reports_done(self, number: int, provider_id: str | None, mine: bool) -> None:
        held, token = self.held, self.tokens[-1 - number % len(self.tokens)]

        def do(unit: Unit, job: JobRow, row: EffectRow | None) -> tuple[str, str | None]:
            assert row is not None
            standing = effects.claim_of(row, token)
            if standing is None:  # forgotten, after many claims
                return "forgotten", None
            current = standing == "current"
            return effects.report_done(unit, job, row, RESULT, provider_id, is_current=current), standing

        verdict, standing = self.act(do, mine)
        if verdict == "forgotten":
            assert len(self.tokens) > 8
            return
        current = standing == "current"
        if held.state == "claimed" and current:
            other = held.reported and held.provider_id != provider_id
            assert verdict == ("duplicated" if other else "recorded")
            held.state, held.provider_id = "committed", provider_id
        elif held.state == "claimed":
            same = held.reported and held.provider_id == provider_id
            assert verdict == ("repeated" if same else "duplicated")
            if not held.reported:
                held.reported, held.provider_id = True, provider_id
        elif held.state == "committed":
            assert verdict in {"repeated", "duplicated"}
            if verdict == "repeated":
                assert provider_id == held.provider_id or provider_id is None
            else:
                assert provider_id != held.provider_id or not current
        else:
            assert verdict == "recorded"
            held.state, held.provider_id = "committed", provider_id

    @precondition(lambda self: self.tokens)
    @rule(number=st.integers(0, 5), unknown=st.booleans())
    def a_holder_reports_no_result(self, number: int, unknown: bool) -> None:
        held, token = self.held, self.tokens[-1 - number % len(self.tokens)]

        def do(unit: Unit, job: JobRow, row: EffectRow | None) -> tuple[str, bool]:
            assert row is not None
            current = effects.claim_of(row, token) == "current"
            if unknown:
                return effects.report_unknown(unit, job, row, "timeout", "no answer", is_current=current), current
            return effects.report_not_done(unit, job, row, NOT_DONE, is_current=current), current

        verdict, current = self.act(do)
        wanted = "unknown" if unknown else "failed"
        if held.state == wanted:
            assert verdict == "repeated"
        elif current and (held.state == "claimed" or (held.state == "unknown" and not unknown)):
            assert verdict == "recorded"
            held.state = "committed" if held.state == "claimed" and held.reported else wanted
        else:
            assert verdict == "stale"

    @precondition(lambda self: self.held.state == "unknown")
    @rule()
    def it_is_repeated(self) -> None:
        token, hashed = effects.new_claim_token()
        edited = b"{}" if self.held.edited is not None else None
        wanted = EffectClaim(
            KEY, "send", b"{}", self.held.digest, "p7", claim_digest=hashed, lease_us=LEASE_US, done_arguments=edited
        )
        self.act(lambda unit, job, row: effects.repeat(unit, job, row, wanted, "same key", None) if row else None)
        self.tokens.append(token)
        self.held.state, self.held.holder, self.held.token, self.held.attempt = "claimed", "p7", token, self.attempt
        self.held.reported, self.held.provider_id = False, None

    # ── what holds ───────────────────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def row_agrees(self) -> None:
        sql = (
            "SELECT state, arguments_sha256, done_sha256, provider_id, result, expires_at"
            f" FROM effect WHERE tenant_id = '{self.tenant}'"
        )
        found = rows(self.url, sql)
        held = self.held
        if not found:
            assert held.state == "none"
            return
        state, digest, done, provider_id, result, expires_at = found[0]
        assert (state, digest) == (held.state, held.digest)
        if state in {"approved", "claimed"}:
            assert done == held.edited
        assert (expires_at is not None) == (state == "claimed")
        if state == "committed":
            assert result is not None
            assert provider_id == held.provider_id
        if state not in {"committed", "claimed"}:
            assert result is None


def test_effect_table_agrees_with_the_model(store_url: str) -> None:
    with open_store(store_url) as one, open_store(store_url) as other:
        run_state_machine_as_test(
            lambda: EffectTable((one, other), store_url), settings=examples(40, 1500, stateful_step_count=60)
        )
