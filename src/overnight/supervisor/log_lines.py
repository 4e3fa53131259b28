"""Log lines of a process, `2026-01-31T02:00:05.123Z LEVEL name: message`, with deduplication of repeated warnings.

The first record of a warning is written at once. Similar records are counted and reported in one line every `every_s`, and in
one final line when none has arrived for `quiet_s`.
"""

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

import msgspec

EVERY_S, QUIET_S = 60.0, 10.0
MAX_LENGTH = 1000
_CHANGING = re.compile(r"[0-9a-f]{8,}|\d+(\.\d+)?")


def line_of(at: float, level: str, name: str, message: str) -> str:
    """One log line. Line breaks and control characters of the message are replaced."""
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{moment} {level} {name}: {_printable(' '.join(message.split())[:MAX_LENGTH])}"


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)


class RepeatedWarning(msgspec.Struct):
    """A repeated warning: its count, when it started, and when it was last reported. Times in seconds."""

    level: str
    name: str
    message: str
    began: float
    last: float
    reported: float
    unreported: int = 0
    count: int = 1


class LogLines(logging.Handler):
    """Writes records to `stream`. A record with the attribute `each` is never deduplicated."""

    def __init__(
        self,
        role: str,
        stream: TextIO | None = None,
        *,
        every_s: float = EVERY_S,
        quiet_s: float = QUIET_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self._role, self._stream, self._clock = role, stream, clock
        self._every_s, self._quiet_s = every_s, quiet_s
        self._warnings: dict[object, RepeatedWarning] = {}

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._take(record)
        except Exception:
            self.handleError(record)

    def _take(self, record: logging.LogRecord) -> None:
        now, message = self._clock(), _message(record)
        self.report_repeats(now)
        if record.levelno >= logging.WARNING and not getattr(record, "each", False):
            key = _kind(record, message)
            if (warning := self._warnings.get(key)) is not None:
                warning.last, warning.count, warning.unreported = now, warning.count + 1, warning.unreported + 1
                return
            self._warnings[key] = RepeatedWarning(
                level=record.levelname, name=self._role, message=message, began=now, last=now, reported=now
            )
        self._write(line_of(now, record.levelname, self._role, message))
        if record.exc_info and os.environ.get("OVERNIGHT_DEBUG"):
            trace = logging.Formatter().formatException(record.exc_info)
            self._write("\n".join(_printable(line) for line in trace.splitlines()))

    def report_repeats(self, now: float | None = None) -> None:
        """Report repeated warnings that are due. Called with every record, and once a second by `set_up_log`."""
        now = self._clock() if now is None else now
        with self.lock or threading.RLock():
            for key, warning in list(self._warnings.items()):
                over = now - warning.last >= self._quiet_s
                if over:
                    del self._warnings[key]
                if warning.unreported and (over or now - warning.reported >= self._every_s):
                    took = f"{warning.count} times in {max(1, round(warning.last - warning.began))} s"
                    state = ("INFO", "ended") if over else (warning.level, "repeated")
                    self._write(line_of(now, state[0], warning.name, f"{state[1]}, {took}: {warning.message}"))
                    warning.reported, warning.unreported = now, 0

    def _write(self, line: str) -> None:
        stream = self._stream or sys.stderr
        stream.write(line + "\n")
        stream.flush()


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if record.exc_info and (error := record.exc_info[1]) is not None:
        trace, place = error.__traceback__, ""
        while trace is not None:
            place = f" ({os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno})"
            trace = trace.tb_next
        message += f": {type(error).__name__}: {error}{place}"
    return message


def _kind(record: logging.LogRecord, message: str) -> object:
    """The key for deduplication: the class of the error, else the message without numbers and ids."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    for each in arguments:
        if isinstance(each, BaseException):
            return type(each)
    return record.name, record.levelno, _CHANGING.sub("", message)


def set_up_log(role: str) -> LogLines:
    """Configure log lines on standard error for this process; `role` is the name in each line."""
    handler = LogLines(role)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("overnight").setLevel(logging.INFO)

    def watch() -> None:
        while True:
            time.sleep(1)
            handler.report_repeats()

    threading.Thread(target=watch, name="overnight-log", daemon=True).start()
    return handler
