"""Steps and effects that fail when they are told to, and jobs that are resumed after it."""

import asyncio
from collections import Counter
from typing import Any

import overnight
from job_runs import rest, working
from overnight.jobs import JobFunction, Operations
from overnight.ledger import JobRow
from overnight.store import Store

calls: Counter[str] = Counter()
broken: set[str] = set()
gates: dict[str, asyncio.Event] = {}
order: list[str] = []


def clear() -> None:
    """Forget what earlier tests called and broke."""
    for kept in (calls, broken, gates, order):
        kept.clear()


@overnight.step
async def work(name: str) -> str:
    calls[name] += 1
    if name in broken:
        raise ValueError(f"{name} is broken")
    return name


@overnight.step
async def gated(name: str) -> None:
    await gates[name].wait()


@overnight.effect
async def send(name: str, idempotency_key: str) -> str:
    if f"send {name}" in broken:
        raise overnight.NotDone(f"{name} is refused")
    calls[f"send {name}"] += 1
    return f"sent {name}"


async def run(store: Store, function: JobFunction[..., Any], *args: Any) -> JobRow:
    """Work it until it rests and waits for no child."""
    job = await Operations(store).create(function, args)
    return await go_on(store, job)


async def go_on(store: Store, job: JobRow) -> JobRow:
    async with working(store), asyncio.timeout(15):
        while (job := await rest(store, job.job_id)).waits and job.waits[0]["for"] == "child":
            await asyncio.sleep(0.01)
    return job


async def again(store: Store, job: JobRow, *mended: str) -> JobRow:
    """Try it again once that is mended."""
    broken.difference_update(mended)
    await Operations(store).resume(job.job_id, "ann")
    return await go_on(store, job)
