"""Model calls of job code without a worker: a leased job, and a request at one of its positions."""

import asyncio
from typing import Any

from overnight.domain import new_id
from overnight.jobs import CreateJob, ModelRequest
from overnight.jobs.commands import TakeLease
from overnight.ledger import JobRow, NewJob
from overnight.store import Store


async def leased(store: Store, parent: JobRow | None = None, job_id: str | None = None) -> JobRow:
    """A running job; taken over when it exists already."""
    if job_id is None:
        job_id = new_id("job")
        family = {"parent_job_id": parent.job_id, "root_job_id": parent.root_job_id} if parent else {}
        await store.commit(CreateJob(NewJob(job_id, "default", "python", "demo", **family)))
        until = store.clock() + 100
    else:
        await asyncio.sleep(0.01)
        until = store.clock() + 60_000_000
    job = await store.commit(TakeLease(job_id, new_id("worker"), until if parent is None else until + 60_000_000))
    assert job is not None
    return job


def request(job: JobRow, ordinal: int = 0, text: str = "hello", task: str | None = None, **body: Any) -> ModelRequest:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], **body}
    return ModelRequest(body, job, task, "a step", "/1", ordinal, f"print-{ordinal}")
