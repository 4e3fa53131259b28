"""What the client of a stream may see so far. It goes on to the client as it comes, without a turn of the loop in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable


class Feed:
    """The pieces of one answer. Any number of readers, each from the first piece on: by iterating, or with `flow`."""

    __slots__ = ("_ended", "_pieces", "_taps")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._ended = False
        self._taps: list[_Tap] = []

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def size(self) -> int:
        """How many pieces there are so far."""
        return len(self._pieces)

    def push(self, pieces: list[bytes]) -> None:
        if pieces:
            self._pieces += pieces
            for tap in self._taps:
                tap.pour(self._pieces)

    def end(self) -> None:
        self._ended = True
        for tap in self._taps:
            tap.wake()

    async def flow(self, write: Callable[[bytes], bool], caught_up: Callable[[], Awaitable[None]]) -> None:
        """Call `write` with each piece as it comes, until the end. Where it returns False, the reader is behind: the next one
        waits for `caught_up`; what comes meanwhile is one piece then."""
        tap = _Tap(write)
        self._taps.append(tap)
        try:
            while True:
                tap.pour(self._pieces)
                if tap.is_behind:
                    await caught_up()
                    tap.is_behind = False
                elif self._ended:
                    return
                else:
                    await tap.news()
        finally:
            self._taps.remove(tap)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The pieces as they come; what came while the reader was away is one."""
        ready: list[bytes] = []
        tap = _Tap(ready.append)
        self._taps.append(tap)
        try:
            while True:
                tap.pour(self._pieces)
                if ready:
                    yield ready.pop()
                    tap.is_behind = False
                elif self._ended:
                    return
                else:
                    await tap.news()
        finally:
            self._taps.remove(tap)


class _Tap:
    """One reader, and how far it is: `write` takes a piece, and tells whether it can take the next one at once."""

    __slots__ = ("_at", "_waiter", "_write", "is_behind")

    def __init__(self, write: Callable[[bytes], bool | None]) -> None:
        self._write = write
        self._at = 0
        self.is_behind = False
        self._waiter: asyncio.Future[None] | None = None

    def pour(self, pieces: list[bytes]) -> None:
        end = len(pieces)
        if self._at < end and not self.is_behind:
            piece = pieces[self._at] if end - self._at == 1 else b"".join(pieces[self._at : end])
            self._at = end
            self.is_behind = not self._write(piece)
            if self.is_behind:
                self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
