"""Random and damaged requests on raw sockets: the server answers or closes, and keeps running.

It never sees a request that a strict reader of the same bytes does not see, which is what smuggling is.
"""

import asyncio
import os
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from overnight.store import Store
from overnight.testing import spawn_scripted_provider
from raw_http import Client, echo, served
from serving import Served, serving

SEED = int(os.environ.get("FUZZ_SEED", "20"))
CASES = int(os.environ.get("FUZZ_CASES", "600"))
AT_ONCE = 30
Seen = tuple[bytes, bytes, bytes]

# ── requests, and what is done to them ──────────────────────────────────────────────────────────────────────────────

TOKENS = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b"\x0b", b":", b";", b",", b"0", b"-", b"+", b"\xff", b"#",
    b"%00", b"@",
    b"0\r\n\r\n", b"chunked", b"identity", b"xchunked", b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"0" * 70, b"f" * 17,
    b"x" * 70_000,
    b"transfer-encoding: chunked\r\n", b"Transfer-Encoding:\tchunked\r\n", b"transfer-encoding: gzip, chunked\r\n",
    b"content-length: 3\r\n", b"content-length: 18446744073709551617\r\n", b"content-length : 3\r\n", b" folded\r\n",
    b"connection: upgrade\r\nupgrade: h2c\r\n", b"connection: close\r\n", b"expect: 100-continue\r\n", b"host: other\r\n",
    b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n", b"1;" + b"e" * 5000 + b"\r\n", b"http://x", b"http://evil/",
]  # fmt: skip


def chunks(body: bytes, rng: random.Random) -> bytes:
    parts: list[bytes] = []
    while body:
        size = rng.randint(1, len(body))
        extension = rng.choice([b"", b"", b";a", b';a="b;c"'])
        parts.append(b"%x%b\r\n%b\r\n" % (size, extension, body[:size]))
        body = body[size:]
    return b"".join(parts) + b"0\r\n" + rng.choice([b"", b"x-sum: 1\r\n"]) + b"\r\n"


def a_request(rng: random.Random) -> bytes:
    target = rng.choice([b"/x", b"/a/b%20c?d=1", b"http://x/whole", b"/" + b"y" * rng.randint(0, 300)])
    body = bytes(rng.choices(b'ab{}":\r\n0 GET', k=rng.choice([0, 0, 3, 40, 400])))
    fields = [
        b"host: x",
        *rng.choices([b"accept: */*", b"x-job-id: n1", b"X-Long: " + b"z" * 900], k=rng.randint(0, 3)),
    ]
    if rng.random() < 0.15:
        fields.append(b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c")
    sent = b""
    if rng.random() < 0.4:
        fields.append(b"transfer-encoding: chunked")
        sent = chunks(body, rng)
    elif body or rng.random() < 0.5:
        fields.append(b"content-length: %d" % len(body))
        sent = body
    rng.shuffle(fields)
    method = rng.choice([b"POST", b"GET", b"PUT", b"DELETE", b"OPTIONS"])
    return b"%b %b HTTP/1.1\r\n%b\r\n\r\n%b" % (method, target, b"\r\n".join(fields), sent)


def damaged(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                data = data[:at] + rng.choice(TOKENS) + data[at:]
            case 1:
                data = data[:at] + data[at + rng.randint(1, 8) :]
            case 2:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 3:
                data = data[:at] + data[max(0, at - rng.randint(1, 200)) :]
            case 4:
                line = data.find(b"\r\n", at) + 2
                data = data[:line] + rng.choice(TOKENS) + data[line:]
            case _:
                data = data[: max(at, 1)]
    return data


# ── a strict reader ─────────────────────────────────────────────────────────────────────────────────────────────────

HEAD = re.compile(
    rb"[\r\n]*([A-Z-]+) +(\S+) HTTP/(1\.[01])\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n)*)\r\n", re.DOTALL
)
CHUNK = re.compile(rb"([0-9A-Fa-f]+)(?:;[^\r\n]*)?\r\n")
TRAILERS = re.compile(rb"(?:[^\r\n:\0]+:[^\r\n\0]*\r\n)*\r\n")


def strictly(data: bytes) -> list[Seen]:
    """The requests in `data`, up to the first byte that is doubtful."""
    seen: list[Seen] = []
    while head := HEAD.match(data):
        method, target, version, lines = head.groups()
        fields = [line.partition(b":") for line in lines.split(b"\r\n")[:-1]]
        named = [(name.lower(), value.strip(b" \t")) for name, _, value in fields]
        lengths = [value for name, value in named if name == b"content-length"]
        codings = [value.lower() for name, value in named if name == b"transfer-encoding"]
        rest = data[head.end() :]
        if codings:
            if lengths or codings != [b"chunked"] or version == b"1.0" or (found := _dechunked(rest)) is None:
                break
            body, rest = found
        else:
            size = int(lengths[0]) if lengths and lengths[0].isdigit() and len(lengths[0]) < 19 else 0
            if len(lengths) > 1 or (lengths and not lengths[0].isdigit()) or len(rest) < size:
                break
            body, rest = rest[:size], rest[size:]
        seen.append((method, target, body))
        data = rest
    return seen


def _dechunked(data: bytes) -> tuple[bytes, bytes] | None:
    body = b""
    while size := CHUNK.match(data):
        length, data = int(size[1], 16), data[size.end() :]
        if length == 0:
            trailers = TRAILERS.match(data)
            return (body, data[trailers.end() :]) if trailers else None
        if data[length : length + 2] != b"\r\n":
            return None
        body, data = body + data[:length], data[length + 2 :]
    return None


async def remembers(scope: Any, receive: Any, send: Any) -> None:
    await echo(dict(scope, path=(scope["raw_path"] + b"?" + scope["query_string"]).decode()), receive, send)


def expected(seen: Seen) -> bytes:
    method, target, body = seen
    path = re.sub(rb"(?i)^https?://[^/?]*", b"", target) or b"/"
    path = path if path.startswith(b"/") or b"?" not in path else b"/" + path
    return b"%b %b %b" % (method, path if b"?" in path else path + b"?", body)


ANSWER = re.compile(rb"HTTP/1\.1 (\d\d\d) [^\r\n]*\r\n(?:[^\r\n]+\r\n)*?content-length: (\d+)\r\n(?:[^\r\n]+\r\n)*\r\n")


def answers(said: bytes) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    said = said.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    while head := ANSWER.match(said):
        end = head.end() + int(head[2])
        found.append((int(head[1]), said[head.end() : end]))
        said = said[end:]
    return found


async def spoken(client: Client, data: bytes, rng: random.Random) -> bytes:
    """All that is answered to `data`, sent in pieces, by the time the server has closed."""
    for _ in range(rng.choice([0, 0, 1, 3])):
        cut = rng.randint(1, max(1, len(data) - 1))
        client.say(data[:cut])
        data = data[cut:]
        await asyncio.sleep(0)
    client.say(data)
    try:
        client.writer.write_eof()
        return await client.rest()
    except OSError:
        return b""  # the server has closed already


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_damaged_requests_are_parsed_strictly() -> None:
    rng = random.Random(SEED)
    cases = [b"".join(a_request(rng) for _ in range(rng.choice([1, 1, 2, 3]))) for _ in range(CASES)]
    cases = [case if number % 5 == 0 else damaged(case, rng) for number, case in enumerate(cases)]
    begun = memory()
    async with served(remembers) as (server, connect):

        async def one(number: int, data: bytes) -> None:
            told = answers(await spoken(await connect(), data, rng))
            taken = [body for status, body in told if status == 200]
            wanted = [expected(each) for each in strictly(data)]
            assert taken == wanted[: len(taken)], f"case {number} of seed {SEED}: {data!r}"
            if number % 5 == 0:
                assert len(taken) == len(wanted), f"case {number} of seed {SEED}: {data!r}"
            assert [status for status, _ in told[len(taken) :] if not 400 <= status < 600] == []

        for start in range(0, CASES, AT_ONCE):
            async with asyncio.timeout(60):
                await asyncio.gather(*(one(start + at, case) for at, case in enumerate(cases[start : start + AT_ONCE])))
            healthy = await connect()
            healthy.say(b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n")
            assert await healthy.answer() == (200, b"GET /next? ")
            healthy.writer.close()
        async with asyncio.timeout(10):
            while server.connections:
                await asyncio.sleep(0.01)
    assert memory() - begun < 200 * 1024 * 1024


# ── the whole gateway ───────────────────────────────────────────────────────────────────────────────────────────────

CALL = b'{"model": "auto", "messages": [{"role": "user", "content": "hello"}], "metadata": {"job_attempt": "1", "job_id": "f"}}'
FIELDS = [
    b"x-job-id: n1", b"x-job-attempt: 1", b"baggage: job=1", b"traceparent: 00-1-1-1", b"accept: text/event-stream",
    b"x-tags: a,b",
]  # fmt: skip
PATHS = [
    b"POST /v1/chat/completions", b"POST /v1/messages", b"POST /v1/responses", b"GET /v1/models", b"GET /api/v1/jobs?limit=3",
    b"GET /api/v1/jobs/n1/events?after=0", b"POST /api/v1/jobs/n1/complete", b"GET /api/v1/budgets?all=true", b"GET /healthz",
]  # fmt: skip


def a_call(rng: random.Random) -> bytes:
    fields = b"".join(b"%b\r\n" % field for field in rng.sample(FIELDS, rng.randint(0, 3)))
    head = b"%b HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n%b" % (rng.choice(PATHS), fields)
    body = damaged(CALL, rng) if rng.random() < 0.5 else CALL
    if rng.random() < 0.3:
        return head + b"transfer-encoding: chunked\r\n\r\n" + chunks(body, rng)
    return head + b"content-length: %d\r\n\r\n%b" % (len(body), body)


@pytest.fixture
async def gateway(store: Store) -> AsyncIterator[Served]:
    with spawn_scripted_provider() as provider:
        async with serving(store, provider) as served:
            yield served


async def test_damaged_calls_cause_no_internal_error(gateway: Served) -> None:
    rng = random.Random(SEED)
    host, port = gateway.url.removeprefix("http://").split(":")
    for number in range(CASES // 4):
        data = a_call(rng)
        if number % 3:
            data = damaged(data, rng)
        client = Client(*await asyncio.open_connection(host, int(port)))
        try:
            async with asyncio.timeout(20):
                said = await spoken(client, data, rng)
        finally:
            client.writer.close()
        assert b"HTTP/1.1 500" not in said, f"call {number} of seed {SEED}: {data!r}"
    assert (await gateway.ask()).status_code == 200
