"""Job states: only transitions of the table happen, and no other module writes a state."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from overnight.domain import Conflict, Event, job_states, new_id
from overnight.ledger import JobRow, NewJob, begin_attempt, lifecycle, open_job
from overnight.ledger.lifecycle import INITIAL_STATES, TRANSITIONS
from overnight.store import Store, Unit
from source_trees import tree_of

SRC = Path(__file__).parents[2] / "src" / "overnight"
WAITS = [{"for": "timer"}]

CALLS: dict[str, Callable[[Unit, JobRow], object]] = {
    "start": lambda unit, job: lifecycle.start(unit, job, "worker", 1),
    "release": lifecycle.release,
    "park": lambda unit, job: lifecycle.park(unit, job, WAITS, None),
    "queue": lambda unit, job: lifecycle.queue(unit, job, "anna"),
    "retry": lambda unit, job: lifecycle.retry(unit, job, {"seqs": [], "loose": 1}, "anna"),
    "begin_attempt": lambda unit, job: begin_attempt(unit, job, "recover", None, None),
    "reopen": lifecycle.reopen,
    "finish": lambda unit, job: lifecycle.finish(unit, job, "succeeded", Event("completed")),
}


class Try(msgspec.Struct):
    """A new job is brought into a state, then a transition is tried. Outcome: its state, None where it was refused."""

    state: str
    transition: Callable[[Unit, JobRow], object]

    def locks(self) -> list[object]:
        return []

    def decide(self, unit: Unit) -> str | None:
        first = self.state if self.state == "queued" else "running"
        job, _ = open_job(unit, NewJob(new_id("job"), "default", "foreign", "demo", state=first))
        if self.state == "parked":
            lifecycle.park(unit, job, WAITS, None)
        elif self.state not in INITIAL_STATES:
            lifecycle.finish(unit, job, self.state, Event("failed"))
        assert job.state == self.state
        seq = job.last_seq
        try:
            self.transition(unit, job)
        except Conflict:
            assert (job.state, job.last_seq) == (self.state, seq), "a refused transition changes nothing"
            return None
        return job.state


@pytest.mark.parametrize("name", CALLS)
def test_transition_table_is_what_the_code_allows(store: Store, name: str) -> None:
    allowed = TRANSITIONS[name]
    for state in job_states:
        reached = store.commit_blocking(Try(state, CALLS[name]))
        assert (reached is not None) == (state in allowed.sources), (name, state)
        assert reached is None or reached in allowed.targets


def test_wake_queues_only_parked_jobs(store: Store) -> None:
    for state in job_states:
        reached = store.commit_blocking(Try(state, lifecycle.wake))
        assert reached == ("queued" if state in TRANSITIONS["wake"].sources else state)


def test_finish_reaches_exactly_the_final_states(store: Store) -> None:
    for state in job_states:
        reached = store.commit_blocking(
            Try("running", lambda u, j, s=state: lifecycle.finish(u, j, s, Event("failed")))
        )
        assert (reached == state) == (state in TRANSITIONS["finish"].targets)


def test_every_transition_and_state_is_covered() -> None:
    assert {*CALLS, "wake"} == set(TRANSITIONS)
    for each in TRANSITIONS.values():
        assert each.sources <= set(job_states)
        assert each.targets <= set(job_states)


OTHER_ROWS = {
    ("effects/transitions.py", "row.state"),
    ("reviews/decisions.py", "row.state"),
    ("reviews/requests.py", "row.state"),
    ("notifications/commands.py", "row.state"),
    ("notifications/deliveries.py", "row.state"),
    ("notifications/deliveries.py", "address.state"),
}
"""States of effects, reviews and notifications. An attribute of `self` belongs to an exception or an object in memory."""


def test_only_lifecycle_assigns_a_job_state() -> None:
    found: set[tuple[str, str]] = set()
    for path in SRC.rglob("*.py"):
        name = str(path.relative_to(SRC))
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr == "state":
                found.add((name, ast.unparse(node)))
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"replace", "setattr"}:
                words = [each.arg for each in node.keywords]
                words += [each.value for each in node.args if isinstance(each, ast.Constant)]
                if "state" in words:
                    found.add((name, ast.unparse(node)))
    foreign = {(name, text) for name, text in found if not text.startswith("self.")} - OTHER_ROWS
    assert foreign == {("ledger/lifecycle.py", "job.state")}


def test_only_the_ledger_updates_the_state_column() -> None:
    writers: set[str] = set()
    for path in [*SRC.rglob("*.sql"), *SRC.rglob("*.py")]:
        for statement in re.findall(r"UPDATE\s+job\s+SET(.*?)(?:WHERE|$)", path.read_text(), re.DOTALL | re.IGNORECASE):
            if re.search(r"\bstate\s*=", statement):
                writers.add(str(path.relative_to(SRC)))
    assert writers == {"ledger/sql/common.sql"}


def test_job_queries_name_the_columns_of_its_row() -> None:
    text = "\n".join(path.read_text() for path in (SRC / "ledger" / "sql").glob("*.sql"))
    lists = re.findall(r"SELECT (job_id, tenant_id, external_id, parent_job_id.*?)\s+FROM job\b", text, re.DOTALL)
    assert len(lists) == 7
    for columns in lists:
        assert columns.replace("\n", " ").replace(" ", "").split(",") == list(JobRow.__struct_fields__)
    assert not re.search(r"SELECT \* FROM (?!unnest)", text)
