"""HTTP/1.1 for the scripted provider, with deliberate faults: slow, silent, interrupted or reset connections."""

from __future__ import annotations

import asyncio
import enum
import math
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import cast

import httptools
import msgspec

from .scripted_wire import error_response

MAX_HEAD_BYTES = 65_536
MAX_BODY_BYTES = 33_554_432
FOREVER = math.inf


class Ending(enum.Enum):
    CLOSE = "close"
    RESET = "reset"


Step = bytes | float | Ending
"""The next action of a connection: write bytes, wait for seconds (FOREVER: until the client disconnects), or end."""


class HttpRequest(msgspec.Struct):
    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    keep_alive: bool


class Connection(asyncio.Protocol):
    """Answers the requests of one client in order. `answer` yields the steps of a response. They are closed when the
    client disconnects, and paused while it does not read.
    """

    def __init__(self, answer: Callable[[HttpRequest], Iterator[Step]], open_connections: set[Connection]) -> None:
        self._answer = answer
        self._open = open_connections
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[HttpRequest] = deque()
        self._steps: Iterator[Step] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._held = False
        self._write_paused = False
        self._read_paused = False
        self._keep_alive = True
        self._too_large: int | None = None
        self.on_message_begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the caller gives it
        self._open.discard(self)
        self._waiting.clear()
        self._end_steps()
        self._held = True

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as problem:
            self._refuse(400, f"Invalid HTTP/1.1 request: {problem}.")
            return
        if self._too_large is not None:
            self._refuse(
                self._too_large, f"A request has at most {MAX_HEAD_BYTES} + {MAX_BODY_BYTES} bytes; send less."
            )
            return
        if not self._held:
            self._advance()
        if self._waiting and not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._head_bytes = 0
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        self._count_head(len(name) + len(value))
        if value == b"100-continue" and name.lower() == b"expect":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _count_head(self, more: int) -> None:
        self._head_bytes += more
        if self._head_bytes > MAX_HEAD_BYTES:
            self._too_large = 431
            self._headers.clear()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            self._too_large = 413
            self._body.clear()
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        parser = self._parser
        self._waiting.append(
            HttpRequest(parser.get_method(), self._target, self._headers, body, parser.should_keep_alive())
        )

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if not self._held:
            self._advance()

    def _refuse(self, status: int, message: str) -> None:
        self._waiting.clear()
        self._held = True
        self._transport.write(error_response(status, message))
        self._transport.close()

    def _advance(self) -> None:
        """Take steps until one of them waits, the client stops reading, or none is left."""
        self._held = False
        while not self._write_paused:
            if self._steps is None and not self._next_request():
                return
            step = next(cast("Iterator[Step]", self._steps), None)
            if isinstance(step, bytes):
                self._transport.write(step)
            elif step is None:
                self._end_steps()
                if not self._keep_alive:
                    step = Ending.CLOSE
            elif isinstance(step, float):
                self._held = True
                if step != FOREVER:
                    self._timer = asyncio.get_running_loop().call_later(step, self._advance)
                return
            if isinstance(step, Ending):
                self._end(step)
                return

    def _next_request(self) -> bool:
        if not self._waiting:
            if self._read_paused:
                self._read_paused = False
                self._transport.resume_reading()
            return False
        request = self._waiting.popleft()
        self._keep_alive = request.keep_alive
        self._steps = self._answer(request)
        return True

    def _end_steps(self) -> None:
        steps, self._steps = self._steps, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # The `finally` of the generator removes the call from the in-flight count.
        if close := getattr(steps, "close", None):
            close()

    def _end(self, ending: Ending) -> None:
        self._held = True
        self._end_steps()
        if ending is Ending.CLOSE:
            self._transport.close()
            return
        sock = cast("socket.socket", self._transport.get_extra_info("socket"))
        # Linger with zero seconds: closing then sends RST instead of FIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
