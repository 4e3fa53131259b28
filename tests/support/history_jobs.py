"""The jobs of the frozen histories. Never change their code: the histories depend on it."""

import asyncio
from typing import Any

import overnight

world: list[str] = []


@overnight.step
async def read(name: str) -> list[int]:
    world.append(f"read {name}")
    return [1, 2, 3]


@overnight.step(retry=overnight.Retry(attempts=2, backoff_s=0.01))
async def moody(name: str) -> str:
    part = await send(f"part of {name}")
    if world.count(f"moody {name}") == 0:
        world.append(f"moody {name}")
        raise ValueError("not yet")
    return part


@overnight.effect
async def send(text: str, idempotency_key: str) -> str:
    world.append(f"send {text}")
    return f"sent {text}"


@overnight.job
async def smaller(number: int) -> int:
    await send(f"child {number}")
    return number * 10


@overnight.job
async def everything(name: str) -> dict[str, Any]:
    numbers = await read(name)
    drawn = [overnight.random(), overnight.uuid(), overnight.now().isoformat()]
    sent = await asyncio.gather(*(send(f"{name} {number}") for number in numbers))
    try:
        async with overnight.timeout(0.05):
            await overnight.sleep(30)
    except TimeoutError:
        sent = [*sent, "timed out"]
    await overnight.sleep(0.01)
    part = await moody(name)
    answer = await overnight.chat(f"a line about {name}", task="draft")
    approved = await overnight.approval("go on?", name=name)
    child = await smaller(len(numbers))
    return {"drawn": drawn, "sent": sent, "part": part, "text": answer.text, "by": approved.by, "child": child}
