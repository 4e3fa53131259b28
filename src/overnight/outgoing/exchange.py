"""One HTTP exchange: a request under way, and its answer as it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from .transport_errors import BodyCut, Phase, ResponseTooLarge, UpstreamError, UpstreamTimeout

# A stream without a reader holds at most this much plus one read of the event loop (256 KiB), as it is after decoding.
STREAM_BUFFER_BYTES = 256 * 1024


class ExchangeCarrier(Protocol):
    """What an exchange needs of the connection that carries it."""

    origin: str

    def is_sending(self) -> bool: ...

    def abandon(self) -> None: ...

    def hold_back(self, hold: bool) -> None: ...


class UpstreamExchange:
    """One request and its answer as it arrives. Made by the pool, filled by the connection, read by one caller.

    ``whole``: wake the reader at the end only, and never hold the upstream back. ``deadline`` is a time of ``loop``.
    """

    __slots__ = (
        "_buffered", "_chunks", "_deadline", "_fault", "_loop", "_taker", "_timer", "_waiter",
        "connection", "error", "headers", "room", "status", "whole",
    )  # fmt: skip

    def __init__(
        self,
        connection: ExchangeCarrier,
        loop: asyncio.AbstractEventLoop,
        deadline: float,
        max_body: int,
        *,
        whole: bool,
    ) -> None:
        self.status = 0  # until the head is here
        self.headers: dict[bytes, bytes] = {}
        self.connection: ExchangeCarrier | None = connection  # until the end, or an error
        self.error: UpstreamError | None = None
        self.whole = whole
        self._loop = loop
        self.room = max_body
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._waiter: asyncio.Future[None] | None = None
        self._taker: Callable[[bytes], bool] | None = None
        self._fault: Exception | None = None
        self._deadline = deadline
        self._timer = loop.call_at(deadline, self._expire)

    async def opened(self) -> UpstreamError | None:
        """Wait for the head, or if ``whole`` for the end. Returns the error that prevents it."""
        while self.connection is not None and (self.whole or not self.status):
            await self._wait()
        return self.error if self.whole or not self.status else None

    async def read(self) -> bytes:
        """The bytes that came since the last read, waiting for some; ``b""`` at the end. Raises UpstreamError."""
        while not self._chunks:
            if self.error is not None:
                raise self.error
            if self.connection is None:
                return b""
            await self._wait()
        data = self.take()
        if self.connection is not None:
            self.connection.hold_back(False)
        return data

    async def follow(self, take: Callable[[bytes], bool]) -> bool:
        """Hand each chunk to `take` as it comes; True once `take` wants no more, False at the end. Raises UpstreamError, and
        what `take` raises."""
        if self._chunks and take(self.take()):
            return True
        if self.connection is not None:
            self.connection.hold_back(False)
        self._taker = take
        try:
            while self.connection is not None and self._taker is not None:
                await self._wait()
            wanted_no_more = self._taker is None
        finally:
            self._taker = None
        if self._fault is not None:
            raise self._fault
        if not wanted_no_more and self.error is not None:
            raise self.error
        return wanted_no_more

    def take(self) -> bytes:
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        return data

    def extend(self, deadline: float) -> None:
        """Another deadline, in place of the one before."""
        if self.connection is None:
            return
        self._deadline = deadline
        if (
            deadline < self._timer.when()
        ):  # a later one is looked at when the timer goes off: streams extend at every piece
            self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._expire)

    def close(self) -> None:
        self._chunks.clear()
        if self.connection is not None:
            self.fail(BodyCut(self.connection.origin, "the answer was closed here before its end"))

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        except BaseException:
            self.close()
            raise
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status, self.headers = status, headers
        if not self.whole:
            self._wake()

    def body(self, chunk: bytes, connection: ExchangeCarrier) -> None:
        self.room -= len(chunk)
        if self.room < 0:
            self.fail(ResponseTooLarge(connection.origin, "the response body is over the bound; raise max_body_bytes"))
            return
        if self._taker is not None:
            try:
                enough = self._taker(chunk)
            except Exception as error:
                self._fault, enough = error, True  # it is the reader's, not the parser's that called us
            if enough:
                self._taker = None
                self._wake()
            return
        self._chunks.append(chunk)
        if not self.whole:
            self._buffered += len(chunk)
            if self._buffered > STREAM_BUFFER_BYTES:
                connection.hold_back(True)
            self._wake()

    def end(self) -> None:
        self.connection = None
        self._timer.cancel()
        self._wake()

    def fail(self, error: UpstreamError) -> None:
        """End with an error and close the connection. After the end this does nothing."""
        connection = self.connection
        if connection is not None:
            self.error = error
            self.end()
            connection.abandon()

    def _expire(self) -> None:
        if self._deadline > self._loop.time():
            self._timer = self._loop.call_at(self._deadline, self._expire)
        elif self.connection is not None:
            phase: Phase = "body" if self.status else "send" if self.connection.is_sending() else "first_byte"
            what = _UNFINISHED[phase]
            self.fail(UpstreamTimeout(self.connection.origin, phase, f"{what} before the deadline"))


_UNFINISHED = {
    "send": "the request had not left whole",
    "first_byte": "no answer came",
    "body": "the body did not end",
}
