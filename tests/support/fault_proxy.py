"""A TCP proxy in front of a gateway that loses requests and answers, drawn from a seed; one request per connection."""

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

FAULTS = {"none": 20, "request_lost": 1, "answer_lost": 2, "answer_cut": 1, "slow": 2}
"""What becomes of a connection, and how often. request_lost: it is reset before the other side sees it. answer_lost: the other
side has answered. answer_cut: half of the answer arrives."""


class FaultProxy:
    """`calm` ends the faults; `counts` says how often each was drawn."""

    def __init__(self, to_port: int, chance: random.Random) -> None:
        self._to_port, self._chance = to_port, chance
        self.calm = False
        self.counts: Counter[str] = Counter()
        self.port = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = "none" if self.calm else self._chance.choices(list(FAULTS), list(FAULTS.values()))[0]
        self.counts[fault] += 1
        there: asyncio.StreamWriter | None = None
        sending: asyncio.Task[None] | None = None
        try:
            if fault == "request_lost":
                return _reset(writer)
            if fault == "slow":
                await asyncio.sleep(0.1)
            answers, there = await asyncio.open_connection("127.0.0.1", self._to_port)
            sending = asyncio.create_task(_pump(reader, there))
            if fault in ("none", "slow"):
                await _pump(answers, writer)
            else:
                answer = await answers.read(65536)
                if fault == "answer_cut":
                    writer.write(answer[: len(answer) // 2])
                    with suppress(OSError):
                        await writer.drain()
                _reset(writer)
        except OSError:
            _reset(writer)  # the gateway is down
        finally:
            if sending is not None:
                sending.cancel()
            for each in (writer, there):
                if each is not None:
                    with suppress(OSError):
                        each.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def fault_proxy(to_port: int, chance: random.Random) -> AsyncIterator[FaultProxy]:
    proxy = FaultProxy(to_port, chance)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in list(proxy.tasks):
            task.cancel()
        await asyncio.gather(*proxy.tasks, return_exceptions=True)
