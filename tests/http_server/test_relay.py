"""Requests relayed to a server on a unix socket: bodies, streams, refusals and clients that leave."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from overnight.http_server import Server
from overnight.http_server.relay import RelayBroken, RelayUnavailable, UnixRelay

Seen = list[dict[str, Any]]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the method, the target and the body."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    names = b" ".join(sorted(name for name, _ in scope["headers"]))
    text = b"%b %b?%b %b [%b]" % (scope["method"].encode(), scope["raw_path"], scope["query_string"], body, names)
    headers = [(b"content-length", b"%d" % len(text)), (b"x-own", b"1")]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": text})


@contextlib.asynccontextmanager
async def relayed(app: Any, folder: Path) -> AsyncIterator[int]:
    """The port of a server that relays everything to `app`, which listens on a unix socket."""
    path = str(folder / "s")
    behind = Server(app)
    await behind.start_unix(path)
    relay = UnixRelay(path)

    async def front(scope: Any, receive: Any, send: Any) -> None:
        try:
            await relay(scope, receive, send)
        except RelayUnavailable:
            await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

    server = Server(front)
    _, port = await server.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await server.stop(0.2)
        await behind.stop(0.2)


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


HEAD = b"POST /a%%2Fb?x=1 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n%b\r\n"


async def test_a_body_of_known_length_is_relayed(tmp_path: Path) -> None:
    async with relayed(echo, tmp_path) as port:
        answer = await ask(port, HEAD % b"content-length: 5\r\n" + b"hello")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 201 ")
    assert b"x-own: 1" in head
    assert head.count(b"date:") == 1
    assert body.startswith(b"POST /a%2Fb?x=1 hello ")
    assert b"x-forwarded-for" in body or b"host" in body


async def test_a_chunked_body_is_relayed(tmp_path: Path) -> None:
    chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    async with relayed(echo, tmp_path) as port:
        answer = await ask(port, HEAD % b"transfer-encoding: chunked\r\n" + chunks)
    assert b"x=1 abcde " in answer


async def test_a_head_request_has_no_body(tmp_path: Path) -> None:
    async with relayed(echo, tmp_path) as port:
        answer = await ask(port, b"HEAD /h HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 201 ")
    assert body == b""


async def test_stream_is_relayed_live_until_its_client_disconnects(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def ticks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with relayed(ticks, tmp_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /live HTTP/1.1\r\nhost: h\r\n\r\n")
        assert b"200" in await asyncio.wait_for(reader.readuntil(b"data: 1\n\n"), 5)
        writer.close()
        await asyncio.wait_for(gone.wait(), 5)


async def test_refusal_before_the_body_is_relayed(tmp_path: Path) -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})

    async with relayed(refuse, tmp_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 50000000\r\n\r\n" + b"x" * 1000)
        assert b" 401 " in await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
        writer.close()


async def test_interrupted_response_is_not_completed(tmp_path: Path) -> None:
    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("broken")

    async with relayed(breaks, tmp_path) as port:
        answer = await ask(port, b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
    assert b"content-length: 100" in answer
    assert answer.endswith(b"half")


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1"])
async def test_relay_without_a_server_is_unavailable(tmp_path: Path, request_line: bytes) -> None:
    async with relayed(echo, tmp_path) as port:
        (tmp_path / "s").unlink()
        answer = await ask(port, request_line + b"\r\nhost: h\r\nconnection: close\r\n\r\n")
    assert b" 503 " in answer


async def test_half_closed_client_receives_the_relayed_response(tmp_path: Path) -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.3)
        await echo(scope, receive, send)

    async with relayed(slow, tmp_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD % b"content-length: 5\r\n" + b"hello")
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert b"HTTP/1.1 201 " in answer
    assert b" hello " in answer


async def test_server_death_after_the_request_is_relay_broken(tmp_path: Path) -> None:
    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    raised: list[Exception] = []

    async def front(scope: Any, receive: Any, send: Any) -> None:
        try:
            await UnixRelay(str(tmp_path / "s"))(scope, receive, send)
        except RelayBroken as error:
            raised.append(error)
            await send({"type": "http.response.start", "status": 502, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

    behind = await asyncio.start_unix_server(dies, str(tmp_path / "s"))
    server = Server(front)
    _, port = await server.start("127.0.0.1", 0)
    answer = await ask(port, HEAD % b"content-length: 0\r\n")
    await server.stop(0.2)
    behind.close()
    assert b" 502 " in answer
    assert len(raised) == 1
