"""An HTTP proxy on a real socket: CONNECT tunnels and requests in absolute form, with or without credentials."""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class HttpProxy:
    """`asked` are the request lines that it got. `refuse` is a status that it gives instead; `hosts` redirects names."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.heads: list[bytes] = []
        self.refuse = 0
        self.credentials: str | None = None
        self.hosts: dict[str, str] = {}
        self.raw_answer: bytes | None = None
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._serve_one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            with suppress(OSError):
                writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        self.asked.append(f"{method} {target}")
        if self.raw_answer is not None:
            writer.write(self.raw_answer)
            await writer.drain()
            return False
        status = self.refuse or (0 if self._admits(head) else 407)
        if status:
            writer.write(b"HTTP/1.1 %d No\r\ncontent-length: 2\r\nproxy-authenticate: Basic\r\n\r\nno" % status)
            await writer.drain()
            return False
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            host = host.strip("[]")
            there_reader, there_writer = await asyncio.open_connection(self.hosts.get(host, host), int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\nvia: test\r\n\r\n")
            await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))
            return False
        await self._forward(target, head, reader, writer)
        return True

    def _admits(self, head: bytes) -> bool:
        if self.credentials is None:
            return True
        wanted = b"proxy-authorization: Basic " + base64.b64encode(self.credentials.encode())
        return wanted in head.split(b"\r\n")

    async def _forward(
        self, target: str, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        url = urlsplit(target)
        host = url.hostname or ""
        lines = head.split(b"\r\n")
        lines[0] = lines[0].replace(target.encode(), (url.path + (f"?{url.query}" if url.query else "")).encode())
        lines = [line for line in lines if not line.startswith(b"proxy-authorization")]
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        body = await reader.readexactly(length)
        there_reader, there_writer = await asyncio.open_connection(self.hosts.get(host, host), url.port or 80)
        lines.insert(1, b"connection: close")
        there_writer.write(b"\r\n".join(lines) + body)
        writer.write(await there_reader.read())
        await writer.drain()
        there_writer.close()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.close()


@asynccontextmanager
async def http_proxy(
    change: Callable[[HttpProxy], None] | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[HttpProxy]:
    proxy = HttpProxy()
    if change is not None:
        change(proxy)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=tls)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
