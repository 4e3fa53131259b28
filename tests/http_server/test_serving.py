"""The HTTP server on raw sockets: framing, order, limits and disconnects."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from overnight.http_server.connection import LINGER_S, MAX_HEAD_BYTES, MAX_UNREAD_BYTES
from raw_http import POST, Client, answer, body_of, echo, served


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with served(echo) as (_, connect):
        yield await connect()


async def test_one_connection_carries_many_requests(client: Client) -> None:
    for number in range(3):
        client.say(POST % (1, b"%d" % number))
        assert await client.answer() == (200, b"POST /echo %d" % number)


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def slow_first(scope: Any, receive: Any, send: Any) -> None:
        body = await body_of(receive)
        if body == b"0":
            await asyncio.sleep(0.05)
        await answer(send, body)

    async with served(slow_first) as (_, connect):
        client = await connect()
        client.say(b"".join(POST % (1, b"%d" % number) for number in range(5)))
        assert [await client.answer() for _ in range(5)] == [(200, b"%d" % number) for number in range(5)]


async def test_path_is_decoded_and_may_be_an_absolute_url(client: Client) -> None:
    client.say(b"GET /a%20b?x=1 HTTP/1.1\r\nhost: x\r\n\r\n")
    assert await client.answer() == (200, b"GET /a b ")
    client.say(b"GET http://x/whole?x=1 HTTP/1.1\r\nhost: x\r\n\r\n")
    assert await client.answer() == (200, b"GET /whole ")


async def test_slow_chunked_body_is_read(client: Client) -> None:
    request = b"POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nx-late: 1\r\n\r\n"
    for byte in request:
        client.say(bytes([byte]))
        await asyncio.sleep(0)
    assert await client.answer() == (200, b"POST /c abcde")


async def test_expect_continue_is_answered(client: Client) -> None:
    client.say(b"POST /c HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
    assert await client.head() == b"http/1.1 100 continue\r\n\r\n"
    client.say(b"ok")
    assert await client.answer() == (200, b"POST /c ok")


async def test_upgrade_offer_is_ignored(client: Client) -> None:
    # Java's HTTP client offers h2c with every request; a server that stops at the offer loses the body.
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
    for body in (b"first", b"again"):
        client.say(b"POST /u HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n%b" % (offer, len(body), body))
        assert await client.answer() == (200, b"POST /u " + body)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_connection_close_is_honoured(client: Client, version: bytes) -> None:
    wish = b"connection: close\r\n" if version == b"1.1" else b""
    client.say(b"GET /x HTTP/%b\r\nhost: x\r\n%b\r\n" % (version, wish))
    head = await client.head()
    assert b"connection: close" in head
    assert await client.rest() == b"GET /x "


async def test_http_1_0_keep_alive_is_honoured(client: Client) -> None:
    for _ in range(2):
        client.say(b"GET /x HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        assert await client.answer() == (200, b"GET /x ")


async def test_half_closed_client_receives_its_response() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.05)
        await answer(send, b"late")

    async with served(slow) as (_, connect):
        client = await connect()
        client.say(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
        client.writer.write_eof()
        assert (await client.rest()).endswith(b"late")


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
async def test_head_response_has_no_body(client: Client, method: bytes) -> None:
    client.say(method + b" /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    head, _, body = (await client.rest()).partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(method + b" /x ") in head
    assert body == (b"" if method == b"HEAD" else b"GET /x ")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_response_of_unknown_length_is_chunked(version: bytes) -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"one", b"", b"three"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with served(stream) as (_, connect):
        client = await connect()
        client.say(b"GET /x HTTP/%b\r\nhost: x\r\n\r\n" % version)
        head = await client.head()
        if version == b"1.0":
            assert (b"transfer-encoding" not in head, await client.rest()) == (True, b"onethree")
        else:
            assert b"transfer-encoding: chunked" in head
            whole = b"3\r\none\r\n5\r\nthree\r\n0\r\n\r\n"
            assert await client.reader.readexactly(len(whole)) == whole


# ── what is no request ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET /x HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
        (b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\nab", 400),
        (b"CONNECT x:443 HTTP/1.1\r\nhost: x:443\r\n\r\n", 405),
        (b"GET /x HTTP/1.1\r\nlong: " + b"x" * (MAX_HEAD_BYTES + 1), 431),
        (b"GET /x HTTP/1.1\r\n" + b"a: b\r\n" * 300 + b"\r\n", 431),
    ],
)
async def test_invalid_request_is_rejected_and_closed(client: Client, said: bytes, status: int) -> None:
    client.say(said)
    refused, body = await client.answer()
    assert (refused, b"invalid_request_error" in body) == (status, True)
    assert await client.rest() == b""


BROKEN = b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"


@pytest.mark.parametrize("ahead", [0, 1])
async def test_broken_chunk_before_the_response_is_rejected(ahead: int) -> None:
    left: list[bool] = []

    async def reader(scope: Any, receive: Any, send: Any) -> None:
        try:
            await echo(scope, receive, send)
        except ConnectionError:
            left.append(True)
            await answer(send, b"nobody hears this")

    async with served(reader) as (server, connect):
        client = await connect()
        for _ in range(ahead):
            client.say(POST % (2, b"ok"))
            assert await client.answer() == (200, b"POST /echo ok")
        client.say(BROKEN)
        await asyncio.sleep(0.05)
        client.say(b"zz\r\n")
        refused, body = await client.answer()
        assert (refused, b"chunks" in body) == (400, True)
        assert await client.rest() == b""
        assert left == [True]
        client.writer.close()
        async with asyncio.timeout(LINGER_S / 2):
            await server.stop(LINGER_S)


async def test_broken_chunk_during_the_response_cuts_it() -> None:
    async def early(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        with pytest.raises(ConnectionError):
            await body_of(receive)

    async with served(early) as (_, connect):
        client = await connect()
        client.say(BROKEN)
        await client.head()
        client.say(b"zz\r\n")
        assert b"400" not in await client.rest()


async def test_garbage_after_a_request_keeps_its_response() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await body_of(receive)
        await asyncio.sleep(0.05)
        await answer(send, b"whole")

    async with served(slow) as (_, connect):
        client = await connect()
        client.say(POST % (2, b"ok") + b"\x00nonsense")
        assert await client.answer() == (200, b"whole")
        assert await client.rest() == b""


async def test_early_rejection_can_be_read() -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"too large", 413)

    async with served(refuse) as (_, connect):
        client = await connect()
        client.say(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n")
        for _ in range(100):
            client.say(b"x" * 10_000)
        assert await client.answer() == (413, b"too large")
        assert await client.rest() == b""


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("said", [b"", b"GET /x HT", b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf"])
async def test_silent_client_times_out(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.http_server.server.CHECK_INTERVAL_S", 0.01)
    left = asyncio.Event()

    async def reader(scope: Any, receive: Any, send: Any) -> None:
        try:
            await body_of(receive)
        except ConnectionError:
            left.set()

    async with served(reader, idle_timeout_s=0.05) as (_, connect):
        client = await connect()
        client.say(said)
        assert await client.rest() == b""
        if b"POST" in said:
            async with asyncio.timeout(10):
                await left.wait()


async def test_server_work_does_not_time_out_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.http_server.server.CHECK_INTERVAL_S", 0.01)

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.3)
        await answer(send, b"late")

    async with served(slow, idle_timeout_s=0.05) as (_, connect):
        client = await connect()
        client.say(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await client.answer() == (200, b"late")


async def test_unread_body_is_paused() -> None:
    read = asyncio.Event()
    seen: list[int] = []

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await read.wait()
        message = await receive()
        seen.append(len(message["body"]))
        while message["more_body"]:
            message = await receive()
            seen.append(len(message["body"]))
        await answer(send, b"%d" % sum(seen))

    async with served(late) as (_, connect):
        client = await connect()
        size = 64 * 1024 * 1024
        client.say(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        client.say(b"x" * size)
        await asyncio.sleep(0.2)
        read.set()
        assert await client.answer() == (200, b"%d" % size)
        assert max(seen) < MAX_UNREAD_BYTES + 512 * 1024, "more than a bound and a read were kept"


async def test_slow_client_pauses_the_response() -> None:
    written = 0

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        nonlocal written
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(2000):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
            written += 1
        await send({"type": "http.response.body", "body": b""})

    async with served(endless) as (_, connect):
        client = await connect()
        client.say(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0.3)
        assert 0 < written < 500
        client.writer.close()
        async with asyncio.timeout(10):
            while written < 2000:  # it left: the rest is thrown away
                await asyncio.sleep(0.01)


# ── faults and ends ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_error_before_the_response_is_500(caplog: pytest.LogCaptureFixture) -> None:
    async def faulty(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError("secret")

    async with served(faulty) as (_, connect):
        client = await connect()
        client.say(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
        status, body = await client.answer()
        assert (status, b"secret" in body, b"log" in body) == (500, False, True)
        assert "ZeroDivisionError" in caplog.text


async def test_error_during_the_response_cuts_it() -> None:
    async def faulty(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ZeroDivisionError

    async with served(faulty) as (_, connect):
        client = await connect()
        client.say(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"0\r\n\r\n" not in (await client.rest()).partition(b"\r\n\r\n")[2]


async def test_header_injection_is_rejected() -> None:
    async def smuggler(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"x", 200, (b"x-name", b"a\r\nx-evil: 1"))

    async with served(smuggler) as (_, connect):
        client = await connect()
        client.say(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await client.head()
        assert (head.split()[1], b"evil" in head) == (b"500", False)


async def test_shutdown_waits_for_responses() -> None:
    begun = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        await asyncio.sleep(0.1)
        await answer(send, b"whole")

    async with served(slow) as (server, connect):
        idle, client = await connect(), await connect()
        client.say(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
        await begun.wait()
        stopping = asyncio.create_task(server.stop(10))
        assert await client.answer() == (200, b"whole")
        async with asyncio.timeout(5):
            await stopping
        assert await idle.rest() == b""


async def test_shutdown_has_a_time_limit() -> None:
    ended = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async with served(endless) as (server, connect):
        client = await connect()
        client.say(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0.05)
        async with asyncio.timeout(LINGER_S + 5):
            await server.stop(0.05)
        assert ended.is_set()


async def test_call_continues_after_disconnect() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await body_of(receive)
        begun.set()
        await asyncio.sleep(0.1)
        await answer(send, b"x" * 1_000_000)
        ended.set()

    async with served(slow) as (_, connect):
        client = await connect()
        client.say(POST % (2, b"ok"))
        await begun.wait()
        client.writer.transport.abort()
        async with asyncio.timeout(10):
            await ended.wait()
