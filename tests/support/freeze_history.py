"""Write a frozen history with the present version: `python tests/support/freeze_history.py VERSION`.

Run it when the form of the log changes on purpose, with a new name; the old files are never edited and must go on being read.
"""

import asyncio
import base64
import json
import sys
import tempfile
from pathlib import Path

import history_jobs
from overnight.app import open_app
from overnight.jobs import Decision, Operations
from overnight.settings import Settings
from overnight.store import Statement

FOLDER = Path(__file__).parents[1] / "jobs" / "histories"
JOBS = Statement("jobs", {"sqlite": "SELECT * FROM job ORDER BY job_id"})
EVENTS = Statement("events", {"sqlite": "SELECT * FROM event ORDER BY job_id, seq"})


def plain(value: object) -> object:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


async def freeze(version: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(Path(folder), str(Path(folder) / "ledger.db"), Path(folder) / "none")
        async with open_app(settings) as app:
            operations = Operations(app.store)
            job = await operations.create(history_jobs.everything, ("history",))
            job = await app.operations.work_until_rest(job.job_id)
            await operations.decide(job.waits[0]["review_id"], Decision("approve", "ann"))
            job = await app.operations.work_until_rest(job.job_id)
            assert job.state == "succeeded", job
            rows = {
                "jobs": [[plain(value) for value in row] for row in await app.store.read(JOBS, {})],
                "events": [[plain(value) for value in row] for row in await app.store.read(EVENTS, {})],
            }
    path = FOLDER / f"{version}.json"
    path.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{path}: {len(rows['events'])} events")


if __name__ == "__main__":
    asyncio.run(freeze(sys.argv[1]))
