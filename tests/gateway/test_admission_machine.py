"""Admission against a simple model: many scopes, days, months and rates are never exceeded."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from machine_parts import examples, rows
from overnight.budgets import (
    FLOOR_TOKENS,
    RESERVATION,
    Booked,
    BudgetJob,
    Call,
    Caller,
    Policy,
    ReservationGrant,
    TopUp,
    Wait,
    reserve,
    resolve_top_up,
    settle,
)
from overnight.budgets import locks as rows_of
from overnight.domain import BudgetStopped
from overnight.domain.policies import BudgetLimit, Budgets, RateLimit
from overnight.store import Store, Unit, open_store

BERLIN = ZoneInfo("Europe/Berlin")
START = int(datetime(2026, 10, 24, 22, 30, tzinfo=BERLIN).timestamp()) * 1_000_000
"""The night the clocks are put back."""
TENANTS, AGENTS, JOBS = ("one", "two"), ("support", "sales"), ("root", "child", "other")
LINEAGE = {"root": ("root",), "child": ("root", "child"), "other": ("other",)}


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


class Priced:
    """Input and output tokens at prices of their own."""

    def __init__(self, prompt_tokens: int, price: int, wanted_tokens: int) -> None:
        self.prompt_tokens, self.price, self.wanted_tokens, self.choices = prompt_tokens, price, wanted_tokens, 1

    def bound_microusd(self, tokens: int) -> int:
        return (self.prompt_tokens + tokens) * self.price

    def affordable_tokens(self, available_microusd: int) -> int:
        if not self.price:
            return 1 << 40
        return available_microusd // self.price - self.prompt_tokens


class Reserve(msgspec.Struct):
    call: Call
    policy: Policy
    who: Caller
    demand: Any
    now: int

    def locks(self) -> list[Any]:
        return rows_of(self.who.tenant_id, self.policy.limits(self.who, self.now), self.policy.rates(self.who))

    def decide(self, unit: Unit) -> ReservationGrant | Wait:
        limits = self.policy.limits(self.who, unit.now)
        return reserve(unit, self.call, limits, self.demand, self.policy.rates(self.who))


class Settle(msgspec.Struct):
    call_id: str
    cost: int | None
    tokens: int

    def locks(self) -> list[Any]:
        return [(RESERVATION, self.call_id)]

    def decide(self, unit: Unit) -> Booked:
        return settle(unit, self.call_id, self.cost, self.tokens)


class Counted:
    """One budget of the model."""

    def __init__(self) -> None:
        self.money = self.tokens = self.calls = self.money_held = self.tokens_held = 0
        self.extra: dict[str, int] = defaultdict(int)


class Bucket:
    """One rate of the model: what is left of a minute's worth, and when that was so."""

    def __init__(self, now: int) -> None:
        self.requests: Fraction | None = None
        self.tokens: Fraction | None = None
        self.at, self.flying = now, 0


budget_limits = st.lists(
    st.builds(
        BudgetLimit,
        scope=st.sampled_from(["tenant", "agent", "job", "session", "workflow", "key", "step"]),
        per=st.sampled_from(["total", "day", "month"]),
        max_cost_microusd=st.sampled_from([None, 3_000, 20_000]),
        max_tokens=st.sampled_from([None, 2_000, 9_000]),
        max_llm_calls=st.sampled_from([None, 2, 6]),
    ),
    max_size=4,
)
rate_limits = st.lists(
    st.builds(
        RateLimit,
        scope=st.sampled_from(["tenant", "agent", "key", "target"]),
        requests_per_minute=st.sampled_from([None, 1, 2, 3]),
        tokens_per_minute=st.sampled_from([None, 1_000, 6_000]),
        concurrency=st.sampled_from([None, 1, 3]),
    ),
    max_size=2,
)
demands = st.builds(Priced, st.sampled_from([0, 10, 300]), st.sampled_from([0, 1, 3]), st.sampled_from([1, 100, 1000]))


class Admissions(RuleBasedStateMachine):
    """Two tenants with agents and jobs; a fake clock that walks over midnight, the end of the month, and summer time's end."""

    calls = Bundle("calls")
    numbers = itertools.count()

    def __init__(self, stores: Sequence[Store], clock: Clock, url: str) -> None:
        super().__init__()
        self.stores, self.clock, self.url = stores, clock, url
        self.run = next(self.numbers)
        clock.now = START
        self.counted: dict[tuple[str, ...], Counted] = defaultdict(Counted)
        self.buckets: dict[tuple[str, ...], Bucket] = {}
        self.open: dict[str, Any] = {}

    @initialize(limits=budget_limits, rates=rate_limits, per_job=st.sampled_from([None, 4_000]))
    def set_up(self, limits: list[BudgetLimit], rates: list[RateLimit], per_job: int | None) -> None:
        self.limits, self.rates, self.per_job = limits, rates, per_job
        zones = {self.mine("two"): "Asia/Tokyo"}
        budgets = Budgets(per_job, time_zone="Europe/Berlin", time_zones=zones, limits=tuple(limits))
        self.policy = Policy(budgets, rates)

    def mine(self, name: str) -> str:
        """Every run has names of its own, in one store."""
        return f"{name}{self.run}"

    def label(self, tenant: str, per: str) -> str:
        zone = ZoneInfo("Asia/Tokyo") if tenant == self.mine("two") else BERLIN
        date = datetime.fromtimestamp(self.clock.now / 1_000_000, zone).date().isoformat()
        return {"total": "", "day": date, "month": date[:7]}[per]

    def caller(self, tenant: str, agent: str, job: str) -> Caller:
        kin = tuple(BudgetJob(f"{self.mine(each)}-{tenant}", each) for each in LINEAGE[job])
        names = {"session": self.mine("chat"), "workflow": None, "step": "draft", "key": self.mine("key")}
        return Caller(self.mine(tenant), kin, self.mine(agent), target=self.mine("model"), **names)

    # ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────

    def applying(self, who: Caller) -> dict[tuple[str, ...], list[BudgetLimit]]:
        """Every budget that holds, by its row in the model."""
        found: dict[tuple[str, ...], list[BudgetLimit]] = {}
        for kin in who.jobs:
            own = BudgetLimit(scope="job", max_cost_microusd=self.per_job)
            found[who.tenant_id, "job", kin.job_id, ""] = [own]
        whose = {
            "tenant": [who.tenant_id],
            "agent": [who.agent],
            "session": [who.session],
            "workflow": [who.workflow],
            "key": [who.key],
            "job": [kin.job_id for kin in who.jobs],
            "step": [f"{who.jobs[-1].job_id}/{who.step}"],
        }
        for limit in self.limits:
            for name in whose[limit.scope]:
                if name is not None:
                    key = (who.tenant_id, limit.scope, name, self.label(who.tenant_id, limit.per))
                    found.setdefault(key, []).append(limit)
        return found

    def passing(self, who: Caller) -> dict[tuple[str, ...], list[RateLimit]]:
        whose = {
            "tenant": (who.tenant_id, who.tenant_id),
            "agent": (who.tenant_id, who.agent),
            "key": (who.tenant_id, who.key),
            "target": ("", who.target),
        }
        found: dict[tuple[str, ...], list[RateLimit]] = {}
        for limit in self.rates:
            tenant, name = whose[limit.scope]
            found.setdefault((tenant, limit.scope, name or ""), []).append(limit)
        return found

    def fill(self, key: tuple[str, ...], limits: list[RateLimit]) -> tuple[Bucket, int | None, int | None]:
        """The bucket as it is now, and how much it holds of requests and tokens."""
        bucket = self.buckets.setdefault(key, Bucket(self.clock.now))
        requests = min((each.requests_per_minute for each in limits if each.requests_per_minute), default=None)
        tokens = min((each.tokens_per_minute for each in limits if each.tokens_per_minute), default=None)
        passed = Fraction(self.clock.now - bucket.at, 60_000_000)
        bucket.at = self.clock.now
        if requests is not None:
            held = Fraction(requests) if bucket.requests is None else bucket.requests
            bucket.requests = min(Fraction(requests), held + passed * requests)
        if tokens is not None:
            held = Fraction(tokens) if bucket.tokens is None else bucket.tokens
            bucket.tokens = min(Fraction(tokens), held + passed * tokens)
        return bucket, requests, tokens

    def verdict(self, who: Caller, demand: Priced) -> Any:
        """ "stop", "wait", or the output tokens that are granted."""
        floor = min(FLOOR_TOKENS, demand.wanted_tokens)
        granted, waits = demand.wanted_tokens, False
        for key, limits in self.applying(who).items():
            counted = self.counted[key]
            for limit in limits:
                if limit.max_llm_calls is not None and counted.calls >= limit.max_llm_calls + counted.extra["calls"]:
                    return "stop"
                for what, most, spent, held, price in (
                    ("money", limit.max_cost_microusd, counted.money, counted.money_held, demand.price),
                    ("tokens", limit.max_tokens, counted.tokens, counted.tokens_held, 1),
                ):
                    if most is None or not price:
                        continue
                    room = most + counted.extra[what]
                    if (demand.prompt_tokens + floor) * price > room - spent:
                        return "stop"
                    fits = (room - spent - held) // price - demand.prompt_tokens
                    waits = waits or fits < floor
                    granted = min(granted, fits)
        if waits:
            return "wait"
        bound = demand.prompt_tokens + granted
        for key, limits in self.passing(who).items():
            bucket, _, tokens = self.fill(key, limits)
            if any(each.concurrency is not None and bucket.flying >= each.concurrency for each in limits):
                return "wait"
            if bucket.requests is not None and bucket.requests < 1:
                return "wait"
            if tokens is not None and bucket.tokens is not None and bucket.tokens < min(bound, tokens):
                return "wait"
        return granted

    # ── what happens ─────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(
        target=calls,
        tenant=st.sampled_from(TENANTS),
        agent=st.sampled_from(AGENTS),
        job=st.sampled_from(JOBS),
        demand=demands,
        mine=st.booleans(),
    )
    def call(self, tenant: str, agent: str, job: str, demand: Priced, mine: bool) -> Any:
        who = self.caller(tenant, agent, job)
        wanted = self.verdict(who, demand)
        call_id = f"call-{next(self.numbers)}"
        call = Call(call_id, who.tenant_id, who.jobs[-1].job_id, "process", "{}")
        command = Reserve(call, self.policy, who, demand, self.clock.now)
        try:
            outcome = self.stores[mine].commit_blocking(command)
        except BudgetStopped as stop:
            return multiple() if wanted == "stop" else pytest.fail(f"{stop} instead of {wanted}")
        if isinstance(outcome, Wait):
            assert wanted == "wait", outcome
            assert outcome.until is None or self.clock.now < outcome.until <= self.clock.now + 600_000_000
            return multiple()
        assert outcome.tokens == wanted
        assert outcome.amount_microusd == demand.bound_microusd(wanted)
        bound, amount = demand.prompt_tokens + wanted, outcome.amount_microusd
        for key in self.applying(who):
            counted = self.counted[key]
            counted.calls += 1
            counted.money_held += amount
            counted.tokens_held += bound
        took: dict[tuple[str, ...], int] = {}
        for key, limits in self.passing(who).items():
            bucket, _, tokens = self.fill(key, limits)
            bucket.flying += 1
            if bucket.requests is not None:
                bucket.requests -= 1
            if bucket.tokens is not None and tokens is not None:
                took[key] = min(bound, tokens)
                bucket.tokens -= took[key]
        self.open[call_id] = (who, list(self.applying(who)), amount, bound, took)
        return call_id

    @rule(
        call_id=consumes(calls),
        share=st.sampled_from([None, Fraction(0), Fraction(1, 2), Fraction(1)]),
        mine=st.booleans(),
    )
    def settle(self, call_id: str, share: Fraction | None, mine: bool) -> None:
        who, budgets, amount, bound, took = self.open.pop(call_id)
        cost, tokens = (amount, bound) if share is None else (int(amount * share), int(bound * share))
        self.stores[mine].commit_blocking(Settle(call_id, None if share is None else cost, tokens))
        for key in budgets:
            counted = self.counted[key]
            counted.money_held -= amount
            counted.tokens_held -= bound
            counted.money += cost
            counted.tokens += tokens
        for key, limits in self.passing(who).items():
            bucket, _, most = self.fill(key, limits)
            bucket.flying -= 1
            if bucket.tokens is not None and most is not None and share is not None and bound:
                bucket.tokens = min(Fraction(most), bucket.tokens + took[key] - tokens)

    @rule(seconds=st.sampled_from([1, 10, 30, 60, 3_600, 7_200, 86_400, 8 * 86_400]))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds * 1_000_000

    @rule(
        tenant=st.sampled_from(TENANTS),
        money=st.sampled_from([0, 2_000]),
        calls=st.sampled_from([1, 3]),
        which=st.integers(0),
    )
    def top_up(self, tenant: str, money: int, calls: int, which: int) -> None:
        fitting = [limit for limit in self.limits if limit.scope in {"tenant", "agent"}]
        if not fitting:
            return
        limit = fitting[which % len(fitting)]
        name = self.mine(tenant) if limit.scope == "tenant" else self.mine("support")
        wanted = TopUp(self.mine(tenant), limit.scope, name, "ann", "more", money, 0, calls)
        self.stores[0].commit_blocking(resolve_top_up(self.policy, wanted, limit.per, self.clock.now))
        counted = self.counted[self.mine(tenant), limit.scope, name, self.label(self.mine(tenant), limit.per)]
        counted.extra["money"] += money
        counted.extra["calls"] += calls

    @invariant()
    def holds(self) -> None:
        found: dict[tuple[str, ...], tuple[int, ...]] = {}
        names = ", ".join(f"'{self.mine(tenant)}'" for tenant in TENANTS)
        columns = "tenant_id, scope, scope_id, spent_microusd + bound_microusd, reserved_microusd, spent_tokens,"
        columns += " reserved_tokens, calls"
        for tenant, scope, row_id, *counts in rows(
            self.url, f"SELECT {columns} FROM budget WHERE tenant_id IN ({names})"
        ):
            name, _, window = row_id.partition("[")
            found[tenant, scope, name, window.rstrip("]")] = tuple(counts)
        for key, counted in self.counted.items():
            mine = (counted.money, counted.money_held, counted.tokens, counted.tokens_held, counted.calls)
            assert found.get(key, (0, 0, 0, 0, 0)) == mine, key
        for *key, flying in rows(self.url, "SELECT tenant_id, scope, scope_id, in_flight FROM rate"):
            if tuple(key) in self.buckets:
                assert flying == self.buckets[tuple(key)].flying


def test_admissions_agree_with_the_model(store_url: str) -> None:
    clock = Clock()
    with open_store(store_url, clock) as one, open_store(store_url, clock) as other:
        run_state_machine_as_test(
            lambda: Admissions((one, other), clock, store_url), settings=examples(30, 800, stateful_step_count=30)
        )


def test_rate_limit_is_a_token_bucket(store_url: str) -> None:
    clock, policy = Clock(), Policy(Budgets(), [RateLimit(scope="agent", requests_per_minute=3)])
    with open_store(store_url, clock) as store:

        def ask(name: str) -> ReservationGrant | Wait:
            call = Call(name, "t", "job", "process", "{}")
            return store.commit_blocking(Reserve(call, policy, Caller("t", agent="a"), Priced(0, 0, 1), clock.now))

        assert all(isinstance(ask(f"at once {number}"), ReservationGrant) for number in range(3))
        for turn in range(3):
            wait = ask("too early")
            assert isinstance(wait, Wait)
            assert (wait.what, wait.until) == ("requests", clock.now + 20_000_000)
            clock.now += 20_000_000
            assert isinstance(ask(f"later {turn}"), ReservationGrant)
        clock.now += 3_600_000_000
        assert [isinstance(ask(f"after a pause {number}"), ReservationGrant) for number in range(4)] == [
            True,
            True,
            True,
            False,
        ]


def berlin(*when: int) -> int:
    return int(datetime(*when, tzinfo=BERLIN).timestamp()) * 1_000_000


def test_day_ends_in_the_tenants_time_zone() -> None:
    """Both tenants call at one moment; it is another day in Tokyo."""
    limits = (BudgetLimit(scope="tenant", per="day", max_llm_calls=1),)
    policy = Policy(Budgets(time_zone="Europe/Berlin", time_zones={"two": "Asia/Tokyo"}, limits=limits))
    at = berlin(2026, 10, 24, 22, 0)
    assert [policy.limits(Caller(tenant), at)[0].scope_id for tenant in ("one", "two")] == [
        "one[2026-10-24]",
        "two[2026-10-25]",
    ]
    (limit,) = policy.limits(Caller("one"), berlin(2026, 10, 25, 0, 0))
    # That night has 25 hours.
    assert limit.resets_at == berlin(2026, 10, 25, 0, 0) + 25 * 3_600_000_000 == berlin(2026, 10, 26, 0, 0)


@pytest.mark.parametrize("name", ["x[2026-10-25]", "a b,c"])
def test_names_cannot_collide_with_day_keys(name: str) -> None:
    from overnight.domain import BadInput

    limits = (BudgetLimit(scope="agent", per="total", max_llm_calls=1),)
    policy = Policy(Budgets(limits=limits))
    with pytest.raises(BadInput):
        resolve_top_up(policy, TopUp("t", "agent", name, "ann", "", calls=1), None, START)
