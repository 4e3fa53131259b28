"""Preparation of the standard streams: closed streams, closed pipes, terminals without UTF-8, control characters."""

import codecs
import contextlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

MARKS = {
    "✓": "+",
    "✗": "x",
    "‖": "|",
    "›": ">",
    "–": "-",
    "—": "-",
    "↻": "@",
    "·": ".",
    "▶": "*",
    "↪": "/",
    "┬": "Y",
    "└": "`",
    "→": ">",
    "…": "~",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "⏎": "$",
}
"""ASCII replacements of the symbols, of the same width and distinct from each other."""

_ESCAPE = "\\x00-\\x08\\x0b-\\x1a\\x1c-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u206f"
_ACTS = re.compile(f"[{_ESCAPE}\\x1b]")
_COLOUR = r"[34]8;5;\d+|[34]8;2;\d+;\d+;\d+|[1-9]\d+|[0-79]"
_COLOURED = re.compile(rf"[{_ESCAPE}]|\x1b(?!\[(?:(?:{_COLOUR})(?:;|(?=m)))*m)")
"""Control characters except tab and line feed, and characters that change the direction of text. Escape sequences for colour
and weight are allowed on a terminal; the one that hides text (8) is not."""
_FORCES = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE")
"""If one of these variables is set, rich and click use colours in a pipe too."""


def set_up_streams() -> None:
    """Make the three standard streams usable. Must run before any file is opened."""
    _open_closed()
    codecs.register_error("overnight", _replace)
    for stream in (sys.stdout, sys.stderr):
        plain = not _is_utf8(stream.encoding) or not locale_allows_utf8(os.environ)
        # A character that the terminal cannot show is replaced instead of raising an error.
        if hasattr(stream, "reconfigure"):  # a stream in memory has no encoding
            cast(Any, stream).reconfigure(encoding="ascii" if plain else None, errors="overnight")
        _guard(stream)


def _guard(stream: Any) -> None:
    """Escape control characters in everything written to `stream`: by `print`, logging or the traceback of the interpreter.

    Colours pass where the stream shows colours.
    """
    if isinstance(getattr(stream.write, "__self__", stream), _Filter):
        return
    filtered = _Filter(stream.write, _COLOURED if _shows_colours(stream) else _ACTS)
    with contextlib.suppress(AttributeError):  # a stream in memory
        stream.write = filtered.write


class _Filter:
    def __init__(self, write: Callable[[str], int], acts: re.Pattern[str]) -> None:
        self._write, self._acts = write, acts

    def write(self, text: str) -> int:
        return self._write(self._acts.sub(_escaped, text) if self._acts.search(text) else text)


def _escaped(found: re.Match[str]) -> str:
    point = ord(found[0])
    return f"\\x{point:02x}" if point < 256 else f"\\u{point:04x}"


def _shows_colours(stream: Any) -> bool:
    return stream.isatty() or any(os.environ.get(name) for name in _FORCES)


def _open_closed() -> None:
    """Open /dev/null in place of a closed stream; otherwise the ledger file could get its descriptor number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            given = os.open(os.devnull, os.O_RDWR)
            if given != number:
                os.dup2(given, number)
                os.close(given)
            setattr(sys, name, None)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def locale_allows_utf8(environment: Mapping[str, str]) -> bool:
    """Whether the locale allows UTF-8. An unset locale does: containers have none.

    Python treats the locale C as UTF-8 (PEP 538, 540): it sets LC_CTYPE=C.UTF-8 where only LANG=C was set.
    """
    everything, characters, language = (environment.get(name, "") for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    if not everything and characters == "C.UTF-8" and language:
        characters = ""
    name = everything or characters or language
    return not name or _is_utf8(name.partition("@")[0].rpartition(".")[2])


def _is_utf8(encoding: str | None) -> bool:
    return (encoding or "").lower().replace("-", "").replace("_", "") == "utf8"


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(MARKS.get(each, "?") for each in error.object[error.start : error.end]), error.end


def flush() -> str:
    """Flush both outputs. Returns "" on success, `closed` for a closed pipe, else the error."""
    failed = ""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            failed = failed or "closed"
        except (OSError, ValueError) as error:
            failed = getattr(error, "strerror", None) or str(error)
    return failed


def give_up_output() -> None:
    """Redirect both outputs to /dev/null, so that the final flush of the interpreter reports no error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)
