"""Budgets against a simple model: reserved plus spent never exceeds a limit, in any order of calls."""

import asyncio
import itertools
import random
from typing import Any

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
    BUDGET,
    FLOOR_TOKENS,
    RESERVATION,
    Booked,
    Call,
    Limit,
    ReservationGrant,
    Wait,
    locks,
    reserve,
    settle,
)
from overnight.domain import BudgetStopped, Conflict
from overnight.store import Store, Unit, open_store


class Priced:
    """A demand: a prompt of fixed cost and output tokens at a price."""

    def __init__(self, prompt: int, price: int, wanted_tokens: int) -> None:
        self.prompt, self.price, self.wanted_tokens = prompt, price, wanted_tokens
        self.prompt_tokens, self.choices = prompt, 1

    def bound_microusd(self, tokens: int) -> int:
        return self.prompt + self.price * tokens

    def affordable_tokens(self, available_microusd: int) -> int:
        if available_microusd < self.prompt:
            return -1
        return (available_microusd - self.prompt) // self.price if self.price else 1 << 40


class Reserve:
    def __init__(self, call_id: str, tenant: str, limits: list[Limit], demand: Priced) -> None:
        self.call = Call(call_id, tenant, "job", "process", "{}")
        self.limits, self.demand = limits, demand

    def locks(self) -> list[Any]:
        return locks(self.call.tenant_id, self.limits)

    def decide(self, unit: Unit) -> ReservationGrant | Wait:
        return reserve(unit, self.call, self.limits, self.demand)


class Settle:
    def __init__(self, call_id: str, cost: int | None) -> None:
        self.call_id, self.cost = call_id, cost

    def locks(self) -> list[Any]:
        return [(RESERVATION, self.call_id)]

    def decide(self, unit: Unit) -> Booked:
        return settle(unit, self.call_id, self.cost)


def state(url: str, tenant: str) -> dict[str, tuple[int, int, int]]:
    """(reserved, spent and bound, calls) of each scope: what counts against its limit."""
    settled = "spent_microusd + bound_microusd"
    sql = f"SELECT scope_id, reserved_microusd, {settled}, calls FROM budget WHERE tenant_id = '{tenant}'"
    return {row[0]: (row[1], row[2], row[3]) for row in rows(url, sql)}


# ── one after the other, against a model ─────────────────────────────────────────────────────────────────────────────

demands = st.builds(
    Priced, st.sampled_from([0, 10, 300]), st.sampled_from([0, 1, 3]), st.sampled_from([1, 100, FLOOR_TOKENS, 1000])
)


class Budgets(RuleBasedStateMachine):
    """A tree of jobs, each with its own cap; a call of a job counts against it and every ancestor."""

    calls = Bundle("calls")
    numbers = itertools.count()

    def __init__(self, stores: tuple[Store, Store], url: str) -> None:
        super().__init__()
        self.stores, self.url = stores, url
        self.tenant = f"t{next(self.numbers)}"
        self.money: dict[str, int | None] = {}
        self.most_calls: dict[str, int | None] = {}
        self.parent: dict[str, str | None] = {}
        self.reserved: dict[str, int] = {}
        self.spent: dict[str, int] = {}
        self.made: dict[str, int] = {}
        self.open: dict[str, tuple[int, tuple[str, ...]]] = {}

    @initialize(
        shape=st.lists(
            st.tuples(
                st.integers(0, 3),
                st.sampled_from([None, 0, 500, 1000, 3000]),
                st.sampled_from([None, None, 1, 4]),
            ),
            min_size=1,
            max_size=4,
        )
    )
    def plant(self, shape: list[tuple[int, int | None, int | None]]) -> None:
        for number, (parent, money, calls) in enumerate(shape):
            name = f"job{number}"
            self.parent[name] = f"job{parent % number}" if number else None
            self.money[name], self.most_calls[name] = money, calls
            self.reserved[name] = self.spent[name] = self.made[name] = 0

    def lineage(self, name: str) -> tuple[str, ...]:
        parent = self.parent[name]
        return (*(self.lineage(parent) if parent else ()), name)

    def limits(self, lineage: tuple[str, ...]) -> list[Limit]:
        return [Limit("job", name, self.money[name], self.most_calls[name]) for name in lineage]

    def model(self, lineage: tuple[str, ...], demand: Priced) -> Any:
        """What must come of it: a stop's limit, "wait", or the tokens granted."""
        floor = min(FLOOR_TOKENS, demand.wanted_tokens)
        verdict: Any = demand.wanted_tokens
        for name in lineage:
            most, count = self.money[name], self.most_calls[name]
            if count is not None and self.made[name] >= count:
                return "max_llm_calls_per_job"
            if most is None:
                continue
            if demand.bound_microusd(floor) > most - self.spent[name]:
                return "max_cost_per_job_usd"
            left = most - self.spent[name] - self.reserved[name]
            if demand.bound_microusd(floor) > left:
                verdict = "wait"
            elif verdict != "wait" and demand.price:
                verdict = min(verdict, (left - demand.prompt) // demand.price)
        return verdict

    @rule(target=calls, which=st.integers(0, 3), demand=demands, mine=st.booleans())
    def call(self, which: int, demand: Priced, mine: bool) -> Any:
        lineage = self.lineage(f"job{which % len(self.parent)}")
        call_id = f"{self.tenant}-call{next(self.numbers)}"
        wanted = self.model(lineage, demand)
        command = Reserve(call_id, self.tenant, self.limits(lineage), demand)
        try:
            outcome = self.stores[mine].commit_blocking(command)
        except BudgetStopped as stop:
            return multiple() if stop.limit == wanted else pytest.fail(f"{stop.limit} instead of {wanted}")
        if isinstance(outcome, Wait):
            assert wanted == "wait"
            assert self.reserved[outcome.scope_id] > 0, "there is something to wait for"
            return multiple()
        assert outcome.tokens == wanted
        assert outcome.amount_microusd == demand.bound_microusd(outcome.tokens)
        assert outcome.lowered == (outcome.tokens < demand.wanted_tokens)
        for name in lineage:
            self.reserved[name] += outcome.amount_microusd
            self.made[name] += 1
        self.open[call_id] = (outcome.amount_microusd, lineage)
        return call_id

    @rule(call_id=consumes(calls), share=st.sampled_from([None, 0.0, 0.3, 1.0]), mine=st.booleans())
    def settle(self, call_id: str, share: float | None, mine: bool) -> None:
        amount, lineage = self.open.pop(call_id)
        cost = None if share is None else int(amount * share)
        booked = Booked(0, amount) if cost is None else Booked(cost)
        assert self.stores[mine].commit_blocking(Settle(call_id, cost)) == booked
        for name in lineage:
            self.reserved[name] -= amount
            self.spent[name] += amount if cost is None else cost
        with pytest.raises(Conflict, match="already settled"):
            self.stores[not mine].commit_blocking(Settle(call_id, cost))

    @rule(which=st.integers(0, 3), money=st.sampled_from([None, 100, 5000]))
    def the_policy_changes(self, which: int, money: int | None) -> None:
        name = f"job{which % len(self.parent)}"
        if money is None or money >= self.reserved[name] + self.spent[name]:
            self.money[name] = money

    @invariant()
    def holds(self) -> None:
        found = state(self.url, self.tenant)
        for name, (reserved, spent, calls) in found.items():
            assert (reserved, spent, calls) == (self.reserved[name], self.spent[name], self.made[name])
            most, count = self.money[name], self.most_calls[name]
            assert most is None or reserved + spent <= most
            assert count is None or calls <= count
            assert reserved >= 0
        ((amount,),) = rows(
            self.url, f"SELECT coalesce(sum(amount_microusd), 0) FROM reservation WHERE tenant_id = '{self.tenant}'"
        )
        assert amount == sum(each for each, _ in self.open.values())


def test_budgets_agree_with_the_model(store_url: str) -> None:
    with open_store(store_url) as one, open_store(store_url) as other:
        run_state_machine_as_test(
            lambda: Budgets((one, other), store_url), settings=examples(20, 600, stateful_step_count=20)
        )


# ── all at once ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
async def test_parallel_callers_never_overspend(store: Store, store_url: str, seed: int) -> None:
    """Callers of two processes reserve, wait and settle at once; nobody ever sees a limit passed."""
    chance = random.Random(seed)
    caps = {"root": 60_000, "left": 25_000, "right": 50_000, "deep": 9_000}
    lineages = [("root",), ("root", "left"), ("root", "right"), ("root", "left", "deep")]
    stopped = watched = 0
    counts: dict[str, int] = dict.fromkeys(caps, 0)
    finished = asyncio.Event()

    async def caller(chosen: Store, number: int) -> None:
        nonlocal stopped
        for turn in range(12):
            lineage = chance.choice(lineages)
            demand = Priced(chance.randint(0, 300), chance.choice([1, 2]), chance.choice([300, 600, 2000]))
            limits = [Limit("job", name, caps[name]) for name in lineage]
            call_id = f"{number}-{turn}"
            while isinstance(granted := await _try(chosen, call_id, limits, demand), Wait):
                await asyncio.sleep(0.001)
            if granted is None:
                stopped += 1
                continue
            for name in lineage:
                counts[name] += 1
            await asyncio.sleep(0)
            share = chance.choice([None, 0, 0.1, 1])
            await chosen.commit(Settle(call_id, None if share is None else int(granted.amount_microusd * share)))

    async def watch() -> None:
        nonlocal watched
        while not finished.is_set():
            for name, (reserved, spent, _) in (await asyncio.to_thread(state, store_url, "t")).items():
                assert reserved + spent <= caps[name]
            watched += 1

    watching = asyncio.create_task(watch())
    with open_store(store_url) as other:
        async with asyncio.timeout(60):
            await asyncio.gather(*(caller((store, other)[number % 2], number) for number in range(24)))
    finished.set()
    await watching
    found = state(store_url, "t")
    assert {name: calls for name, (_, _, calls) in found.items()} == counts
    assert all(reserved == 0 for reserved, _, _ in found.values())
    assert stopped > 0, "the caps were reached"
    assert watched > 0
    assert rows(store_url, "SELECT count(*) FROM reservation") == [(0,)]


async def _try(store: Store, call_id: str, limits: list[Limit], demand: Priced) -> ReservationGrant | Wait | None:
    try:
        return await store.commit(Reserve(call_id, "t", limits, demand))
    except BudgetStopped:
        return None


async def test_limit_of_a_named_scope_is_stricter(store: Store) -> None:
    """What a row says and what the policy says: the stricter wins."""

    class Cap:
        def locks(self) -> list[Any]:
            return [(BUDGET, ("t", "job", "x"))]

        def decide(self, unit: Unit) -> None:
            from overnight.budgets import budget_of

            row = budget_of(unit, "t", Limit("job", "x"))
            row.limit_microusd, row.limit_calls = 1_000, 2
            unit.change(BUDGET, row)

    await store.commit(Cap())
    granted = await store.commit(Reserve("1", "t", [Limit("job", "x", 5_000)], Priced(0, 1, 3_000)))
    assert granted == ReservationGrant(1_000, 1_000, lowered=True)
    await store.commit(Settle("1", 0))
    granted = await store.commit(Reserve("2", "t", [Limit("job", "x", 500)], Priced(0, 1, 3_000)))
    assert granted == ReservationGrant(500, 500, lowered=True)
    with pytest.raises(BudgetStopped, match="2 of 2 model calls") as stop:
        await store.commit(Reserve("3", "t", [Limit("job", "x", 5_000, 100)], Priced(0, 1, 10)))
    assert (stop.value.limit, stop.value.spent, stop.value.allowed) == ("max_llm_calls_per_job", 2, 2)


async def test_stopped_reservation_changes_no_row(store: Store, store_url: str) -> None:
    limits = [Limit("job", "root", None), Limit("job", "child", 100)]
    with pytest.raises(BudgetStopped, match="max_cost_per_job_usd"):
        await store.commit(Reserve("1", "t", limits, Priced(0, 1, 1_000)))
    assert set(state(store_url, "t").values()) <= {(0, 0, 0)}
    assert rows(store_url, "SELECT count(*) FROM reservation") == [(0,)]
