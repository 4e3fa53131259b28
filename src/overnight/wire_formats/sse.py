"""Server-sent events: the payloads out of a byte stream cut anywhere, and back into one.

Only ``data`` is kept. Event names repeat what the payload's own ``type`` says in every provider's format, and ids and
reconnection times have no meaning for one answer to one request.
"""

from __future__ import annotations

import re

DONE = b"data: [DONE]\n\n"
"""The end mark of OpenAI-compatible streams."""
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: keeps proxies from closing a quiet stream, and readers ignore it."""

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\r|\n")


class EventTooLarge(ValueError):
    """One event, or one line, is over the parser's bound."""


class SseParser:
    """Feed chunks in order; each call returns the ``data`` payloads (bytes) of the events that ended in it.

    ``max_event_bytes`` bounds what is kept between calls and the size of one payload; beyond it ``EventTooLarge`` is raised
    and the parser is of no further use.
    """

    __slots__ = ("_after_cr", "_data", "_line", "_line_size", "_max", "_size", "_start")

    def __init__(self, max_event_bytes: int = 8 * 1024 * 1024) -> None:
        self._max = max_event_bytes
        self._line: list[bytes] = []  # the pieces of an unfinished line
        self._line_size = 0
        self._data: list[bytes] = []  # the data lines of an unfinished event
        self._size = 0  # of both, in bytes
        self._after_cr = False
        self._start: bytes | None = b""  # the first bytes, until they cannot be a byte order mark

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes of the stream; return the payloads completed by them."""
        if (
            chunk.startswith(b"data: ")
            and chunk.endswith(b"\n\n")
            and chunk.find(b"\n") == len(chunk) - 2
            and b"\r" not in chunk
            and not (self._line or self._data or self._start)
            and len(chunk) <= self._max
        ):
            # Just one event, whole: what most reads of a stream bring, at a quarter of the cost.
            self._start, self._after_cr = None, False
            return [chunk[6:-2]]
        if self._start is not None:
            chunk = self._without_mark(self._start + chunk)
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk[0] == 10:  # a line end was cut between CR and LF
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._after_cr = chunk[-1] == 13
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = chunk.split(b"\n")
        rest = lines.pop()
        events: list[bytes] = []
        if lines and self._line:
            lines[0] = b"".join((*self._line, lines[0]))
            self._line.clear()
            self._size -= self._line_size
            self._line_size = 0
        for line in lines:
            self._end_line(line, events)
        if rest:
            self._line.append(rest)
            self._line_size += len(rest)
            self._grow(len(rest))
        return events

    def flush(self) -> list[bytes]:
        """At the end of the stream: the payload of a last event that was not closed by an empty line, if there is one.

        The standard drops such an event, but some servers leave the empty line off after their last one. Whether the stream
        was cut is for the connection to say, not for this.
        """
        events = self.feed(b"\n\n") if self._line or self._data or self._start else []
        self._start, self._after_cr = None, False
        return events

    def _end_line(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data.clear()
                self._size = 0
        elif line.startswith(b"data:"):
            value = line[6:] if line.startswith(b" ", 5) else line[5:]
            self._data.append(value)
            self._grow(len(value) + 1)
        elif line == b"data":
            self._data.append(b"")
            self._grow(1)

    def _grow(self, by: int) -> None:
        self._size += by
        if self._size > self._max:
            raise EventTooLarge(f"a server-sent event is over {self._max} bytes")

    def _without_mark(self, begin: bytes) -> bytes:
        if len(begin) < 3 and _BOM.startswith(begin):
            self._start = begin
            return b""
        self._start = None
        return begin.removeprefix(_BOM)


def encode_event(data: bytes, event: str | None = None) -> bytes:
    """One event as it goes over the wire. A payload of several lines becomes several ``data`` lines.

    Raises ValueError if the event's name holds a line end.
    """
    name = b""
    if event is not None:
        name = b"event: %s\n" % event.encode()
        if b"\n" in name[:-1] or b"\r" in name:
            raise ValueError("the name of a server-sent event must be one line")
    if b"\n" in data or b"\r" in data:
        return name + b"".join(b"data: %s\n" % line for line in _LINE_END.split(data)) + b"\n"
    return b"%sdata: %s\n\n" % (name, data)
