"""A job that never ends, also for workers in other processes."""

import overnight


@overnight.step
async def tick() -> None:
    """One of its steps."""


@overnight.job
async def endless() -> None:
    while True:
        await overnight.sleep(0.05)
        await tick()
