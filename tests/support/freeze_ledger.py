"""Write a frozen ledger with the program as it is now: `python tests/support/freeze_ledger.py FILE.db|FILE.sql`.

A `.db` is a SQLite file; a `.sql` is a plain dump of a PostgreSQL server of its own. Both hold a finished job, a job waiting for
an approval, and an external job of two calls. Run it before the schema changes on purpose, with a new name; the old files are
never edited, and every later version must read them.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import history_jobs
from overnight.app import open_app
from overnight.jobs import Decision, Operations
from overnight.settings import Settings


def call(port: int, attempt: str, text: str) -> None:
    body = {"model": "gpt-5.4", "messages": [{"role": "user", "content": text}]}
    headers = {"content-type": "application/json", "x-job-id": "external-1", "x-job-attempt": attempt}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        response.read()


def call_gateway(settings: Settings) -> None:
    """Two calls of an external program through a gateway process."""
    command = [sys.executable, "-m", "overnight", "gateway", "--port", "0"]
    with subprocess.Popen(
        command, env=os.environ | settings.environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ready: dict[str, Any] = json.loads(process.stdout.readline())
        call(ready["port"], "1", "first")
        call(ready["port"], "1", "second")
        process.terminate()


async def fill(settings: Settings) -> None:
    async with open_app(settings) as app:
        operations = Operations(app.store)
        for name in ("finished", "waiting"):
            job = await operations.create(history_jobs.everything, (name,), external_id=name)
            job = await app.operations.work_until_rest(job.job_id)
            if name == "finished":
                await operations.decide(job.waits[0]["review_id"], Decision("approve", "ann"))
                job = await app.operations.work_until_rest(job.job_id)
                assert job.state == "succeeded", job


def freeze(file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        if file.suffix == ".db":
            settings = Settings(home, str(home / "ledger.db"), home / "none")
            asyncio.run(fill(settings))
            call_gateway(settings)
            import apsw

            apsw.Connection(str(home / "ledger.db")).execute("VACUUM INTO ?", (str(file),))
            return
        from postgres import INSTALLED, running

        with running() as server:
            settings = Settings(home, server.url, home / "none")
            asyncio.run(fill(settings))
            call_gateway(settings)
            options = ["--no-owner", "--no-privileges", "--file", str(file)]
            subprocess.run([INSTALLED / "bin" / "pg_dump", *options, server.dsn], check=True)


if __name__ == "__main__":
    freeze(Path(sys.argv[1]).absolute())
