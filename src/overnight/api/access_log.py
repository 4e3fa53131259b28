"""The access log: one line of JSON for each request.

It holds the template of the path and no name in it, no query string, no header and no address: they may be content.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from overnight.domain import BadInput, iso_utc
from overnight.files import open_file
from overnight.http_server import Message, Receive, Scope, Send

from .routes import CALLS

log = logging.getLogger("overnight.api")
KEY, TEMPLATE, KEY_NAME = "overnight.key", "overnight.route", "overnight.key_name"
"""Where the scope of a request holds the id of its key while it is counted, its path template, and the name of its key."""
REOPEN_S = 1.0
"""How often the file is looked for, so that it can be rotated by moving it."""
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT
_encode = msgspec.json.Encoder().encode


class AccessLog:
    """Writes to a file, or to standard error without one. Raises OSError if the file cannot be opened."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._file = sys.stderr.fileno() if path is None else open_file(path, _FLAGS)
        self._looked_at = time.monotonic()

    @staticmethod
    def of(setting: str) -> AccessLog | None:
        """The log of OVERNIGHT_ACCESS_LOG: none, 1 for standard error, or a file. Raises BadInput."""
        if not setting or setting == "0":
            return None
        try:
            return AccessLog(None if setting == "1" else Path(setting))
        except OSError as error:
            raise BadInput(f"OVERNIGHT_ACCESS_LOG: {setting[:200]}: {error.strerror}") from None

    async def write(
        self, scope: Scope, receive: Receive, send: Send, app: Callable[[Scope, Receive, Send], Awaitable[None]]
    ) -> None:
        """Run `app` for one request, and write its line when it ends. Status 0: the client left before its response."""
        at, began = time.time_ns() // 1000, time.perf_counter()
        status, first = 0, 0.0

        async def watch(message: Message) -> None:
            nonlocal status, first
            if message["type"] == "http.response.start":
                status, first = message["status"], time.perf_counter()
            await send(message)

        try:
            await app(scope, receive, watch)
        finally:
            path: str = scope["path"]
            line = {
                "at": iso_utc(at),
                "method": scope["method"][:20],
                "route": scope.get(TEMPLATE) or (path if path in CALLS else None),
                "status": status,
                "first_byte_ms": _ms(first - began) if first else None,
                "duration_ms": _ms(time.perf_counter() - began),
                "key": scope.get(KEY_NAME),
            }
            self._append(_encode(line) + b"\n")

    def close(self) -> None:
        if self._path is not None:
            os.close(self._file)

    def _append(self, line: bytes) -> None:
        now = time.monotonic()
        try:
            if self._path is not None and now - self._looked_at > REOPEN_S:
                self._looked_at = now
                self._reopen(self._path)
            os.write(self._file, line)
        except OSError as error:
            log.warning("the access log cannot be written: %s", error.strerror)

    def _reopen(self, path: Path) -> None:
        """Open the file again if it was moved or removed."""
        here = os.fstat(self._file)
        try:
            there = path.stat()
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            opened = open_file(path, _FLAGS)
            os.close(self._file)
            self._file = opened


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
