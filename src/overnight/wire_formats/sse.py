"""Server-sent events: parse payloads from a byte stream, and encode them.

Only ``data`` is kept. Event names repeat the ``type`` of the payload in every provider's format, except for ``error``, which
some servers send with a payload of any shape. Ids and reconnection times have no meaning for the answer to one request.
"""

from __future__ import annotations

import re
from typing import Any, cast

import msgspec

from overnight.domain.json_text import decode_json

DONE = b"data: [DONE]\n\n"
"""The end mark of OpenAI-compatible streams."""
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment that readers ignore. It prevents proxies from closing an idle stream."""

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\r|\n")


class ErrorPayload(bytes):
    """The payload of an event that is named ``error``."""

    def error(self) -> dict[str, Any]:
        """The error in the shape of an error body, whatever the shape of the payload."""
        try:
            error: Any = decode_json(self)
        except (msgspec.DecodeError, RecursionError):
            return {"error": {"message": self.decode(errors="replace"), "type": "server_error"}}
        if not isinstance(error, dict):
            return {"error": {"message": str(error), "type": "server_error"}}
        found = cast("dict[str, Any]", error)
        return found if found.get("error") or found.get("type") == "response.failed" else {"error": found}


class EventTooLarge(ValueError):
    """An event or a line exceeds the limit of the parser."""


class SseParser:
    """Incremental parser. Each call of `feed` returns the payloads of the events that the chunk completed.

    ``max_event_bytes`` limits the buffered bytes and the size of one payload. After ``EventTooLarge`` the parser must
    be discarded.
    """

    __slots__ = ("_after_cr", "_data", "_is_error", "_line", "_line_size", "_max", "_size", "_start")

    def __init__(self, max_event_bytes: int = 8 * 1024 * 1024) -> None:
        self._max = max_event_bytes
        self._line: list[bytes] = []  # fragments of an incomplete line
        self._line_size = 0
        self._data: list[bytes] = []  # data lines of an incomplete event
        self._size = 0  # bytes in both
        self._after_cr = self._is_error = False
        self._start: bytes | None = b""  # the first bytes, until a byte order mark is ruled out

    def feed(self, chunk: bytes) -> list[bytes]:
        """Parse the next bytes. Returns the payloads that they completed.

        Raises:
            EventTooLarge: an event exceeds the limit.
        """
        if (
            chunk.startswith(b"data: ")
            and chunk.endswith(b"\n\n")
            and chunk.find(b"\n") == len(chunk) - 2
            and b"\r" not in chunk
            and not (self._line or self._data or self._start or self._is_error)
            and len(chunk) <= self._max
        ):
            # One complete event, which most reads contain, takes a quarter of the time on this path.
            self._start, self._after_cr = None, False
            return [chunk[6:-2]]
        if self._start is not None:
            chunk = self._without_mark(self._start + chunk)
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk[0] == 10:  # a line end was split between CR and LF
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
        """The payload of a last event without a closing empty line, if any. Call it at the end of the stream.

        The standard discards such an event, but some servers omit the last empty line. The connection reports
        truncation.
        """
        events = self.feed(b"\n\n") if self._line or self._data or self._start else []
        self._start, self._after_cr = None, False
        return events

    def _end_line(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                payload = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                events.append(ErrorPayload(payload) if self._is_error else payload)
                self._data.clear()
                self._size = 0
            self._is_error = False
        elif line.startswith(b"data:"):
            value = line[6:] if line.startswith(b" ", 5) else line[5:]
            self._data.append(value)
            self._grow(len(value) + 1)
        elif line == b"data":
            self._data.append(b"")
            self._grow(1)
        elif line in (b"event: error", b"event:error"):
            self._is_error = True

    def _grow(self, by: int) -> None:
        self._size += by
        if self._size > self._max:
            raise EventTooLarge(f"a server-sent event exceeds {self._max} bytes")

    def _without_mark(self, begin: bytes) -> bytes:
        if len(begin) < 3 and _BOM.startswith(begin):
            self._start = begin
            return b""
        self._start = None
        return begin.removeprefix(_BOM)


def encode_event(data: bytes, event: str | None = None) -> bytes:
    """Encode one event. Each line of the payload becomes a ``data`` line.

    Raises:
        ValueError: the event name contains a line end.
    """
    name = b""
    if event is not None:
        name = b"event: %s\n" % event.encode()
        if b"\n" in name[:-1] or b"\r" in name:
            raise ValueError("the name of a server-sent event must be one line")
    if b"\n" in data or b"\r" in data:
        return name + b"".join(b"data: %s\n" % line for line in _LINE_END.split(data)) + b"\n"
    return b"%sdata: %s\n\n" % (name, data)
