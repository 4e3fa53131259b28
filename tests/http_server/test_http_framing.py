"""Request framing: ambiguous requests are rejected, and every size is bounded."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from overnight.http_server.connection import MAX_HEAD_BYTES, MAX_PIPELINED
from raw_http import POST, Client, answer, body_of, echo, served

CHUNKED = b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
ONE = b"2\r\nab\r\n0\r\n\r\n"
HOST = b"host: x\r\n"


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with served(echo) as (_, connect):
        yield await connect()


def post(*fields: bytes, version: bytes = b"1.1", body: bytes = ONE) -> bytes:
    return b"POST /x HTTP/" + version + b"\r\nhost: x\r\n" + b"".join(f + b"\r\n" for f in fields) + b"\r\n" + body


SMUGGLING = {
    "no host": (b"GET /x HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /x HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", 400),
    "the same host twice": (b"GET /x HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n", 400),
    "whole url of another host": (b"GET http://evil/x HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "whole url with a user": (b"GET http://x@evil/x HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "whole url of another scheme": (b"GET gopher://x/x HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "fragment": (b"GET /x#y HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "coding before chunked": (post(b"transfer-encoding: gzip, chunked"), 501),
    "coding in a header before": (post(b"transfer-encoding: identity", b"transfer-encoding: chunked"), 501),
    "chunked twice": (post(b"transfer-encoding: chunked, chunked"), 400),
    "chunked in two headers": (post(b"transfer-encoding: chunked", b"transfer-encoding: chunked"), 400),
    "coding after chunked": (post(b"transfer-encoding: chunked, gzip"), 400),
    "xchunked": (post(b"transfer-encoding: xchunked"), 501),
    "quoted chunked": (post(b'transfer-encoding: "chunked"'), 501),
    "chunked with a parameter": (post(b"transfer-encoding: chunked;q=1"), 501),
    "identity": (post(b"transfer-encoding: identity"), 501),
    "vertical tab": (post(b"transfer-encoding: \x0bchunked"), 400),
    "folded coding": (post(b"transfer-encoding:\r\n chunked"), 400),
    "empty coding": (post(b"transfer-encoding:"), 400),
    "chunked in 1.0": (post(b"transfer-encoding: chunked", version=b"1.0"), 400),
    "chunked in 1.0 of an upgrade": (
        post(b"connection: upgrade", b"upgrade: h2c", b"transfer-encoding: chunked", version=b"1.0"),
        400,
    ),
    "length and chunks": (post(b"content-length: 2", b"transfer-encoding: chunked"), 400),
    "chunks and length": (post(b"transfer-encoding: chunked", b"content-length: 2"), 400),
    "two equal lengths": (post(b"content-length: 2", b"content-length: 2", body=b"ab"), 400),
    "list of lengths": (post(b"content-length: 2, 2", body=b"ab"), 400),
    "signed length": (post(b"content-length: +2", body=b"ab"), 400),
    "negative length": (post(b"content-length: -2", body=b"ab"), 400),
    "hex length": (post(b"content-length: 0x2", body=b"ab"), 400),
    "empty length": (post(b"content-length:", body=b"ab"), 400),
    "length over 64 bits": (post(b"content-length: 18446744073709551618", body=b"ab"), 400),
    "space before colon": (b"GET /x HTTP/1.1\r\nhost : x\r\n\r\n", 400),
    "folded line": (b"GET /x HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n", 400),
    "space before the first header": (b"GET /x HTTP/1.1\r\n host: x\r\n\r\n", 400),
    "bare LF": (b"GET /x HTTP/1.1\nhost: x\n\n", 400),
    "bare LF after a header": (b"GET /x HTTP/1.1\r\nhost: x\na: b\r\n\r\n", 400),
    "bare CR in a header": (b"GET /x HTTP/1.1\r\nhost: x\ry\r\n\r\n", 400),
    "NUL in a header": (b"GET /x HTTP/1.1\r\nhost: x\0y\r\n\r\n", 400),
    "NUL in the target": (b"GET /x\0y HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "no name": (b"GET /x HTTP/1.1\r\nhost: x\r\n: x\r\n\r\n", 400),
    "version 0.9": (b"GET /x HTTP/0.9\r\nhost: x\r\n\r\n", 505),
    "version 2.0": (b"GET /x HTTP/2.0\r\nhost: x\r\n\r\n", 505),
    "preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "unknown method": (b"FOO /x HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "endless method": (b"G" * 100_000, 400),
    "endless target": (b"GET /" + b"x" * 100_000, 431),
    "size over 64 bits": (CHUNKED + b"10000000000000002\r\nab\r\n0\r\n\r\n", 400),
    "size with a sign": (CHUNKED + b"-2\r\nab\r\n0\r\n\r\n", 400),
    "size in C": (CHUNKED + b"0x2\r\nab\r\n0\r\n\r\n", 400),
    "space after a size": (CHUNKED + b"2 \r\nab\r\n0\r\n\r\n", 400),
    "LF after a size": (CHUNKED + b"2\nab\r\n0\r\n\r\n", 400),
    "LF after a chunk": (CHUNKED + b"2\r\nab\n0\r\n\r\n", 400),
    "LF in an extension": (CHUNKED + b"2;a\nx\r\nab\r\n0\r\n\r\n", 400),
    "length in a trailer": (CHUNKED + b"2\r\nab\r\n0\r\ncontent-length: 5\r\n\r\n", 400),
    "coding in a trailer": (CHUNKED + b"2\r\nab\r\n0\r\ntransfer-encoding: chunked\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", SMUGGLING)
async def test_ambiguous_requests_are_rejected(client: Client, name: str) -> None:
    said, expected = SMUGGLING[name]
    client.say(said)
    status, _ = await client.answer()
    assert status == expected
    assert await client.rest() == b"", "no second answer, and the connection is closed"


@pytest.mark.parametrize(
    "said",
    [
        b"GET /x HTTP/1.0\r\n\r\n",
        b"GET http://X/x HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\r\n\r\nGET /x HTTP/1.1\r\nhost: x\r\n\r\n",
        post(b"Transfer-Encoding: Chunked"),
        post(b"transfer-encoding:\tchunked"),
        CHUNKED + b'2;a=b;c="d"\r\nab\r\n0\r\nx-sum: 1\r\n\r\n',
    ],
)
async def test_unusual_valid_requests_are_accepted(client: Client, said: bytes) -> None:
    client.say(said)
    status, body = await client.answer()
    assert (status, body.startswith((b"GET /x ", b"POST /x ab"))) == (200, True)


# ── bytes that are no body ──────────────────────────────────────────────────────────────────────────────────────────

ENDLESS = {
    "lines before a request": (b"", b"\r\n" * 1000),
    "lines between requests": (b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n", b"\r\n" * 1000),
    "one header": (b"GET /x HTTP/1.1\r\nhost: x\r\na: ", b"x" * 1000),
    "chunk extension": (CHUNKED + b"2;a=", b"x" * 1000),
    "zeros of a size": (CHUNKED, b"0" * 1000),
    "one trailer": (CHUNKED + b"2\r\nab\r\n0\r\na: ", b"x" * 1000),
    "trailers": (CHUNKED + b"2\r\nab\r\n0\r\n", b"a: b\r\n" * 150),
    "extensions of many chunks": (CHUNKED, b"1;" + b"x" * 90 + b"\r\na\r\n"),
}


@pytest.mark.parametrize("name", ENDLESS)
async def test_framing_bytes_are_bounded(name: str) -> None:
    start, more = ENDLESS[name]
    async with served(echo) as (_, connect):
        client = await connect()
        client.say(start)
        if start.startswith(b"GET") and start.endswith(b"\r\n\r\n"):
            assert await client.answer() == (200, b"GET /x ")
        refusal = asyncio.create_task(client.answer())
        sent = 0
        while not refusal.done() and sent < 4 * MAX_HEAD_BYTES:
            client.say(more)
            sent += len(more)
            await asyncio.sleep(0.001)
        assert sent < 2 * MAX_HEAD_BYTES
        assert (await refusal)[0] == 431
        assert await client.rest() == b""


async def test_chunk_framing_does_not_count_as_body(client: Client) -> None:
    size = 8 * MAX_HEAD_BYTES
    client.say(CHUNKED + b"2\r\nab\r\n" * (size // 2) + b"0\r\n\r\n")
    assert await client.answer() == (200, b"POST /x " + b"ab" * (size // 2))


@pytest.mark.parametrize("offer", [b"", b"connection: upgrade\r\nupgrade: h2c\r\n"])
async def test_pipelined_requests_are_bounded(client: Client, offer: bytes) -> None:
    # One read holds thousands. Each offer was a call deeper, and each request a kilobyte that waits.
    client.say(b"GET /u HTTP/1.1\r\nhost: x\r\n%b\r\n" % offer * 3000)
    answers = (await client.rest()).count(b"HTTP/1.1 200 OK")
    assert 1 <= answers <= MAX_PIPELINED + 1


async def test_upgrade_is_ignored_with_chunks_and_pipelining(client: Client) -> None:
    offer = post(b"connection: upgrade", b"upgrade: h2c", b"transfer-encoding: chunked")
    client.say(offer + POST % (2, b"cd"))
    assert await client.answer() == (200, b"POST /x ab")
    assert await client.answer() == (200, b"POST /echo cd")


# ── closing one's side ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_pipelined_requests_are_answered_after_half_close(client: Client) -> None:
    client.say(b"".join(POST % (1, b"%d" % number) for number in range(3)))
    client.writer.write_eof()
    for number in range(3):
        assert await client.answer() == (200, b"POST /echo %d" % number)
    assert await client.rest() == b""


async def test_truncated_second_request_keeps_the_first_response(client: Client) -> None:
    client.say(POST % (2, b"ok") + b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf")
    client.writer.write_eof()
    assert await client.answer() == (200, b"POST /echo ok")
    assert await client.rest() == b""


async def test_application_is_notified_of_a_half_close() -> None:
    left = asyncio.Event()

    async def listens(scope: Any, receive: Any, send: Any) -> None:
        await body_of(receive)
        assert (await receive())["type"] == "http.disconnect"
        left.set()
        await answer(send, b"late")

    async with served(listens) as (_, connect):
        client = await connect()
        client.say(POST % (2, b"ok"))
        await asyncio.sleep(0.02)
        assert not left.is_set()
        client.writer.write_eof()
        assert await client.answer() == (200, b"late")


# ── who takes too long ──────────────────────────────────────────────────────────────────────────────────────────────

SLOW = {
    "head": (b"GET /x HTTP/1.1\r\nhost: x\r\na: ", b"x"),
    "lines": (b"", b"\r\n"),
    "body": (b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n", b"x"),
    "trailer": (CHUNKED + b"0\r\na: ", b"x"),
    "second head": (POST % (2, b"ok") + b"GET /x HT", b""),
}


@pytest.mark.parametrize("name", SLOW)
async def test_slow_bodies_time_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.http_server.server.CHECK_INTERVAL_S", 0.01)
    start, drip = SLOW[name]
    async with served(echo, head_timeout_s=0.1, body_window_s=0.1) as (_, connect):
        client = await connect()
        client.say(start)
        if name == "second head":
            assert await client.answer() == (200, b"POST /echo ok")

        async def drips() -> None:
            while True:
                client.say(drip)
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drips())
        try:
            status, body = await client.answer()
            assert (status, b"seconds" in body or b"per second" in body) == (408, True)
        finally:
            dripping.cancel()


async def test_paused_reading_does_not_time_out_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.http_server.server.CHECK_INTERVAL_S", 0.01)

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(1.2)
        await answer(send, b"%d" % len(await body_of(receive)))

    async with served(late, idle_timeout_s=0.5, body_window_s=0.5) as (_, connect):
        for expects in (b"", b"expect: 100-continue\r\n"):
            client = await connect()
            client.say(b"POST /x HTTP/1.1\r\nhost: x\r\n" + expects + b"content-length: 1000000\r\n\r\n")
            if expects:
                assert b"100 continue" in await client.head()
            client.say(b"x" * 1_000_000)
            assert await client.answer() == (200, b"1000000")
