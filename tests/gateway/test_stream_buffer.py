"""The stream buffer delivers all chunks in order: at once, or joined for slow readers."""

import asyncio

import pytest

from overnight.gateway import BroadcastBuffer


async def read(feed: BroadcastBuffer) -> list[bytes]:
    return [piece async for piece in feed]


async def test_every_reader_receives_all_chunks() -> None:
    feed = BroadcastBuffer()
    feed.push([b"a", b"b"])
    early = asyncio.create_task(read(feed))
    await asyncio.sleep(0)
    feed.push([b"c"])
    feed.push([])
    await asyncio.sleep(0)
    late = asyncio.create_task(read(feed))
    feed.push([b"d"])
    feed.end()
    assert (b"".join(await early), await late) == (b"abcd", [b"abcd"])
    assert await read(feed) == [b"abcd"]


async def test_chunk_is_written_before_push_returns() -> None:
    feed, written = BroadcastBuffer(), list[bytes]()

    def write(piece: bytes) -> bool:
        written.append(piece)
        return True

    async def never() -> None:
        raise AssertionError("nobody is behind")

    flowing = asyncio.create_task(feed.flow(write, never))
    await asyncio.sleep(0)
    feed.push([b"a"])
    assert written == [b"a"]
    feed.push([b"b", b"c"])
    assert written == [b"a", b"bc"]
    feed.end()
    await flowing


async def test_chunks_for_a_slow_reader_are_joined() -> None:
    feed, written, room = BroadcastBuffer(), list[bytes](), asyncio.Event()

    def write(piece: bytes) -> bool:
        written.append(piece)
        return room.is_set()

    flowing = asyncio.create_task(feed.flow(write, lambda: room.wait()))  # noqa: PLW0108
    await asyncio.sleep(0)
    for piece in (b"a", b"b", b"c"):
        feed.push([piece])
    feed.end()
    await asyncio.sleep(0)
    assert (written, flowing.done()) == ([b"a"], False)
    room.set()
    await flowing
    assert written == [b"a", b"bc"]


async def test_reader_that_leaves_is_removed() -> None:
    feed, written = BroadcastBuffer(), list[bytes]()
    flowing = asyncio.create_task(feed.flow(lambda piece: not written.append(piece), asyncio.Event().wait))
    await asyncio.sleep(0)
    flowing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flowing
    feed.push([b"a"])
    assert written == []
