"""The state after a storm: the database by plain SQL, the provider's count, the external record."""

import base64
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .rows import EVENT_COLUMNS, Row, Rows
from .storm import Storm
from .tail import LAST_LOOK

Position = tuple[str, int]
ANSWERS = (
    "step_committed",
    "step_failed",
    "model_succeeded",
    "model_failed",
    "tool_succeeded",
    "tool_failed",
    "timer_fired",
    "value_recorded",
    "review_decided",
    "child_finished",
)
ENDS = ("model_succeeded", "model_failed", "model_lost")
MILLIONS = 1_000_000


@dataclass(frozen=True)
class Fact:
    """An event: `facts` is its body."""

    job_id: str
    seq: int
    facts: dict[str, Any]
    position: Position | None
    content: Any
    row: Row

    @property
    def name(self) -> str:
        return self.facts["event"]


@dataclass(frozen=True)
class Call:
    """A try at a model: what was asked of whom, the lease it was made under, and its recorded ends."""

    job_id: str
    call_id: str
    asked: tuple[str, str]
    ends: list[Fact]


class Evidence:
    """`events` by job, in order; `calls` by their id; `paid` at the provider by (model, prompt)."""

    def __init__(self, storm: Storm) -> None:
        self.seen, self.outside = storm.seen, storm.outside
        rows = storm.rows
        columns = (
            "job_id, name, runtime, state, external_id, parent_job_id, root_job_id, last_seq, result, error, attempt"
        )
        self.jobs = {
            row[0]: dict(zip(columns.split(", "), row, strict=True)) for row in rows.ask(f"SELECT {columns} FROM job")
        }
        self.events = {job_id: list(_facts(rows, job_id)) for job_id in self.jobs}
        self.prompts = _prompts(rows)
        self.paid = _paid(storm.counted)
        self.tailed, self.tailed_meanwhile = _tailed(storm.tailed)
        self.effects = rows.ask("SELECT job_id, effect_key, tool, state, provider_id FROM effect")
        self.reservations = rows.ask("SELECT call_id, job_id, owner FROM reservation")
        self.budgets = rows.ask(
            "SELECT scope_id, reserved_microusd, spent_microusd + bound_microusd, calls FROM budget WHERE scope = 'job'"
        )
        self.usage = dict(
            rows.ask(
                "SELECT job_id, CAST(sum(cost_microusd + bound_microusd) AS BIGINT) FROM usage_job GROUP BY job_id"
            )
        )
        self.calls = {call.call_id: call for call in self._calls()}

    def all_events(self) -> Iterator[Fact]:
        for events in self.events.values():
            yield from events

    def _calls(self) -> Iterator[Call]:
        ends: dict[str, list[Fact]] = defaultdict(list)
        for fact in self.all_events():
            if fact.name in ENDS:
                ends[fact.facts["call_id"]].append(fact)
        for fact in self.all_events():
            if fact.name == "model_called":
                asked = (fact.facts["model"], self.prompts[fact.facts["input_ref"].rpartition("/")[2]])
                yield Call(fact.job_id, fact.facts["call_id"], asked, ends[fact.facts["call_id"]])


def _facts(rows: Rows, job_id: str) -> Iterator[Fact]:
    for row in rows.ask(f"SELECT {EVENT_COLUMNS} FROM event WHERE job_id = ? ORDER BY seq", job_id):
        seq, _, _, _, path, ordinal, _, body, content = row
        position = None if path is None or ordinal is None else (path, ordinal)
        yield Fact(job_id, seq, json.loads(body), position, json.loads(content) if content else None, row)


def _prompts(rows: Rows) -> dict[str, str]:
    """The last user message behind each conversation's head node (hex)."""
    sql = "SELECT node.hash, message.body FROM node JOIN message ON message.hash = node.message"
    return {row[0].hex(): json.loads(row[1])["content"] for row in rows.ask(sql)}


def _paid(file: Path) -> Counter[tuple[str, str]]:
    lines = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return Counter((line["model"], line["last_user"]) for line in lines)


def _tailed(file: Path) -> tuple[dict[tuple[str, int], str], int]:
    """What the reader saw, and how much of it before its last look."""
    seen: dict[tuple[str, int], str] = {}
    meanwhile = 0
    for line in file.read_text().splitlines():
        if line == LAST_LOOK:
            meanwhile = len(seen)
        else:
            job_id, seq, digest = line.split()
            seen[job_id, int(seq)] = digest
    return seen, meanwhile


def told(fact: Fact) -> dict[str, Any]:
    """An event for a dump that a person reads."""
    where = {} if fact.position is None else {"path": fact.position[0], "ordinal": fact.position[1]}
    row = [base64.b64encode(cell).decode() if isinstance(cell, bytes) else cell for cell in fact.row[2:4]]
    return {"seq": fact.seq, **fact.facts, **where, "content": fact.content, "at": row[-1]}
