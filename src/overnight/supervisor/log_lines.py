"""The log of a process as lines `2026-01-31T02:00:05.123Z LEVEL name: message`, in which a trouble that repeats is told once.

The first record of a trouble is written at once. Those like it are counted, and told in one line every `every_s` while it lasts,
and in one when it is over, which is when none came for `quiet_s`.
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
LONGEST = 1000
_CHANGING = re.compile(r"[0-9a-f]{8,}|\d+(\.\d+)?")


def line_of(at: float, level: str, name: str, message: str) -> str:
    """One line of the log. What would begin another line, or would act on a terminal, is taken out of the message."""
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{moment} {level} {name}: {_printable(' '.join(message.split())[:LONGEST])}"


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)


class Trouble(msgspec.Struct):
    """What repeats: how often and since when, and up to where it was told. Times in seconds."""

    level: str
    name: str
    message: str
    began: float
    last: float
    told: float
    untold: int = 0
    count: int = 1


class LogLines(logging.Handler):
    """Writes records to `stream`. A record with the attribute `each` is always a line of its own."""

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
        self._troubles: dict[object, Trouble] = {}

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._take(record)
        except Exception:
            self.handleError(record)

    def _take(self, record: logging.LogRecord) -> None:
        now, message = self._clock(), _message(record)
        self.look(now)
        if record.levelno >= logging.WARNING and not getattr(record, "each", False):
            key = _kind(record, message)
            if (trouble := self._troubles.get(key)) is not None:
                trouble.last, trouble.count, trouble.untold = now, trouble.count + 1, trouble.untold + 1
                return
            self._troubles[key] = Trouble(record.levelname, self._role, message, now, now, now)
        self._write(line_of(now, record.levelname, self._role, message))
        if record.exc_info and os.environ.get("OVERNIGHT_DEBUG"):
            trace = logging.Formatter().formatException(record.exc_info)
            self._write("\n".join(_printable(line) for line in trace.splitlines()))

    def look(self, now: float | None = None) -> None:
        """Tell what went on and what is over. Called with every record, and once a second by `set_up_log`."""
        now = self._clock() if now is None else now
        with self.lock or threading.RLock():
            for key, trouble in list(self._troubles.items()):
                over = now - trouble.last >= self._quiet_s
                if over:
                    del self._troubles[key]
                if trouble.untold and (over or now - trouble.told >= self._every_s):
                    took = f"{trouble.count} times in {max(1, round(trouble.last - trouble.began))} s"
                    state = ("INFO", "over") if over else (trouble.level, "goes on")
                    self._write(line_of(now, state[0], trouble.name, f"{state[1]}, {took}: {trouble.message}"))
                    trouble.told, trouble.untold = now, 0

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
    """Records of one trouble have one kind: the same error in whatever sentence, else the same words but for numbers and ids."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    for each in arguments:
        if isinstance(each, BaseException):
            return type(each)
    return record.name, record.levelno, _CHANGING.sub("", message)


def set_up_log(role: str) -> LogLines:
    """Log lines on standard error for all of this process; `role` is the name that they bear."""
    handler = LogLines(role)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("overnight").setLevel(logging.INFO)

    def watch() -> None:
        while True:
            time.sleep(1)
            handler.look()

    threading.Thread(target=watch, name="overnight-log", daemon=True).start()
    return handler
