"""The visible part of a streamed answer. A chunk is written to the client at once, without a turn of the loop in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence


class BroadcastBuffer:
    """The chunks of one answer. It has any number of readers, each from the first chunk on: by iteration, or with `flow`."""

    __slots__ = ("_chunks", "_ended", "_subscribers")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._ended = False
        self._subscribers: list[Subscriber] = []

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def chunks(self) -> Sequence[bytes]:
        """The chunks so far."""
        return self._chunks

    @property
    def size(self) -> int:
        """The number of chunks so far."""
        return len(self._chunks)

    def push(self, chunks: list[bytes]) -> None:
        if chunks:
            self._chunks += chunks
            for subscriber in self._subscribers:
                subscriber.write_new(self._chunks)

    def end(self) -> None:
        self._ended = True
        for subscriber in self._subscribers:
            subscriber.wake()

    async def flow(self, write: Callable[[bytes], bool], caught_up: Callable[[], Awaitable[None]]) -> None:
        """Call `write` with each chunk as it arrives, until the end. If it returns False, the reader is behind: the next write
        waits for `caught_up`, and the chunks that arrive until then are joined."""
        subscriber = Subscriber(write)
        self._subscribers.append(subscriber)
        try:
            while True:
                subscriber.write_new(self._chunks)
                if subscriber.is_behind:
                    await caught_up()
                    subscriber.is_behind = False
                elif self._ended:
                    return
                else:
                    await subscriber.wait()
        finally:
            self._subscribers.remove(subscriber)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The chunks as they arrive. Chunks that arrive between two reads are joined."""
        ready: list[bytes] = []
        subscriber = Subscriber(ready.append)
        self._subscribers.append(subscriber)
        try:
            while True:
                subscriber.write_new(self._chunks)
                if ready:
                    yield ready.pop()
                    subscriber.is_behind = False
                elif self._ended:
                    return
                else:
                    await subscriber.wait()
        finally:
            self._subscribers.remove(subscriber)


class Subscriber:
    """One reader and its position. `write` takes a chunk and returns whether it accepts the next one at once."""

    __slots__ = ("_at", "_waiter", "_write", "is_behind")

    def __init__(self, write: Callable[[bytes], bool | None]) -> None:
        self._write = write
        self._at = 0
        self.is_behind = False
        self._waiter: asyncio.Future[None] | None = None

    def write_new(self, chunks: list[bytes]) -> None:
        end = len(chunks)
        if self._at < end and not self.is_behind:
            chunk = chunks[self._at] if end - self._at == 1 else b"".join(chunks[self._at : end])
            self._at = end
            self.is_behind = not self._write(chunk)
            if self.is_behind:
                self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
