"""Responses in every content encoding, whole and streamed, split anywhere; bombs end at a bound."""

import asyncio
import gzip
import itertools
import random
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.outgoing import BodyCut, MalformedResponse, ResponseTooLarge, UpstreamPool
from overnight.outgoing.content_decoding import MAX_MEMBERS, InvalidEncoding, content_decoder

TEXT = b'{"object": "chat.completion", "n": [1, 2, 3], "text": "hello"}' * 40


def raw_deflate(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return made.compress(data) + made.flush()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(data)


ENCODED = {
    "gzip": ("gzip", gzip.compress(TEXT)),
    "X-GZIP": ("X-GZIP", gzip.compress(TEXT)),
    "gzip in members": ("gzip", gzip.compress(TEXT[:100]) + gzip.compress(b"") + gzip.compress(TEXT[100:])),
    "gzip with padding": ("gzip", gzip.compress(TEXT) + bytes(64)),
    "gzip in name only": ("gzip", TEXT),
    "deflate": ("deflate", zlib.compress(TEXT)),
    "raw deflate": ("deflate", raw_deflate(TEXT)),
    "br": ("br", brotli.compress(TEXT)),
    "zstd": ("zstd", zstd(TEXT)),
    "zstd in frames": ("zstd", zstd(TEXT[:100]) + b"\x50\x2a\x4d\x18\x03\0\0\0abc" + zstd(TEXT[100:])),
    "zstd in name only": ("zstd", TEXT),
    "two codings": ("gzip, br", brotli.compress(gzip.compress(TEXT))),
    "identity": ("identity", TEXT),
    "utf-8": ("utf-8", TEXT),
    "UTF-8 and gzip": ("UTF-8, gzip", gzip.compress(TEXT)),
    "empty": ("", TEXT),
    "a name of its own": ("aws-chunked", TEXT),
    "utf-16 in name only": ("utf-16", TEXT),
}


@asynccontextmanager
async def answering(raw: bytes, pieces: int = 1, **options: int) -> AsyncIterator[UpstreamPool]:
    """A pool before a server that gives these bytes to each request, in pieces."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                size = max(1, -(-len(raw) // pieces))
                for at in range(0, len(raw), size):
                    writer.write(raw[at : at + size])
                    await writer.drain()
                    await asyncio.sleep(0)
                if b"connection: close" in raw:
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool = UpstreamPool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", **options)
    try:
        yield pool
    finally:
        await pool.close()
        server.close()


def response(encoding: str, body: bytes, status: int = 200, *more: str) -> bytes:
    head = [f"HTTP/1.1 {status} X", f"content-encoding: {encoding}", f"content-length: {len(body)}", *more]
    return "\r\n".join([*head, "", ""]).encode() + body


def soon() -> float:
    return asyncio.get_running_loop().time() + 30


async def streamed(pool: UpstreamPool) -> tuple[int, bytes]:
    stream = await pool.stream("GET", "/", [], b"", soon())
    return stream.status, b"".join([chunk async for chunk in stream])


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("name", ENCODED)
async def test_encoded_answer_is_decoded(name: str, pieces: int) -> None:
    encoding, body = ENCODED[name]
    async with answering(response(encoding, body), pieces) as pool:
        whole = await pool.request("GET", "/", [], b"", soon())
        assert (whole.status, whole.body) == (200, TEXT)
        assert b"content-encoding" not in whole.headers
        assert await streamed(pool) == (200, TEXT)


async def test_body_without_a_length_is_decoded() -> None:
    raw = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\nconnection: close\r\n\r\n"
    async with answering(raw + gzip.compress(TEXT), 5) as pool:
        assert (await pool.request("GET", "/", [], b"", soon())).body == TEXT
    async with answering(raw + gzip.compress(TEXT)[:-3], 5) as pool:
        with pytest.raises(BodyCut):
            await pool.request("GET", "/", [], b"", soon())


async def test_empty_encoded_body_is_empty() -> None:
    async with answering(response("gzip", b"")) as pool:
        assert (await pool.request("GET", "/", [], b"", soon())).body == b""


async def test_stream_is_decoded_as_it_arrives() -> None:
    """Each event is there as soon as it is flushed, not at the end of the body."""
    made = zlib.compressobj(wbits=31)
    events = [b"data: %d\n\n" % number for number in range(3)]
    sent: asyncio.Queue[None] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n")
        for event in events:
            data = made.compress(event) + made.flush(zlib.Z_SYNC_FLUSH)
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
            await sent.get()
        data = made.flush()
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
        await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool = UpstreamPool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    stream = await pool.stream("GET", "/", [], b"", soon())
    for event in events:
        assert await anext(stream) == event
        sent.put_nowait(None)
    assert [chunk async for chunk in stream] == []
    await pool.close()
    server.close()


BROKEN = {
    "gzip": gzip.compress(TEXT)[:10] + b"\xff" * 40,
    "deflate": b"\x78\x9c" + b"\xff" * 40,
    "br": b"\xff" * 40,
    "zstd": zstd(TEXT)[:6] + b"\xff" * 40,
    "compress": b"\x1f\x9d\x90",
    "gzip, gzip, gzip, gzip": TEXT,
}


@pytest.mark.parametrize("encoding", BROKEN)
async def test_invalid_encoding_is_malformed(encoding: str) -> None:
    async with answering(response(encoding, BROKEN[encoding])) as pool:
        with pytest.raises(MalformedResponse):
            await pool.request("GET", "/", [], b"", soon())
        with pytest.raises(MalformedResponse):
            await streamed(pool)


@pytest.mark.parametrize("encoding", BROKEN)
async def test_invalid_encoding_of_an_error_keeps_its_status(encoding: str) -> None:
    async with answering(response(encoding, BROKEN[encoding], 429, "retry-after: 7")) as pool:
        whole = await pool.request("GET", "/", [], b"", soon())
        assert (whole.status, whole.headers[b"retry-after"]) == (429, b"7")
        assert (await streamed(pool))[0] == 429


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
async def test_truncated_encoding_is_cut(encoding: str) -> None:
    async with answering(response(encoding, ENCODED[encoding][1][:-4])) as pool:
        with pytest.raises(BodyCut):
            await pool.request("GET", "/", [], b"", soon())
        with pytest.raises(BodyCut):
            await streamed(pool)


SIZE = 48 * 1024 * 1024
BOMBS = {
    "gzip": gzip.compress(bytes(SIZE)),
    "deflate": zlib.compress(bytes(SIZE)),
    "br": brotli.compress(bytes(SIZE), quality=5),
    "zstd": zstd(bytes(SIZE)),
    "gzip, gzip": gzip.compress(gzip.compress(bytes(SIZE))),
    "gzip, zstd": zstd(gzip.compress(bytes(SIZE))),
}


@pytest.mark.parametrize("encoding", BOMBS)
async def test_compression_bomb_ends_at_the_ratio_limit(encoding: str) -> None:
    async with answering(response(encoding, BOMBS[encoding])) as pool:
        tracemalloc.start()
        try:
            with pytest.raises(ResponseTooLarge, match="200 times"):
                await pool.request("GET", "/", [], b"", soon())
            with pytest.raises(ResponseTooLarge, match="200 times"):
                await streamed(pool)
            assert tracemalloc.get_traced_memory()[1] < 40 * 1024 * 1024
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("encoding", BOMBS)
async def test_bomb_in_an_error_keeps_its_status(encoding: str) -> None:
    async with answering(response(encoding, BOMBS[encoding], 503)) as pool:
        whole = await pool.request("GET", "/", [], b"", soon())
        assert whole.status == 503
        assert len(whole.body) < SIZE


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
async def test_decoded_size_is_bounded(encoding: str) -> None:
    async with answering(response(encoding, ENCODED[encoding][1]), max_body_bytes=len(TEXT) - 1) as pool:
        with pytest.raises(ResponseTooLarge, match="max_body_bytes"):
            await pool.request("GET", "/", [], b"", soon())
    async with answering(response(encoding, ENCODED[encoding][1]), max_body_bytes=len(TEXT)) as pool:
        assert (await pool.request("GET", "/", [], b"", soon())).body == TEXT


@settings(max_examples=60)
@given(st.sampled_from([name for name in ENCODED if name not in ("identity", "utf-8", "empty")]), st.data())
def test_decoding_is_independent_of_chunk_boundaries(name: str, data: st.DataObject) -> None:
    encoding, body = ENCODED[name]
    decoder = content_decoder(encoding.encode(), 1 << 20)
    assert decoder is not None
    cuts = sorted({0, len(body), *data.draw(st.lists(st.integers(0, len(body)), max_size=12))})
    made = b"".join(b"".join(decoder.feed(body[start:end])) for start, end in itertools.pairwise(cuts))
    decoder.finish()
    assert made == TEXT


SKIPPABLE = b"\x50\x2a\x4d\x18\0\0\0\0"
EMPTY = {
    "gzip member": ("gzip", gzip.compress(b"")),
    "zstd frame": ("zstd", zstd(b"")),
    "skippable frame": ("zstd", SKIPPABLE),
}


def decoded(encoding: str, body: bytes, size: int | None = None) -> bytes:
    """The body decoded in reads of this size, or in one."""
    decoder = content_decoder(encoding.encode(), 1 << 20)
    assert decoder is not None
    reads = [body] if size is None else [body[at : at + size] for at in range(0, len(body), size)]
    made = b"".join(b"".join(decoder.feed(read)) for read in reads)
    decoder.finish()
    return made


class Watched:
    """A decompressor that keeps what it is given, and counts the bytes it leaves."""

    def __init__(self, inner: Any, given: list[Any], left: list[int]) -> None:
        self._inner, self._given, self._left = inner, given, left

    def decompress(self, data: Any, *more: int) -> bytes:
        if data:
            self._given.append(data)
        made: bytes = self._inner.decompress(data, *more)
        self._left.append(len(self._inner.unused_data))
        return made

    def decompressobj(self) -> "Watched":
        return Watched(self._inner.decompressobj(), self._given, self._left)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[int]]:
    """What the decompressors of gzip and zstd are given, and how many bytes each call leaves."""
    given, left = list[Any](), list[int]()
    inflate, decompressor = zlib.decompressobj, zstandard.ZstdDecompressor

    def watched_inflate(wbits: int) -> Watched:
        return Watched(inflate(wbits), given, left)

    def watched_decompressor(**options: Any) -> Watched:
        return Watched(decompressor(**options), given, left)

    monkeypatch.setattr(zlib, "decompressobj", watched_inflate)
    monkeypatch.setattr(zstandard, "ZstdDecompressor", watched_decompressor)
    return given, left


@pytest.mark.parametrize("name", EMPTY)
def test_rest_of_a_read_is_not_copied_for_each_member(name: str, watched: tuple[list[Any], list[int]]) -> None:
    """Each call is given a part of the read itself, and what it leaves does not grow with the read."""
    encoding, empty = EMPTY[name]
    given, left = watched
    body = empty * MAX_MEMBERS
    assert decoded(encoding, body) == b""
    assert len(given) <= 2 * MAX_MEMBERS
    assert all(isinstance(part, memoryview) and part.obj is body for part in given)
    assert max(map(len, given)) <= 4096
    assert max(left) <= 4096


@pytest.mark.parametrize("size", [None, 5, 4096])
@pytest.mark.parametrize("name", EMPTY)
def test_members_of_a_body_are_bounded(name: str, size: int | None, watched: tuple[list[Any], list[int]]) -> None:
    encoding, empty = EMPTY[name]
    assert decoded(encoding, empty * MAX_MEMBERS, size) == b""
    calls = len(watched[0])
    watched[0].clear()
    with pytest.raises(InvalidEncoding, match="more than 1000"):
        decoded(encoding, empty * (256 * 1024 // len(empty)), size)
    assert len(watched[0]) <= calls + 1  # the rest of the body costs nothing


@pytest.mark.parametrize("name", EMPTY)
async def test_body_of_empty_members_is_malformed(name: str) -> None:
    encoding, empty = EMPTY[name]
    async with answering(response(encoding, empty * (256 * 1024 // len(empty)))) as pool:
        with pytest.raises(MalformedResponse):
            await pool.request("GET", "/", [], b"", soon())
        with pytest.raises(MalformedResponse):
            await streamed(pool)


TEXTS = [bytes(300_000), *(random.Random(at).randbytes(2 * at * at) for at in range(49))]
FIFTY = {
    "gzip": ("gzip", b"".join(map(gzip.compress, TEXTS))),
    "zstd": ("zstd", b"".join(map(zstd, TEXTS))),
    "zstd and skippable": ("zstd", b"".join(SKIPPABLE + zstd(text) for text in TEXTS)),
    "both": ("gzip, zstd", zstd(b"".join(map(gzip.compress, TEXTS)))),
}


def test_members_in_several_pieces_are_decoded_once() -> None:
    large = bytes(300_000)
    assert decoded("gzip", gzip.compress(large) + gzip.compress(b"next")) == large + b"next"


@settings(max_examples=60)
@given(st.sampled_from(list(FIFTY)), st.data())
def test_fifty_members_decode_under_any_splitting(name: str, data: st.DataObject) -> None:
    encoding, body = FIFTY[name]
    decoder = content_decoder(encoding.encode(), 1 << 20)
    assert decoder is not None
    cuts = sorted({0, len(body), *data.draw(st.lists(st.integers(0, len(body)), max_size=40))})
    made = b"".join(b"".join(decoder.feed(body[start:end])) for start, end in itertools.pairwise(cuts))
    decoder.finish()
    assert made == b"".join(TEXTS)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 255, 256, 257, None])
@pytest.mark.parametrize("name", FIFTY)
def test_fifty_members_decode_in_reads_of_one_size(name: str, size: int | None) -> None:
    encoding, body = FIFTY[name]
    assert decoded(encoding, body, size) == b"".join(TEXTS)
