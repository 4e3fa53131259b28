"""Histories of earlier versions are replayed: recorded answers are used, nothing runs again."""

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

import history_jobs
from job_runs import rest, story, working
from overnight.domain import EVENT_NAMES
from overnight.ledger import JOB, LEDGER_SQL, JobRow, Ledger
from overnight.store import Store, Unit

FILES = sorted(Path(__file__).with_name("histories").glob("*.json"))
EVENT_COLUMNS = ("job_id", "seq", "tenant_id", "month", "at", "path", "ordinal", "fingerprint", "body", "content")


def back(value: Any) -> Any:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value


class Import(msgspec.Struct):
    """The log as it stood before the first job of the file was completed."""

    jobs: list[list[Any]]
    events: list[list[Any]]

    def locks(self) -> list[Any]:
        return []

    def decide(self, unit: Unit) -> None:
        for row in self.jobs:
            job = JobRow(*row)
            if job.parent_job_id is None:
                job.state, job.result, job.finished_at, job.last_seq = "queued", None, None, job.last_seq - 1
            unit.insert(JOB, job)
        for month in {row[EVENT_COLUMNS.index("month")] for row in self.events}:
            unit.session.create_partitions(month)  # PostgreSQL has those of the current month only
        for row in self.events:
            named = dict(zip((*EVENT_COLUMNS, "position"), row, strict=True)) | {
                "content_key": None,
                "texts": None,
            }
            unit.append(LEDGER_SQL["insert_event"], msgspec.defstruct("Row", list(named))(**named))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
async def test_a_frozen_history_is_replayed_to_the_same_result(store: Store, file: Path) -> None:
    frozen = json.loads(file.read_text())
    jobs = [[back(value) for value in row] for row in frozen["jobs"]]
    events = [[back(value) for value in row] for row in frozen["events"]]
    parent = next(JobRow(*row) for row in jobs if JobRow(*row).parent_job_id is None)
    cut = [row for row in events if (row[0], row[1]) != (parent.job_id, parent.last_seq)]
    await store.commit(Import(jobs, cut))
    history_jobs.world.clear()
    async with working(store):
        job = await rest(store, parent.job_id)
    assert (job.state, job.result) == ("succeeded", parent.result), job
    assert history_jobs.world == []
    names = await story(store, job.job_id)
    assert set(names) <= EVENT_NAMES
    assert names.count("replay_ended") >= 1
    assert len(await Ledger(store).events(job.job_id)) == job.last_seq


def test_there_are_frozen_histories() -> None:
    assert FILES
