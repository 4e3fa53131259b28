"""Jobs that wait: for a person, or for a time. Loaded by the worker that parked.py starts."""

import overnight


@overnight.step
async def woken() -> bool:
    return True


@overnight.job
async def asks(number: int) -> bool:
    await overnight.approval(f"May number {number} go on?")
    return await woken()


@overnight.job
async def sleeps(seconds: float) -> bool:
    await overnight.sleep(seconds)
    return await woken()
