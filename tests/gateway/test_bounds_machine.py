"""Costs and bounds against a simple model: limits hold, and corrections go to the booked day."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ends import check_ends
from machine_parts import examples, rows
from overnight.budgets import (
    Booked,
    BudgetJob,
    Call,
    Caller,
    Policy,
    ReservationGrant,
    TopUp,
    Wait,
    correct_cost,
    estimate_of,
    list_bounds,
    reserve,
    resolve_top_up,
)
from overnight.budgets import locks as rows_of
from overnight.domain import BudgetStopped, Conflict, Event, NotFound
from overnight.domain.policies import BudgetLimit, Budgets
from overnight.gateway.admission.attempt_result import AttemptResult
from overnight.gateway.admission.commands import SettleLost
from overnight.gateway.admission.settlement import write_result
from overnight.ledger import JOB, Ledger, NewJob, append, locked_job, open_job
from overnight.store import Store, Unit, open_store
from overnight.story import build_timeline, load_job_tree

START = int(datetime(2026, 10, 31, 23, 59, tzinfo=UTC).timestamp()) * 1_000_000
JOBS, AGENTS = ("root", "child"), ("support", "sales")
LIMITS = {"job": 9_000, "agent": 12_000, "tenant": 30_000}


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


class Tokens:
    """A demand of a micro-dollar a token."""

    prompt_tokens, choices = 10, 1

    def __init__(self, wanted_tokens: int) -> None:
        self.wanted_tokens = wanted_tokens

    def bound_microusd(self, tokens: int) -> int:
        return self.prompt_tokens + tokens

    def affordable_tokens(self, available_microusd: int) -> int:
        return available_microusd - self.prompt_tokens


class Do(msgspec.Struct):
    """A command made of its parts."""

    needs: Any
    act: Any

    def locks(self) -> list[Any]:
        return self.needs

    def decide(self, unit: Unit) -> Any:
        return self.act(unit)


class Made:
    """One call of the model: what it holds, or what it is booked at, in which rows."""

    def __init__(self, job: str, keys: list[tuple[str, ...]], amount: int) -> None:
        self.job, self.keys, self.held = job, keys, amount
        self.amount, self.cost, self.bound, self.kept = amount, 0, 0, False
        self.state, self.source = "open", ""


class Bounds(RuleBasedStateMachine):
    """A parent and a child job of two agents; a clock that walks over midnight and the end of the month."""

    numbers = itertools.count()

    def __init__(self, stores: Sequence[Store], clock: Clock, url: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.stores, self.clock, self.url, self.wait = stores, clock, url, loop.run_until_complete
        self.tenant = f"tenant{next(self.numbers)}"
        clock.now = START
        self.calls: dict[str, Made] = {}
        self.extra: dict[tuple[str, ...], int] = defaultdict(int)
        limits = (
            BudgetLimit(scope="agent", per="day", max_cost_microusd=LIMITS["agent"]),
            BudgetLimit(scope="tenant", per="month", max_cost_microusd=LIMITS["tenant"]),
        )
        self.policy = Policy(Budgets(LIMITS["job"], limits=limits))

    @initialize()
    def open_jobs(self) -> None:
        def act(unit: Unit) -> None:
            for name in JOBS:
                parent = None if name == "root" else self.id("root")
                new = NewJob(self.id(name), self.tenant, "foreign", name, parent_job_id=parent, state="running")
                open_job(unit, new)

        self.stores[0].commit_blocking(Do([(JOB, self.id(name)) for name in JOBS], act))

    def id(self, name: str) -> str:
        return f"{self.tenant}-{name}"

    def label(self, per: str) -> str:
        date = datetime.fromtimestamp(self.clock.now / 1_000_000, UTC).date().isoformat()
        return {"day": date, "month": date[:7]}[per]

    def keys(self, job: str, agent: str) -> list[tuple[str, ...]]:
        jobs = ("root",) if job == "root" else JOBS
        found = [("job", self.id(each)) for each in jobs]
        return [*found, ("agent", f"{agent}[{self.label('day')}]"), ("tenant", f"{self.tenant}[{self.label('month')}]")]

    def most(self, key: tuple[str, ...]) -> int:
        return LIMITS[key[0]] + self.extra[key]

    def total(self, key: tuple[str, ...]) -> tuple[int, int, int]:
        """Spent, bound and reserved of a row."""
        mine = [made for made in self.calls.values() if key in made.keys]
        return sum(made.cost for made in mine), sum(made.bound for made in mine), sum(made.held for made in mine)

    def chosen(self, which: int, *states: str) -> tuple[str, Made] | None:
        fitting = [(call_id, made) for call_id, made in self.calls.items() if made.state in states]
        return fitting[which % len(fitting)] if fitting else None

    # ── what happens ─────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(
        job=st.sampled_from(JOBS),
        agent=st.sampled_from(AGENTS),
        wanted=st.sampled_from([100, 1000, 4000]),
        mine=st.booleans(),
    )
    def call(self, job: str, agent: str, wanted: int, mine: bool) -> None:
        jobs = ("root",) if job == "root" else JOBS
        who = Caller(self.tenant, tuple(BudgetJob(self.id(each), each) for each in jobs), agent)
        limits = self.policy.limits(who, self.clock.now)
        called = Event("model_called", call_id=f"call-{next(self.numbers)}", model="m", provider="p", route="r")
        called.agent_id, called.step, called.session_id = agent, "draft", "chat"
        call_id = called.call_id or ""
        call = Call(call_id, self.tenant, self.id(job), "process", estimate_of(called))

        def act(unit: Unit) -> ReservationGrant | Wait:
            granted = reserve(unit, call, limits, Tokens(wanted))
            if isinstance(granted, ReservationGrant):
                append(unit, locked_job(unit, self.id(job)), msgspec.structs.replace(called))
            return granted

        keys = self.keys(job, agent)
        floor = min(256, wanted)
        room = min(self.most(key) - sum(self.total(key)[:2]) - 10 for key in keys)
        free = min(self.most(key) - sum(self.total(key)) - 10 for key in keys)
        try:
            outcome = self.stores[mine].commit_blocking(Do([(JOB, self.id(job)), *rows_of(self.tenant, limits)], act))
        except BudgetStopped as stop:
            outcome = stop
        if isinstance(outcome, BudgetStopped):
            assert room < floor, outcome
            self.says_which(outcome)
        elif isinstance(outcome, Wait):
            assert free < floor <= room
        else:
            assert outcome.tokens == min(wanted, free)
            self.calls[call_id] = Made(job, keys, outcome.amount_microusd)

    def says_which(self, stop: BudgetStopped) -> None:
        """The calls of unknown cost that are in the way."""
        assert stop.bound_microusd == self.total((stop.scope, stop.scope_id))[1]
        named = {call_id: bound for call_id, _, bound, _ in stop.bounds}
        assert bool(named) == bool(stop.bound_microusd)
        assert named.items() <= {each: made.bound for each, made in self.calls.items()}.items()
        assert all(each in str(stop) for each in named)

    def write(self, call_id: str, made: Made, cost: int | None, bound: int, name: str, mine: bool) -> Any:
        event = Event(name, call_id=call_id, model="m", provider="p", kind="model")
        event.input_tokens, event.output_tokens = 3, 4
        spent = AttemptResult(call_id, event, "m", (3, 0, 4), cost, b'{"answer": 1}', bound_microusd=bound)
        subject: Any = SimpleNamespace(attempt=1, fingerprint=None)

        def act(unit: Unit) -> Any:
            return write_result(unit, locked_job(unit, self.id(made.job)), spent, subject)

        needs = [(JOB, self.id(made.job)), *spent.locks()]
        return self.stores[mine].commit_blocking(Do(needs, act))

    outcomes = st.sampled_from([(None, 0), (0, 0), (1, 0), (2, 0), (1, 1), (0, 2)])
    """Halves of the reservation: known cost (None: unknown) and bound."""

    @precondition(lambda self: self.chosen(0, "open"))
    @rule(which=st.integers(0), halves=outcomes, failed=st.booleans(), mine=st.booleans())
    def settle(self, which: int, halves: tuple[int | None, int], failed: bool, mine: bool) -> None:
        call_id, made = self.chosen(which, "open") or ("", Made("", [], 0))
        half = made.amount // 2
        cost, bound = None if halves[0] is None else half * halves[0], half * halves[1]
        recorded = self.write(call_id, made, cost, bound, "model_failed" if failed else "model_succeeded", mine)
        made.state, made.held = "settled", 0
        made.cost, made.bound = (0, made.amount) if cost is None else (cost, bound)
        made.kept = made.bound > 0
        assert (recorded.facts.cost_microusd, recorded.facts.bound_microusd or 0) == (made.cost, made.bound)

    @precondition(lambda self: self.chosen(0, "open"))
    @rule(which=st.integers(0), mine=st.booleans())
    def lose(self, which: int, mine: bool) -> None:
        call_id, made = self.chosen(which, "open") or ("", Made("", [], 0))
        assert self.stores[mine].commit_blocking(SettleLost(call_id, self.id(made.job), "its worker was lost"))
        assert not self.stores[not mine].commit_blocking(SettleLost(call_id, self.id(made.job), "again"))
        made.state, made.held, made.bound, made.kept = "lost", 0, made.amount, True

    @precondition(lambda self: self.chosen(0, "lost"))
    @rule(which=st.integers(0), halves=outcomes, failed=st.booleans(), mine=st.booleans())
    def answers_late(self, which: int, halves: tuple[int | None, int], failed: bool, mine: bool) -> None:
        call_id, made = self.chosen(which, "lost") or ("", Made("", [], 0))
        half = made.amount // 2
        cost, bound = None if halves[0] is None else half * halves[0], half * halves[1]
        recorded = self.write(call_id, made, cost, bound, "model_failed" if failed else "model_succeeded", mine)
        made.state = "late"
        if made.source != "person" and cost is not None:
            made.cost, made.bound = cost, bound
        assert recorded.facts.event == "cost_corrected"
        assert (recorded.facts.cost_microusd, recorded.facts.bound_microusd) == (made.cost, made.bound)
        assert recorded.facts.detail["source"] == "late_answer"

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0), thirds=st.integers(0, 3), invoice=st.booleans(), mine=st.booleans())
    def correct(self, which: int, thirds: int, invoice: bool, mine: bool) -> None:
        call_id = sorted(self.calls)[which % len(self.calls)]
        made, cost = self.calls[call_id], self.calls[call_id].amount * thirds // 3
        source = "invoice" if invoice else "operator"
        correcting = correct_cost(
            self.stores[mine], self.tenant, call_id, cost, actor="ann", why="invoice", source=source
        )
        try:
            done = self.wait(correcting)
        except Conflict:
            assert made.state == "open"
            return
        except NotFound:
            assert not made.kept
            return
        assert made.kept
        assert done.was == Booked(made.cost, made.bound)
        made.cost, made.bound, made.source = cost, 0, "person"
        again = correct_cost(self.stores[mine], self.tenant, call_id, cost, actor="ann", why="invoice", source=source)
        assert not self.wait(again).changed

    @rule(seconds=st.sampled_from([1, 59, 3_600, 86_400]))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds * 1_000_000

    @rule(agent=st.sampled_from(AGENTS), money=st.sampled_from([500, 4_000]))
    def top_up(self, agent: str, money: int) -> None:
        wanted = TopUp(self.tenant, "agent", agent, "ann", "more", money)
        self.stores[0].commit_blocking(resolve_top_up(self.policy, wanted, "day", self.clock.now))
        self.extra["agent", f"{agent}[{self.label('day')}]"] += money

    # ── what holds ───────────────────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def holds(self) -> None:
        columns = "scope, scope_id, spent_microusd, bound_microusd, reserved_microusd"
        for scope, row_id, *found in rows(self.url, f"SELECT {columns} FROM budget WHERE tenant_id = '{self.tenant}'"):
            assert tuple(found) == self.total((scope, row_id)), (scope, row_id)
            assert sum(found) <= self.most((scope, row_id))

    def teardown(self) -> None:
        if self.calls:
            self.rollups_agree()
            self.wait(self.logs_agree())

    def rollups_agree(self) -> None:
        summed = rows(
            self.url,
            "SELECT job_id, sum(cost_microusd), sum(bound_microusd), sum(calls) FROM usage_job"
            f" WHERE job_id LIKE '{self.tenant}-%' GROUP BY job_id",
        )
        for job_id, cost, bound, _ in summed:
            mine = [made for made in self.calls.values() if self.id(made.job) == job_id]
            assert (cost, bound) == (sum(made.cost for made in mine), sum(made.bound for made in mine))
        days = "SELECT sum(cost_microusd), sum(bound_microusd) FROM usage_day WHERE tenant_id"
        ((cost, bound),) = rows(self.url, f"{days} = '{self.tenant}'")
        made = self.calls.values()
        assert (cost or 0, bound or 0) == (sum(each.cost for each in made), sum(each.bound for each in made))

    async def logs_agree(self) -> None:
        ledger = Ledger(self.stores[0])
        in_flight = [call_id for call_id, made in self.calls.items() if made.state == "open"]
        listed = await list_bounds(self.stores[1], tenant_id=self.tenant, limit=1000)
        wanted = {call_id: (made.cost, made.bound) for call_id, made in self.calls.items() if made.bound}
        assert {row.call_id: (row.cost_microusd, row.bound_microusd) for row in listed} == wanted
        for name in JOBS:
            job = await ledger.job(self.id(name), self.tenant)
            events = await ledger.events(job.job_id)
            mine = [made for made in self.calls.values() if made.job == name]
            assert check_ends([msgspec.to_builtins(each.facts) for each in events], in_flight) == len(mine)
            header = build_timeline(await load_job_tree(ledger, job), self.clock.now).header
            assert header.cost_microusd == sum(made.cost for made in mine)
            assert header.bound_microusd == sum(made.bound for made in mine)


def test_costs_and_bounds_agree_with_the_model(store_url: str) -> None:
    clock = Clock()
    loop = asyncio.new_event_loop()
    with open_store(store_url, clock) as one, open_store(store_url, clock) as other, closing(loop):
        run_state_machine_as_test(
            lambda: Bounds((one, other), clock, store_url, loop), settings=examples(10, 400, stateful_step_count=25)
        )
