"""Exceptions as records: their class and message, and the traceback of the job's own code without values."""

import sysconfig
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from overnight.domain import ErrorFacts

MAX_ERRORS, MAX_FRAMES = 10, 40
_HERE = str(Path(__file__).parents[1]) + "/"
_PYTHON = tuple(sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib"))
_INSTALLED = ("/site-packages/", "/dist-packages/")


class Frame(msgspec.Struct, frozen=True):
    """A line of code in a traceback."""

    file: str
    line: int
    function: str


class TracedException(msgspec.Struct, frozen=True, rename={"error_class": "class"}):
    """One exception and its newest `MAX_FRAMES` frames, the outermost first."""

    error_class: str
    frames: list[Frame]


def error_facts(error: BaseException) -> ErrorFacts:
    """An exception as facts: its class and the first 500 characters of its message."""
    return ErrorFacts(type(error).__name__, str(error)[:500] or type(error).__name__)


def traceback_content(error: BaseException) -> bytes | None:
    """The exception and its causes as JSON: a list of `TracedException`. None if no frame is the job's own.

    Frames of Overnight and of Python's standard library are left out, and so are messages and source lines: they may hold
    values.
    """
    found: list[TracedException] = []
    _collect(error, found, set())
    return msgspec.json.encode(found) if found else None


def _collect(error: BaseException, found: list[TracedException], seen: set[int]) -> None:
    if id(error) in seen or len(found) == MAX_ERRORS:
        return
    seen.add(id(error))
    frames = _own_frames(error.__traceback__)
    if frames:
        found.append(TracedException(type(error).__name__, frames))
    inner: list[Any] = []
    if isinstance(error, BaseExceptionGroup):
        inner += error.exceptions  # pyright: ignore[reportUnknownMemberType]
    earlier = error.__cause__ if error.__cause__ is not None or error.__suppress_context__ else error.__context__
    for each in (*inner, earlier):
        if each is not None:
            _collect(each, found, seen)


def _own_frames(trace: TracebackType | None) -> list[Frame]:
    frames: list[Frame] = []
    while trace is not None:
        code = trace.tb_frame.f_code
        if _is_own(code.co_filename, str(trace.tb_frame.f_globals.get("__name__", ""))):
            frames.append(Frame(code.co_filename, trace.tb_lineno or code.co_firstlineno, code.co_qualname))
        trace = trace.tb_next
    return frames[-MAX_FRAMES:]


def _is_own(file: str, module: str) -> bool:
    if file.startswith(_HERE):
        return module.startswith("overnight.demo.")  # the jobs of the demo are user code
    if file.startswith("<frozen "):
        return False
    return not file.startswith(_PYTHON) or any(place in file for place in _INSTALLED)
