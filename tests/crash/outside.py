"""The external systems of the storm: a vendor that honours keys and records every request."""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

LONGEST_BEFORE_S = 0.04
LONGEST_AFTER_S = 0.06
"""A deed is done up to so long after it was asked for, and acknowledged up to so long after it was done: kills fall in both."""


@dataclass(frozen=True)
class Deed:
    """Something done for good. `number` is the authoritative id that the other side gave it."""

    number: int
    subject: str
    value: str
    key: str


@dataclass(frozen=True)
class Arrival:
    """A deed that was asked for, whenever it came. `again`: under a key that was done or is being done already."""

    at: float
    subject: str
    key: str
    pid: int
    again: bool


class Outside:
    """`claimed` says whether a key's claim is durable; it is asked the moment the deed is asked for."""

    def __init__(self, chance: random.Random, claimed: Callable[[str], Awaitable[bool]]) -> None:
        self._chance, self._claimed = chance, claimed
        self.done: list[Deed] = []
        self.arrived: list[Arrival] = []
        self.heard: set[str] = set()
        self.unclaimed: list[Arrival] = []
        self._tries: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        """Serve for the length of the block; yields `host:port`."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()[:2]
            yield f"{host}:{port}"

    def found(self, key: str) -> Deed | None:
        return next((deed for deed in self.done if deed.key == key), None)

    async def settled(self, key: str) -> Deed | None:
        """What a person finds who looks once nothing is on its way any more."""
        await asyncio.sleep(0.3)
        while self._pending[key]:
            await asyncio.sleep(0.01)
        return self.found(key)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The client may die at any moment; what it asked for happens all the same.
        with contextlib.suppress(ConnectionError):
            line = await reader.readline()
            if line.endswith(b"\n"):
                answer = await self._answer(json.loads(line))
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()

    async def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        match asked["op"]:
            case "do":
                return await self._do(asked["subject"], asked["value"], asked["key"], asked["pid"])
            case "look":
                found = self.found(asked["key"])
                return {"id": found.number if found else None}
            case "try":
                self._tries[asked["name"]] += 1
                return {"nth": self._tries[asked["name"]]}
            case "heard":
                self.heard.add(asked["call_id"])
                return {}
            case unknown:
                raise ValueError(f"the outside world does not know {unknown!r}")

    async def _do(self, subject: str, value: str, key: str, pid: int) -> dict[str, Any]:
        again = self.found(key) is not None or self._pending[key] > 0
        arrival = Arrival(time.monotonic(), subject, key, pid, again)
        self.arrived.append(arrival)
        self._pending[key] += 1
        try:
            if not await self._claimed(key):
                self.unclaimed.append(arrival)
            await asyncio.sleep(self._chance.uniform(0, LONGEST_BEFORE_S))
            if subject.endswith("/moody") and not self._tries[subject]:
                self._tries[subject] += 1
                return {"id": None, "refused": True}
            if (deed := self.found(key)) is None:
                deed = Deed(len(self.done) + 1, subject, value, key)
                self.done.append(deed)
        finally:
            self._pending[key] -= 1
        await asyncio.sleep(self._chance.uniform(0, LONGEST_AFTER_S))
        return {"id": deed.number, "refused": False}
