"""The upstream client on real sockets: requests, connection reuse, and classes of failures."""

import asyncio
import inspect
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from contextlib import asynccontextmanager, suppress

import pytest
import uvloop

from overnight.outgoing import (
    BodyCut,
    MalformedResponse,
    NeverSent,
    ResponseLost,
    ResponseTooLarge,
    UpstreamError,
    UpstreamPool,
    UpstreamTimeout,
)

KEY = "sk-secret-0123456789"
HEADERS = [(b"authorization", b"Bearer " + KEY.encode()), (b"content-type", b"application/json")]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
BIG = bytes(32 * 1024 * 1024)


def both_loops(test):
    """Run the async test on asyncio's loop and on uvloop; an exception lost in a callback fails it."""

    def run(new_loop, **arguments):
        lost = []
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: lost.append(context))
            runner.run(asyncio.wait_for(test(**arguments), 30))
        assert lost == []

    given = inspect.signature(test)
    loop = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = given.replace(parameters=[*given.parameters.values(), loop])
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.pytestmark = list(getattr(test, "pytestmark", []))
    loops = [asyncio.new_event_loop, uvloop.new_event_loop]
    return pytest.mark.parametrize("new_loop", loops, ids=["asyncio", "uvloop"])(run)


class Server:
    """Runs ``script(reader, writer, number)`` per connection, counted from 1, and keeps what it saw."""

    def __init__(self, script):
        self.script, self.connections, self.open, self.most_open = script, 0, 0, 0
        self.requests: list[tuple[bytes, bytes]] = []
        self.ended = asyncio.Queue()

    async def serve(self, reader, writer):
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self.script(reader, writer, self.connections)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            self.ended.put_nowait(type(error).__name__)
        else:
            self.ended.put_nowait("end of script")
        finally:
            self.open -= 1
            writer.close()

    async def read(self, reader):
        """One request, recorded; raises IncompleteReadError when the client has gone."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(
            next((line.split(b":")[1] for line in head.split(b"\r\n") if line.startswith(b"content-length")), 0)
        )
        body = await reader.readexactly(length)
        self.requests.append((head, body))
        return head, body


@asynccontextmanager
async def pool_on(script, *, tls=None, client_tls=None, **options):
    """A server running the script, and a pool for it."""
    server = Server(None)
    server.script = lambda reader, writer, number: script(server, reader, writer, number)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    pool = UpstreamPool(f"http{'s' if tls else ''}://localhost:{port}/v1/", ssl_context=client_tls, **options)
    try:
        yield server, pool
    finally:
        await pool.close()
        listener.close()


def answering(*parts, close=False):
    """A script that answers every request with the parts, each written by itself."""

    async def script(server, reader, writer, _):
        while True:
            await server.read(reader)
            for part in parts:
                writer.write(part)
                await writer.drain()
                if len(parts) > 1:
                    await asyncio.sleep(0)
            if close:
                return

    return script


def soon(seconds=60.0):  # later than any test may last
    return asyncio.get_running_loop().time() + seconds


async def ask(pool, body=b"{}", seconds=60.0):
    return await pool.request("POST", "/chat", HEADERS, body, soon(seconds))


async def read_all(pool, seconds=60.0):
    async with await pool.stream("POST", "/chat", HEADERS, b"{}", soon(seconds)) as stream:
        return b"".join([chunk async for chunk in stream])


# ── what is sent, what arrives ──────────────────────────────────────────────────────────────────────────────────────


@both_loops
async def test_request_is_sent_exactly():
    async with pool_on(answering(OK)) as (server, pool):
        answer = await ask(pool, b'{"model":"m"}')
        assert (answer.status, answer.body) == (200, b"ok")
        head, body = server.requests[0]
        assert body == b'{"model":"m"}'
        assert head.split(b"\r\n") == [
            b"POST /v1/chat HTTP/1.1",
            b"host: " + pool.origin.encode(),
            b"accept-encoding: identity",
            b"authorization: Bearer " + KEY.encode(),
            b"content-type: application/json",
            b"content-length: 13",
            b"",
            b"",
        ]


@both_loops
async def test_get_carries_no_length():
    async with pool_on(answering(OK)) as (server, pool):
        assert (await pool.request("GET", "/models", [], b"", soon())).body == b"ok"
        assert b"content-length" not in server.requests[0][0]


@both_loops
async def test_header_names_are_lower_case_and_repeats_are_joined():
    raw = b"HTTP/1.1 429 Slow Down\r\nRetry-After: 3\r\nX-Limit: a\r\nx-limit: b\r\nContent-Length: 0\r\n\r\n"
    async with pool_on(answering(raw)) as (_, pool):
        answer = await ask(pool)
        assert (answer.status, answer.body) == (429, b"")
        assert answer.headers == {b"retry-after": b"3", b"x-limit": b"a, b", b"content-length": b"0"}


ANSWERS = {
    "length": OK,
    "chunked": CHUNKED + b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
    "extensions and trailers": CHUNKED + b"2;a=b\r\nok\r\n0;x\r\nx-sum: 1\r\nx-more: 2\r\n\r\n",
    "early hints": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK,
}


@pytest.mark.parametrize("raw", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("pieces", ["whole", "bytes"])
@both_loops
async def test_connection_is_reused_after_any_framing(raw, pieces):
    parts = [raw] if pieces == "whole" else [raw[i : i + 1] for i in range(len(raw))]
    async with pool_on(answering(*parts)) as (server, pool):
        for _ in range(3):
            assert (await ask(pool)).body == b"ok"
            assert await read_all(pool) == b"ok"
        assert server.connections == 1
        assert "link" not in str((await ask(pool)).headers)


@both_loops
async def test_body_without_length_ends_with_the_connection():
    async with pool_on(answering(b"HTTP/1.1 200 OK\r\n\r\nun", b"til close", close=True)) as (server, pool):
        assert (await ask(pool)).body == b"until close"
        assert await read_all(pool) == b"until close"
        assert server.connections == 2


@both_loops
async def test_no_content_has_no_body():
    async with pool_on(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as (server, pool):
        assert [(await ask(pool)).status for _ in range(2)] == [204, 204]
        assert server.connections == 1


@both_loops
async def test_large_bodies_are_sent_and_received():
    async def script(server, reader, writer, _):
        while True:
            _, body = await server.read(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    async with pool_on(script) as (server, pool):
        body = bytes(range(256)) * 20_000
        assert (await ask(pool, body)).body == body
        assert (await ask(pool, body)).body == body
        assert server.connections == 1


@both_loops
async def test_stream_yields_each_chunk_at_once():
    read = asyncio.Event()

    async def script(server, reader, writer, _):
        await server.read(reader)
        writer.write(CHUNKED + b"3\r\none\r\n")
        await read.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
        await reader.read()

    async with pool_on(script) as (_, pool), await pool.stream("POST", "/chat", HEADERS, b"{}", soon()) as stream:
        assert (stream.status, stream.headers[b"transfer-encoding"]) == (200, b"chunked")
        chunks = aiter(stream)
        assert await anext(chunks) == b"one"
        read.set()
        assert await anext(chunks) == b"two"
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)


@both_loops
async def test_follower_receives_chunks_until_it_stops():
    script = answering(CHUNKED + b"3\r\none\r\n", b"3\r\ntwo\r\n", b"3\r\nsix\r\n", b"0\r\n\r\n")
    async with pool_on(script) as (_, pool):
        for enough in (b"one", b"two", b"none"):
            seen = []

            def take(chunk, seen=seen, enough=enough):
                seen.append(chunk)
                return enough in chunk

            async with await pool.stream("POST", "/chat", HEADERS, b"{}", soon()) as stream:
                assert await stream.follow(take) == (enough != b"none")
                rest = [chunk async for chunk in stream]
            assert b"".join(seen + rest) == b"onetwosix"


@both_loops
async def test_follower_receives_errors():
    async with pool_on(answering(CHUNKED + b"2\r\nok\r\n", close=True)) as (_, pool):
        seen = []
        async with await pool.stream("POST", "/chat", HEADERS, b"{}", soon()) as stream:
            with pytest.raises(BodyCut):
                await stream.follow(seen.append)
        assert seen == [b"ok"]

        def faulty(chunk):
            raise LookupError("mine")

        for part in (CHUNKED, CHUNKED + b"2\r\nok\r\n"):  # the first chunk comes with the head, or after it
            async with pool_on(answering(part, b"2\r\nok\r\n0\r\n\r\n")) as (_, other):
                stream = await other.stream("POST", "/chat", HEADERS, b"{}", soon())
                with pytest.raises(LookupError, match="mine"):
                    await stream.follow(faulty)


@pytest.mark.parametrize("first_s", [0.05, 60])
@both_loops
async def test_a_deadline_can_be_moved_both_ways(first_s):
    async def script(server, reader, writer, _):
        await server.read(reader)
        writer.write(CHUNKED + b"3\r\none\r\n")
        await asyncio.sleep(0.15)
        writer.write(b"3\r\ntwo\r\n")
        await server.read(reader)

    seen = []
    async with pool_on(script) as (_, pool):
        stream = await pool.stream("POST", "/chat", HEADERS, b"{}", soon(first_s))

        def take(chunk):
            seen.append(chunk)
            stream.extend(soon(0.3))
            return False

        with pytest.raises(UpstreamTimeout):
            await stream.follow(take)
    assert seen == [b"one", b"two"]


@both_loops
async def test_slow_reader_pauses_the_upstream():
    sent = 0

    async def script(server, reader, writer, _):
        nonlocal sent
        await server.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(BIG))
        for start in range(0, len(BIG), 65536):
            writer.write(BIG[start : start + 65536])
            await writer.drain()
            sent = start + 65536

    async with pool_on(script) as (_, pool):
        stream = await pool.stream("POST", "/chat", HEADERS, b"{}", soon(25))
        before = -1
        while before != sent:  # until the server can send no more
            before = sent
            await asyncio.sleep(0.2)
        assert sent < len(BIG) // 2
        assert sum([len(chunk) async for chunk in stream]) == len(BIG)


# ── connections ─────────────────────────────────────────────────────────────────────────────────────────────────────


@both_loops
async def test_connections_are_bounded_and_reused():
    async with pool_on(answering(OK), max_connections=3) as (server, pool):
        answers = await asyncio.gather(*[ask(pool, b"%d" % n) for n in range(60)])
        assert [answer.body for answer in answers] == [b"ok"] * 60
        assert server.most_open <= 3
        assert sorted(int(body) for _, body in server.requests) == list(range(60))


@both_loops
async def test_the_queue_is_first_come_first_served():
    async with pool_on(answering(OK), max_connections=1) as (server, pool):
        await asyncio.gather(*[ask(pool, b"%d" % n) for n in range(20)])
        assert [int(body) for _, body in server.requests] == list(range(20))


@both_loops
async def test_the_queue_is_bounded_and_waits_no_longer_than_the_deadline():
    async def script(server, reader, writer, _):
        await server.read(reader)
        await reader.read()

    async with pool_on(script, max_connections=1, max_waiting=1) as (server, pool):
        busy = asyncio.create_task(ask(pool))
        while not server.requests:
            await asyncio.sleep(0)
        waiting = asyncio.create_task(ask(pool, seconds=0.1))
        await asyncio.sleep(0)
        with pytest.raises(NeverSent, match="waiting for a connection"):
            await ask(pool)
        with pytest.raises(UpstreamTimeout) as caught:
            await waiting
        assert (caught.value.phase, caught.value.sent) == ("queue", False)
        busy.cancel()
        with suppress(asyncio.CancelledError):
            await busy
        assert len(server.requests) == 1


@both_loops
async def test_cancelled_waiters_leave_the_queue():
    async with pool_on(answering(OK), max_connections=1) as (server, pool):
        tasks = [asyncio.create_task(ask(pool, b"%d" % n)) for n in range(30)]
        for step in range(40):
            await asyncio.sleep(0)
            if step % 3 == 0 and step < 30:
                tasks[step].cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(getattr(one, "body", None) == b"ok" or isinstance(one, asyncio.CancelledError) for one in done)
        assert (await ask(pool)).body == b"ok"
        assert server.most_open == 1


@both_loops
async def test_waiter_cancelled_at_handover_passes_the_connection():
    async with pool_on(answering(OK), max_connections=1) as (server, pool):

        async def ask_then_cancel_the_next():
            await ask(pool)
            waiting.cancel()  # the connection is its own already, but it has not run since

        first = asyncio.create_task(ask_then_cancel_the_next())
        await asyncio.sleep(0)
        waiting = asyncio.create_task(ask(pool))
        last = asyncio.create_task(ask(pool))
        await asyncio.wait([first, waiting])
        assert waiting.cancelled()
        assert (await last).body == b"ok"
        assert (server.connections, len(server.requests)) == (1, 2)


@both_loops
async def test_cancelled_call_closes_its_connection():
    async def script(server, reader, writer, number):
        await server.read(reader)
        if number == 2:
            writer.write(OK)
        await server.read(reader)

    async with pool_on(script, max_connections=1) as (server, pool):
        task = asyncio.create_task(ask(pool))
        while not server.requests:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await server.ended.get() in ("IncompleteReadError", "ConnectionResetError")
        assert (await ask(pool)).body == b"ok"


@pytest.mark.parametrize("how", ["close", "cancel"])
@both_loops
async def test_leaving_a_stream_early_closes_its_connection(how):
    async def script(server, reader, writer, _):
        await server.read(reader)
        writer.write(CHUNKED + b"3\r\none\r\n")
        await server.read(reader)

    async with pool_on(script, max_connections=1) as (server, pool):
        for _ in range(2):
            stream = await pool.stream("POST", "/chat", HEADERS, b"{}", soon())
            assert await anext(stream) == b"one"
            if how == "close":
                stream.close()
                stream.close()
            else:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(stream), 0.01)
            assert await server.ended.get() in ("IncompleteReadError", "ConnectionResetError")


@pytest.mark.parametrize(
    "last",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        OK + b"evil",
    ],
    ids=["close", "1.0", "second answer", "rubbish"],
)
@both_loops
async def test_connection_in_unclear_state_is_not_reused(last):
    async with pool_on(answering(last)) as (server, pool):
        assert [(await ask(pool)).body for _ in range(3)] == [b"ok"] * 3
        assert server.connections == 3


@both_loops
async def test_unsolicited_response_is_not_used():
    async def script(server, reader, writer, number):
        await server.read(reader)
        writer.write(OK)
        if number == 1:
            await asyncio.sleep(0.02)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await server.read(reader)

    async with pool_on(script, idle_timeout_s=60) as (server, pool):
        assert (await ask(pool)).body == b"ok"
        await server.ended.get()
        assert (await ask(pool)).body == b"ok"
        assert server.connections == 2


@both_loops
async def test_refused_request_does_not_end_the_next_one():
    """A check refuses a request on an idle connection. Its deadline must not end what the connection carries by then."""
    may_answer = asyncio.Event()

    async def script(server, reader, writer, _):
        while True:
            await server.read(reader)
            if len(server.requests) == 2:
                await may_answer.wait()
            writer.write(OK)

    def refuse():
        raise PermissionError

    async with pool_on(script, idle_timeout_s=60) as (server, pool):
        assert (await ask(pool)).body == b"ok"
        deadline = soon(0.3)
        with pytest.raises(PermissionError):
            await pool.request("POST", "/chat", HEADERS, b"{}", deadline, refuse)
        asking = asyncio.create_task(ask(pool, seconds=10))
        await asyncio.sleep(deadline + 0.05 - soon(0))
        may_answer.set()
        assert (await asking).body == b"ok"
        assert (server.connections, len(server.requests)) == (1, 2)


@both_loops
async def test_idle_connections_close_after_a_while():
    async with pool_on(answering(OK), idle_timeout_s=0.02) as (server, pool):
        await asyncio.gather(ask(pool), ask(pool))
        opened = server.connections
        for _ in range(opened):
            assert await server.ended.get() in ("IncompleteReadError", "ConnectionResetError")
        await ask(pool)
        assert server.connections == opened + 1


@both_loops
async def test_early_error_for_a_large_request_is_read():
    answered = asyncio.Event()

    async def script(server, reader, writer, _):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await reader.readexactly(1024)
        await answered.wait()  # and reads no more of it

    async with pool_on(script) as (server, pool):
        answer = await ask(pool, BIG)
        answered.set()
        await server.ended.get()
        assert (answer.status, answer.body) == (413, b"no")


# ── a request is repeated only if the upstream cannot have had it ───────────────────────────────────────────────────


def closes_when_told(told, closed):
    """A server in a thread: answers one request per connection, closes the first when told. Returns its port and heads."""
    listener = socket.create_server(("127.0.0.1", 0))
    heads = []

    def serve():
        for number in (1, 2):
            client, _ = listener.accept()
            with client:
                heads.append(client.recv(65536))
                client.sendall(OK)
                if number == 1:
                    told.wait(10)
                else:
                    client.recv(65536)
            closed.set()
        listener.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return listener.getsockname()[1], heads, thread


@both_loops
async def test_closed_connection_is_detected_before_writing():
    told, closed = threading.Event(), threading.Event()
    port, heads, thread = closes_when_told(told, closed)
    pool = UpstreamPool(f"http://127.0.0.1:{port}", idle_timeout_s=60)
    assert (await ask(pool)).body == b"ok"
    told.set()
    closed.wait(10)  # blocks the event loop: it has no chance to see the close
    assert (await ask(pool)).body == b"ok"
    assert len(heads) == 2
    await pool.close()
    await asyncio.to_thread(thread.join, 10)


def reset(writer):
    """Close with a reset, as a crashed process does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@both_loops
async def test_partially_sent_request_is_repeated_once():
    partial = 0

    async def script(server, reader, writer, number):
        nonlocal partial
        await server.read(reader)
        writer.write(OK)
        if number == 1:
            await reader.readexactly(1000)
            partial += 1
            reset(writer)
        else:
            await server.read(reader)

    async with pool_on(script) as (server, pool):
        await ask(pool)
        assert (await ask(pool, BIG)).body == b"ok"
        assert (server.connections, partial) == (2, 1)
        assert [len(body) for _, body in server.requests] == [2, len(BIG)]


@both_loops
async def test_twice_partially_sent_request_is_never_sent():
    async def script(server, reader, writer, number):
        if number == 1:
            await server.read(reader)
            writer.write(OK)
        await reader.readexactly(1000)
        reset(writer)

    async with pool_on(script) as (server, pool):
        await ask(pool)
        with pytest.raises(NeverSent) as caught:
            await ask(pool, BIG)
        assert caught.value.sent is False
        assert server.connections == 2
        with pytest.raises(NeverSent):  # on a new connection: no repetition at all
            await ask(pool, BIG)
        assert server.connections == 3


@pytest.mark.parametrize("ending", ["close", "reset", "half a head"])
@pytest.mark.parametrize("used_before", [False, True])
@both_loops
async def test_a_request_that_may_have_been_received_is_not_repeated(ending, used_before):
    async def script(server, reader, writer, _):
        if used_before:
            await server.read(reader)
            writer.write(OK)
        await server.read(reader)
        if ending == "half a head":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-le")
            await writer.drain()
        elif ending == "reset":
            reset(writer)

    async with pool_on(script) as (server, pool):
        if used_before:
            await ask(pool)
        seen = len(server.requests)
        with pytest.raises(ResponseLost) as caught:
            await ask(pool)
        assert caught.value.sent is True
        assert len(server.requests) == seen + 1
        assert server.connections == 1


# ── failures by name ────────────────────────────────────────────────────────────────────────────────────────────────


@both_loops
async def test_refused_connection_is_a_failure():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    pool = UpstreamPool(f"http://127.0.0.1:{port}", max_connections=1)
    for _ in range(2):  # the place is free again
        with pytest.raises(NeverSent, match="cannot connect"):
            await ask(pool)


@both_loops
async def test_connect_timeout_is_a_failure():
    async def silent(server, reader, writer, _):
        await reader.read()

    async with pool_on(silent, connect_timeout_s=0.05) as (_, plain):
        pool = UpstreamPool(f"https://{plain.origin}", connect_timeout_s=0.05, max_connections=1)
        for _ in range(2):
            with pytest.raises(UpstreamTimeout) as caught:
                await ask(pool)
            assert (caught.value.phase, caught.value.sent) == ("connect", False)


@both_loops
async def test_nothing_is_sent_after_the_deadline():
    async with pool_on(answering(OK)) as (server, pool):
        await ask(pool)
        with pytest.raises(UpstreamTimeout) as caught:
            await ask(pool, seconds=-1)
        assert caught.value.phase == "queue"
        await ask(pool)
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("start", "phase"),
    [(b"", "first_byte"), (b"HTTP/1.1 200 OK\r\n", "first_byte"), (CHUNKED + b"2\r\nok\r\n", "body")],
)
@both_loops
async def test_timeout_names_its_phase(start, phase):
    async def script(server, reader, writer, _):
        await server.read(reader)
        writer.write(start)
        await server.read(reader)

    async with pool_on(script, max_connections=1) as (server, pool):
        for call in (ask, read_all):
            with pytest.raises(UpstreamTimeout) as caught:
                await call(pool, seconds=0.05)
            assert (caught.value.phase, caught.value.sent) == (phase, True)
            assert await server.ended.get() in ("IncompleteReadError", "ConnectionResetError")


CUTS = {
    "short of its length": b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nok",
    "no last chunk": CHUNKED + b"2\r\nok\r\n",
    "inside a chunk": CHUNKED + b"9\r\nok",
}


@pytest.mark.parametrize("raw", CUTS.values(), ids=CUTS)
@both_loops
async def test_truncated_body_is_an_error(raw):
    async with pool_on(answering(raw, close=True)) as (server, pool):
        with pytest.raises(BodyCut):
            await ask(pool)
        stream = await pool.stream("POST", "/chat", HEADERS, b"{}", soon())
        assert await anext(stream) == b"ok"
        for _ in range(2):
            with pytest.raises(BodyCut):
                await anext(stream)
        assert len(server.requests) == 2


@both_loops
async def test_reset_does_not_end_a_body():
    async def script(server, reader, writer, _):
        await server.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await writer.drain()
        await asyncio.sleep(0.02)
        reset(writer)

    async with pool_on(script) as (_, pool):
        with pytest.raises(BodyCut):
            await ask(pool)


MALFORMED = {
    "not http": b"SSH-2.0-OpenSSH_9\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
    "length and chunks": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "bad chunk": CHUNKED + b"zz\r\nok\r\n",
    "upgrade": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    "not gzip": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\0\0",
    "compress": b"HTTP/1.1 200 OK\r\ncontent-encoding: compress\r\ncontent-length: 2\r\n\r\nok",
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED)
@both_loops
async def test_non_http_response_is_malformed(raw):
    async with pool_on(answering(raw), max_connections=1) as (_, pool):
        with pytest.raises(MalformedResponse):
            await ask(pool)
        with pytest.raises(MalformedResponse):
            await read_all(pool)


ENDLESS = {
    "one header": (b"HTTP/1.1 200 OK\r\nx: ", b"x" * 1024),
    "many headers": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 100),
    "status line": (b"HTTP/1.1 200 ", b"x" * 1024),
    "chunk extensions": (CHUNKED + b"2;", b"x" * 1024),
    "trailers": (CHUNKED + b"2\r\nok\r\n0\r\n", b"x: y\r\n" * 100),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 40),
}


@pytest.mark.parametrize(("start", "rest"), ENDLESS.values(), ids=ENDLESS)
@both_loops
async def test_endless_headers_are_rejected(start, rest):
    async def script(server, reader, writer, _):
        await server.read(reader)
        writer.write(start)
        while True:
            writer.write(rest)
            await writer.drain()

    async with pool_on(script) as (_, pool):
        with pytest.raises(ResponseTooLarge, match="head"):
            await ask(pool)


@both_loops
async def test_large_header_block_is_rejected():
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: %s\r\n" % (n, b"y" * 1000) for n in range(70))
    async with pool_on(answering(head + b"content-length: 2\r\n\r\nok")) as (_, pool):
        with pytest.raises(ResponseTooLarge, match="head"):
            await ask(pool)


@both_loops
async def test_body_over_the_limit_is_rejected():
    raw = CHUNKED + b"400\r\n" + bytes(1024) + b"\r\n" + b"400\r\n" + bytes(1024) + b"\r\n0\r\n\r\n"
    async with pool_on(answering(raw), max_body_bytes=2048) as (_, pool):
        assert len((await ask(pool)).body) == 2048
    async with pool_on(answering(raw), max_body_bytes=2047) as (_, pool):
        with pytest.raises(ResponseTooLarge, match="max_body_bytes"):
            await ask(pool)
        with pytest.raises(ResponseTooLarge, match="max_body_bytes"):
            await read_all(pool)


@both_loops
async def test_closing_the_pool_ends_every_call():
    async def script(server, reader, writer, _):
        await server.read(reader)
        await server.read(reader)

    async with pool_on(script, max_connections=1) as (server, pool):
        busy, waiting = asyncio.create_task(ask(pool)), asyncio.create_task(ask(pool))
        while not server.requests:
            await asyncio.sleep(0)
        await pool.close()
        with pytest.raises(ResponseLost):
            await busy
        with pytest.raises(NeverSent):
            await waiting
        with pytest.raises(NeverSent):
            await ask(pool)


# ── refused before anything is sent; nothing secret in errors ───────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/a b", []),
        ("POST", "/a\r\nx: y", []),
        ("POST ", "/a", []),
        ("POST", "/a", [(b"authorization", b"Bearer " + KEY.encode() + b"\r\nx: y")]),
        ("POST", "/a", [(b"authorization", KEY.encode() + b"\n")]),
        ("POST", "/a", [(b"authorization", KEY.encode() + b"\0")]),
        ("POST", "/a", [(b"x\r\ny", b"1")]),
        ("POST", "/a", [(b"content-length ", b"1")]),
        ("POST", "/a", [(b"Content-Length", b"1")]),
        ("POST", "/a", [(b"transfer-encoding", b"chunked")]),
        ("POST", "/a", [(b"host", b"elsewhere")]),
    ],
)
@both_loops
async def test_request_injection_is_rejected(method, path, headers):
    async with pool_on(answering(OK)) as (server, pool):
        with pytest.raises(ValueError) as caught:
            await pool.request(method, path, headers, b"{}", soon())
        assert KEY not in repr(caught.value)
        assert server.connections == 0


@pytest.mark.parametrize("raw", [b"", b"rubbish\r\n\r\n", *CUTS.values(), *MALFORMED.values()])
@both_loops
async def test_no_error_names_a_header_value(raw):
    async with pool_on(answering(raw, close=True)) as (_, pool):
        with pytest.raises(UpstreamError) as caught:
            await ask(pool)
        error = caught.value
        while error is not None:
            assert KEY not in repr(error) + str(vars(error))
            error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    "url", ["localhost:1", "ftp://localhost", "http://", f"http://u:{KEY}@h", "http://h/?key=1", "http://h:99999"]
)
def test_invalid_base_url_is_rejected(url):
    with pytest.raises(ValueError) as caught:
        UpstreamPool(url)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://h", "h:80"),
        ("https://h/v1", "h:443"),
        ("http://[::1]:8080", "[::1]:8080"),
        ("http://bücher.de", "xn--bcher-kva.de:80"),
    ],
)
def test_origin_contains_host_and_port(url, origin):
    assert UpstreamPool(url).origin == origin


# ── TLS ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(path)]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-out", f"{path}.crt", "-days", "2"]
    subprocess.run(["openssl", "req", "-x509", *key, *name], check=True, capture_output=True)
    return path


@both_loops
async def test_tls_connection_is_verified_and_reused(certificate):
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(f"{certificate}.crt", certificate)
    trusting = ssl.create_default_context(cafile=f"{certificate}.crt")
    script = answering(CHUNKED + b"2\r\nok\r\n0\r\n\r\n")
    async with pool_on(script, tls=serving, client_tls=trusting) as (server, pool):
        for _ in range(5):
            assert (await ask(pool)).body == b"ok"
            assert await read_all(pool) == b"ok"
        assert server.connections == 1
        distrusting = UpstreamPool(f"https://{pool.origin}")
        with pytest.raises(NeverSent, match="certificate"):
            await ask(distrusting)


@both_loops
async def test_large_and_truncated_bodies_over_tls(certificate):
    async def script(server, reader, writer, _):
        _, body = await server.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(body) + 1) + body)
        await writer.drain()

    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(f"{certificate}.crt", certificate)
    trusting = ssl.create_default_context(cafile=f"{certificate}.crt")
    async with pool_on(script, tls=serving, client_tls=trusting) as (_, pool):
        body = bytes(2_000_000)
        stream = await pool.stream("POST", "/chat", HEADERS, body, soon())
        got = 0
        with suppress(BodyCut):
            while True:
                got += len(await anext(stream))
        assert got == len(body)
