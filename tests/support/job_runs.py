"""Jobs that run in a worker of this process until they rest."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from overnight.domain import FINISHED
from overnight.jobs import Decision, JobFunction, NoModel, Operations, Worker
from overnight.ledger import JobRow, Ledger
from overnight.store import Store
from overnight.story import build_timeline, load_job_tree


@asynccontextmanager
async def working(store: Store, **options: Any) -> AsyncIterator[Worker]:
    worker = Worker(store, NoModel(), **options)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


async def rest(store: Store, job_id: str, *states: str) -> JobRow:
    wanted = set(states) or FINISHED | {"parked"}
    ledger = Ledger(store)
    async with asyncio.timeout(15):
        while True:
            job = await ledger.job(job_id)
            if job.state in wanted:
                return job
            await asyncio.sleep(0.01)


async def run(store: Store, function: JobFunction[..., Any], *args: Any, **options: Any) -> JobRow:
    job = await Operations(store).create(function, args)
    async with working(store, **options):
        return await rest(store, job.job_id)


async def story(store: Store, job_id: str) -> list[str]:
    return [event.facts.event for event in await Ledger(store).events(job_id)]


def overnight_decision(answer: str, **facts: Any) -> Decision:
    return Decision(answer, **({"by": "ann"} | facts))


async def timeline(store: Store, job_id: str) -> list[str]:
    """The lines of the timeline of a job."""
    ledger = Ledger(store)
    tree = await load_job_tree(ledger, await ledger.job(job_id))
    lines = build_timeline(tree, store.clock()).lines
    return [line.text for line in lines]
