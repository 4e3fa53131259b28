"""A bare server of the application under test, and a client on a raw socket."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from overnight.api import Server

App = Callable[[Any, Any, Any], Awaitable[None]]
POST = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"


async def body_of(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client left")
        body += message["body"]
        if not message["more_body"]:
            return body


async def answer(send: Any, body: bytes, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    sized = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [sized, *headers]})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = await body_of(receive)
    await answer(send, b"%b %b %b" % (scope["method"].encode(), scope["path"].encode(), body))


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> bytes:
        async with asyncio.timeout(10):
            return (await self.reader.readuntil(b"\r\n\r\n")).lower()

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer that has a length."""
        head = await self.head()
        while head.startswith(
            b"http/1.1 102"
        ):  # interim: a client that closed its side is asked whether it still reads
            head = await self.head()
        length = re.search(rb"content-length: (\d+)", head)
        assert length, head
        async with asyncio.timeout(10):
            return int(head.split()[1]), await self.reader.readexactly(int(length[1]))

    async def rest(self) -> bytes:
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


@asynccontextmanager
async def served(app: App, **options: Any) -> AsyncIterator[tuple[Server, Callable[[], Awaitable[Client]]]]:
    server = Server(app, **options)
    host, port = await server.start("127.0.0.1", 0)
    clients: list[Client] = []

    async def connect() -> Client:
        clients.append(Client(*await asyncio.open_connection(host, port)))
        return clients[-1]

    try:
        yield server, connect
    finally:
        await server.stop(0)
        for client in clients:
            client.writer.close()
