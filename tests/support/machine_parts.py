"""Shared by the store tests: commands, reads, and programs for separate processes."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import msgspec
import psycopg
from hypothesis import settings

from overnight.domain import Event, new_id
from overnight.ledger import JOB, Append, JobRow, NewJob, append, locked_job, open_job
from overnight.store import Store, Unit

TESTS = Path(__file__).parent


def examples(few: int, many: int, **options: Any) -> settings:
    """`few` examples, the same in each ordinary run; `many` random ones with OVERNIGHT_EXPLORE=1."""
    return settings(max_examples=many if os.environ.get("OVERNIGHT_EXPLORE") else few, **options)


class Open(msgspec.Struct):
    """Make a job or find it; the outcome is (job_id, was it new)."""

    new: NewJob

    def locks(self) -> list[tuple[Any, Any]]:
        from overnight.ledger import EXTERNAL

        if self.new.external_id is not None:
            return [(EXTERNAL, (self.new.tenant_id, self.new.external_id))]
        return [(JOB, self.new.job_id)]

    def decide(self, unit: Unit) -> tuple[str, bool]:
        job, fresh = open_job(unit, self.new)
        return job.job_id, fresh


class UnderJob(msgspec.Struct):
    """Do something under a job's lock, and under further locks."""

    job_id: str
    act: Callable[[Unit, JobRow], Any]
    further: list[tuple[Any, Any]] = []

    def locks(self) -> list[tuple[Any, Any]]:
        return [(JOB, self.job_id), *self.further]

    def decide(self, unit: Unit) -> Any:
        return self.act(unit, locked_job(unit, self.job_id))


def newjob(tenant_id: str = "default", **facts: Any) -> NewJob:
    return NewJob(new_id("job"), tenant_id, "python", "contract", **facts)


def make_job(store: Store, tenant_id: str = "default", **facts: Any) -> str:
    return store.commit_blocking(Open(newjob(tenant_id, **facts)))[0]


def note(job_id: str, marker: Any, **facts: Any) -> Append:
    """Append an event that can be found again by its marker."""
    return Append(job_id, Event("value_recorded", name=str(marker)), **facts)


def half_a_change(job_id: str, error: BaseException) -> UnderJob:
    """A faulty rule: it changes the job, writes an event, and then fails."""

    def act(unit: Unit, job: JobRow) -> None:
        append(unit, job, Event("value_recorded", name="half"))
        job.state = "cancelled"
        unit.change(JOB, job)
        raise error

    return UnderJob(job_id, act)


async def all_of(store: Store, commands: Iterable[Any]) -> list[Any]:
    """The outcomes of commands that are committed at the same time; what they raised stands in its place."""
    return await asyncio.gather(*(store.commit(command) for command in commands), return_exceptions=True)


_connections: dict[str, psycopg.Connection[Any]] = {}


def rows(url: str, sql: str) -> list[tuple[Any, ...]]:
    """Read past the store, on a connection of our own. Nothing but the tests does this."""
    if url.startswith("postgresql://"):
        held = _connections.get(url)
        if held is None or held.closed:
            held = _connections[url] = psycopg.connect(url, autocommit=True)
        return held.execute(sql).fetchall()  # type: ignore[arg-type]
    connection = apsw.Connection(url, flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(10_000)  # closing the last writer holds an exclusive lock for a moment
    try:
        return [tuple(row) for row in connection.execute(sql)]
    finally:
        connection.close()


def names(url: str, job_id: str) -> list[str]:
    """The markers of the job's notes, by seq; asserts on the way that seq is dense."""
    found = rows(url, f"SELECT seq, body FROM event WHERE job_id = '{job_id}' ORDER BY seq")
    assert [row[0] for row in found] == list(range(1, len(found) + 1))
    facts = [msgspec.json.decode(bytes(row[1]), type=Event) for row in found]
    return [each.name or "" for each in facts if each.event == "value_recorded"]


@contextmanager
def program(source: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A Python process that runs `source` with these arguments; killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
