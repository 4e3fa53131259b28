"""Jobs that a worker of this process runs, with model calls through a served gateway."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from overnight.domain import FINISHED
from overnight.gateway import JobCalls
from overnight.jobs import Operations, Worker
from overnight.ledger import JobRow
from overnight.story import build_timeline, load_job_tree
from serving import Served


@asynccontextmanager
async def working(served: Served) -> AsyncIterator[Worker]:
    worker = Worker(served.store, JobCalls(served.gateway), policy=served.gateway.policy)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


async def rest(served: Served, job_id: str, *states: str) -> JobRow:
    async with asyncio.timeout(20):
        while (job := await served.ledger.job(job_id)).state not in (states or {*FINISHED, "parked"}):
            await asyncio.sleep(0.01)
        return job


async def start(served: Served, function: Any, *args: Any) -> str:
    return (await Operations(served.store).create(function, args)).job_id


async def told(served: Served, job_id: str) -> str:
    job = await served.ledger.job(job_id)
    story = build_timeline(await load_job_tree(served.ledger, job), served.store.clock())
    lines = [f"{line.text} {line.why}" for line in story.lines]
    return "\n".join(lines + [f"{each.text} {each.commands}" for each in story.advice])
