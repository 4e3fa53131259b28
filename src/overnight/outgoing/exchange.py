"""One HTTP exchange: a request in progress and its response."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from .transport_errors import BodyCut, Phase, ResponseTooLarge, UpstreamError, UpstreamTimeout

# The maximum of decoded bytes that are buffered for a stream, plus one read of the event loop (256 KiB).
STREAM_BUFFER_BYTES = 256 * 1024


class ExchangeCarrier(Protocol):
    """The interface that an exchange requires of its connection."""

    origin: str

    def is_sending(self) -> bool: ...

    def abandon(self) -> None: ...

    def pause_reading(self, pause: bool) -> None: ...


class UpstreamExchange:
    """One request and its response. The pool creates it, the connection fills it, and one caller reads it.

    ``whole``: wake the reader only at the end, and never pause the upstream. ``deadline`` is a time of ``loop``.
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
        self.status = 0  # until the head has arrived
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
        """Wait for the head, or for the end if ``whole``. Returns the error of a failed exchange."""
        while self.connection is not None and (self.whole or not self.status):
            await self._wait()
        return self.error if self.whole or not self.status else None

    async def read(self) -> bytes:
        """Wait for body bytes and return them; ``b""`` at the end. Raises UpstreamError."""
        while not self._chunks:
            if self.error is not None:
                raise self.error
            if self.connection is None:
                return b""
            await self._wait()
        data = self.take()
        if self.connection is not None:
            self.connection.pause_reading(False)
        return data

    async def follow(self, take: Callable[[bytes], bool]) -> bool:
        """Pass each chunk to `take` as it arrives. Returns True when `take` does, False at the end of the body.

        Raises UpstreamError, and any exception of `take`.
        """
        if self._chunks and take(self.take()):
            return True
        if self.connection is not None:
            self.connection.pause_reading(False)
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
        """Replace the deadline."""
        if self.connection is None:
            return
        self._deadline = deadline
        if (
            deadline < self._timer.when()
        ):  # a later deadline is checked when the timer fires, because streams extend it with every chunk
            self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._expire)

    def close(self) -> None:
        self._chunks.clear()
        if self.connection is not None:
            self.fail(BodyCut(self.connection.origin, "the caller closed the response before its end"))

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
            self.fail(ResponseTooLarge(connection.origin, "the response body exceeds the limit max_body_bytes"))
            return
        if self._taker is not None:
            try:
                enough = self._taker(chunk)
            except Exception as error:
                self._fault, enough = error, True  # it is raised to the reader, not to the parser
            if enough:
                self._taker = None
                self._wake()
            return
        self._chunks.append(chunk)
        if not self.whole:
            self._buffered += len(chunk)
            if self._buffered > STREAM_BUFFER_BYTES:
                connection.pause_reading(True)
            self._wake()

    def end(self) -> None:
        self.connection = None
        self._timer.cancel()
        self._wake()

    def fail(self, error: UpstreamError) -> None:
        """End with an error and close the connection. No effect after the end."""
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
    "send": "the request was not sent completely",
    "first_byte": "no response arrived",
    "body": "the body did not end",
}
