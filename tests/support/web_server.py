"""A small HTTP server on a real socket, which gives one answer for each path."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


def answer(body: bytes = b"ok", *headers: str, status: int = 200) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class WebServer:
    """`answers` by path; `requests` are the heads and bodies that it got."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.answers = answers
        self.requests: list[bytes] = []
        self.port = self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
                self.requests.append(head + await reader.readexactly(length))
                path = head.split(b" ", 2)[1].decode()
                given = self.answers.get(path.partition("?")[0], answer(b"nothing here", status=404))
                writer.write(given)
                await writer.drain()
                if b"connection: close" in lines or b"connection: close\r\n" in given:
                    break
        with suppress(OSError):
            writer.close()


@asynccontextmanager
async def web_server(
    answers: dict[str, bytes] | None = None, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, port: int = 0
) -> AsyncIterator[WebServer]:
    served = WebServer(answers or {"/": answer()})
    server = await asyncio.start_server(served.serve, host, port, ssl=tls)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
