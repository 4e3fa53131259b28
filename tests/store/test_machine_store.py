"""The unit of work against a dict: batches, rejections and faults of two writers."""

import asyncio
import itertools
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from machine_parts import all_of, examples, rows
from overnight.budgets import BUDGET, RESERVATION, BudgetRow, ReservationRow
from overnight.domain import Conflict, NotFound
from overnight.ledger import LEDGER_SQL
from overnight.store import Store, Unit, open_store

NAMES = ("a", "b", "c")
Act = tuple[str, str, int]
ADD_USAGE = LEDGER_SQL["add_usage_job"]


class Change:
    """One command: some changes of rows, then it succeeds, is refused before any, or fails after all of them."""

    def __init__(self, tenant: str, end: str, acts: list[Act]) -> None:
        self.tenant, self.end, self.acts = tenant, end, acts

    def key(self, name: str) -> tuple[str, str, str]:
        return (self.tenant, "job", name)

    def locks(self) -> list[Any]:
        names = {name for _, name, _ in self.acts}
        return [(BUDGET, self.key(name)) for name in names] + [(RESERVATION, self.tenant + name) for name in names]

    def decide(self, unit: Unit) -> int:
        if self.end == "refused":
            raise Conflict("refused")
        for kind, name, amount in self.acts:
            self.act(unit, kind, name, amount)
        if self.end == "faulty":
            raise IndexError("faulty")
        return len(self.acts)

    def act(self, unit: Unit, kind: str, name: str, amount: int) -> None:
        budget = unit.get(BUDGET, self.key(name))
        reservation = unit.get(RESERVATION, self.tenant + name)
        if kind == "add":
            if budget is None:
                unit.insert(BUDGET, BudgetRow(*self.key(name), None, None, 0, amount, 1))
                return
            budget.spent_microusd += amount
            budget.calls += 1
            unit.change(BUDGET, budget)
        elif kind == "take" and reservation is None:
            row = ReservationRow(self.tenant + name, self.tenant, "j", "o", None, amount, "{}", "[]", 0)
            unit.insert(RESERVATION, row)
        elif kind == "drop" and reservation is not None:
            unit.delete(RESERVATION, reservation)
        elif kind == "count":
            unit.add(ADD_USAGE, (self.tenant + name, "m"), (1, amount, 0, 0, 0, 0))


acts = st.lists(
    st.tuples(st.sampled_from(["add", "take", "drop", "count"]), st.sampled_from(NAMES), st.integers(0, 9)),
    min_size=1,
    max_size=4,
)
commands = st.lists(st.tuples(st.sampled_from(["ok", "ok", "ok", "refused", "faulty"]), acts), min_size=1, max_size=12)


class Rows(RuleBasedStateMachine):
    """The model: two dicts and a counter. `take` and `drop` of one row in one transaction are one writer's affair."""

    numbers = itertools.count()

    def __init__(self, stores: list[Store], url: str) -> None:
        super().__init__()
        self.stores, self.url = stores, url
        self.tenant = f"t{next(self.numbers)}-"
        self.budgets: dict[str, tuple[int, int]] = {}
        self.reserved: dict[str, int] = {}
        self.counted: dict[str, tuple[int, int]] = {}

    @rule(batch=commands, mine=st.integers(0, 1))
    def one_writer(self, batch: list[tuple[str, list[Act]]], mine: int) -> None:
        """A batch is decided in the order of its commands."""
        outcomes = asyncio.run(all_of(self.stores[mine], [Change(self.tenant, *each) for each in batch]))
        for (end, done), outcome in zip(batch, outcomes, strict=True):
            assert {"ok": int, "refused": Conflict, "faulty": IndexError}[end] is type(outcome), outcome
            if end == "ok":
                self.apply(done)

    @rule(batch=commands)
    def both_writers(self, batch: list[tuple[str, list[Act]]]) -> None:
        """Sums do not depend on who comes first."""
        sums = [(end, [act for act in done if act[0] in {"add", "count"}]) for end, done in batch]
        both = [[Change(self.tenant, *each) for each in sums] for _ in self.stores]

        async def write() -> list[list[Any]]:
            return await asyncio.gather(*(all_of(store, each) for store, each in zip(self.stores, both, strict=True)))

        for outcomes in asyncio.run(write()):
            for (end, done), outcome in zip(sums, outcomes, strict=True):
                assert {"ok": int, "refused": Conflict, "faulty": IndexError}[end] is type(outcome), outcome
                if end == "ok":
                    self.apply(done)

    def apply(self, done: list[Act]) -> None:
        for kind, name, amount in done:
            if kind == "add":
                spent, calls = self.budgets.get(name, (0, 0))
                self.budgets[name] = (spent + amount, calls + 1)
            elif kind == "take":
                self.reserved.setdefault(name, amount)
            elif kind == "drop":
                self.reserved.pop(name, None)
            else:
                calls, tokens = self.counted.get(name, (0, 0))
                self.counted[name] = (calls + 1, tokens + amount)

    @invariant()
    def agrees(self) -> None:
        own = len(self.tenant)
        where = f"WHERE tenant_id = '{self.tenant}'"
        found = rows(self.url, f"SELECT scope_id, spent_microusd, calls FROM budget {where}")
        assert {row[0]: (row[1], row[2]) for row in found} == self.budgets
        found = rows(self.url, f"SELECT call_id, amount_microusd FROM reservation {where}")
        assert {row[0][own:]: row[1] for row in found} == self.reserved
        found = rows(self.url, f"SELECT job_id, calls, input_tokens FROM usage_job WHERE job_id LIKE '{self.tenant}%'")
        assert {row[0][own:]: (row[1], row[2]) for row in found} == self.counted


def test_batches_agree_with_a_dict(store_url: str) -> None:
    with open_store(store_url) as one, open_store(store_url) as other:
        run_state_machine_as_test(
            lambda: Rows([one, other], store_url), settings=examples(20, 600, stateful_step_count=10)
        )


async def test_deleted_row_may_be_inserted_again(store: Store, store_url: str) -> None:
    for batch in (["take", "drop", "take"], ["drop", "take", "drop"], ["take"], ["drop"]):
        outcomes = await all_of(store, [Change("t-", "ok", [(kind, "a", 1)]) for kind in batch])
        assert outcomes == [1] * len(batch)
        left = rows(store_url, "SELECT count(*) FROM reservation")
        assert left == [(1 if batch[-1] == "take" else 0,)], batch


async def test_reads_in_a_unit_see_its_changes(store: Store) -> None:
    class Reads:
        def locks(self) -> list[Any]:
            return [(BUDGET, ("t-", "job", "zz"))]

        def decide(self, unit: Unit) -> None:
            if unit.get(BUDGET, ("t-", "job", "zz")) is None:
                raise NotFound("zz")

    outcomes = await all_of(store, [Reads(), Change("t-", "ok", [("add", "zz", 1)]), Reads()])
    assert [type(outcome) for outcome in outcomes] == [NotFound, int, type(None)]
