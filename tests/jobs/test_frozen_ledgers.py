"""Ledgers written by the earlier version: opened, explained, and their waiting job continued, on each store."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import history_jobs
from job_runs import rest, working
from overnight.domain import public_event
from overnight.jobs import Decision, Operations
from overnight.ledger import Feed, Ledger
from overnight.reviews import digest_of, list_reviews
from overnight.store import open_store
from overnight.story import build_timeline, load_job_tree, public_timeline

FOLDER = Path(__file__).with_name("histories")


@pytest.fixture(params=["db", "sql"])
def frozen_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a copy of the frozen ledger."""
    [file] = FOLDER.glob(f"ledger-0.1.0.{request.param}")
    if request.param == "db":
        return str(shutil.copy(file, tmp_path / "ledger.db"))
    from postgres import INSTALLED

    url: str = request.getfixturevalue("postgres_url")
    psql = [INSTALLED / "bin" / "psql", "-v", "ON_ERROR_STOP=1", "--quiet", "--file", str(file), url]
    subprocess.run(psql, check=True, stdout=subprocess.DEVNULL)
    return url


async def test_an_earlier_ledger_is_explained(frozen_url: str) -> None:
    with open_store(frozen_url) as store:
        ledger = Ledger(store)
        jobs = await ledger.jobs()
        states = {job.external_id: job.state for job in jobs if job.external_id}
        assert states == {"finished": "succeeded", "waiting": "parked", "external-1": "running"}
        events = 0
        for job in jobs:
            tree = await load_job_tree(ledger, job, with_content=True)
            timeline = build_timeline(tree, store.clock(), with_content=True)
            assert json.dumps(public_timeline(tree, timeline, store.clock()))
            events += job.last_seq
        page = await Feed(store).read(most=1000)
        assert len(page.events) == events
        told = [public_event(each.event, with_content=True) for each in page.events]
        [failed] = [each for each in told if each["event"] == "step_failed" and each["job_id"] == _id(jobs, "finished")]
        assert failed["error"] == {"class": "ValueError", "message": "not yet"}
        costs = await ledger.costs([job.job_id for job in jobs])
        assert costs[_id(jobs, "external-1")][0] == 2


async def test_a_waiting_job_of_an_earlier_ledger_goes_on(frozen_url: str) -> None:
    with open_store(frozen_url) as store:
        job = await Ledger(store).job("waiting")
        (review,) = await list_reviews(store, job_id=job.job_id)
        assert review.digest == digest_of(review.kind, review.question, review.detail, review.digest_key)
        await Operations(store).decide(job.waits[0]["review_id"], Decision("approve", "ann"))
        history_jobs.world.clear()
        async with working(store):
            job = await rest(store, job.job_id, "succeeded", "failed")
        assert job.state == "succeeded"
        assert history_jobs.world == ["send child 3"]  # all that came before the approval is replayed
        result = json.loads(job.result or b"")
        assert (result["sent"], result["child"], result["by"]) == (
            ["sent waiting 1", "sent waiting 2", "sent waiting 3", "timed out"],
            30,
            "ann",
        )


def _id(jobs: list[Any], external_id: str) -> str:
    return next(job.job_id for job in jobs if job.external_id == external_id)
