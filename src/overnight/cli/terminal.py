"""Standard input, output and error as this program finds them: closed, a pipe whose reader leaves, a terminal without UTF-8."""

import codecs
import os
import sys
from collections.abc import Mapping
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
"""Our marks in ASCII: of the same width, and each as different from the others as it was."""


def set_up_streams() -> None:
    """Make the three standard streams usable whatever they are, before anything is opened."""
    _open_closed()
    codecs.register_error("overnight", _replace)
    for stream in (sys.stdout, sys.stderr):
        plain = not _is_utf8(stream.encoding) or not says_utf8(os.environ)
        # A terminal that cannot show a character gets another one, not a traceback.
        cast(Any, stream).reconfigure(encoding="ascii" if plain else None, errors="overnight")


def _open_closed() -> None:
    """/dev/null in the place of a closed stream: else the ledger would be opened under its number, and be written to."""
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


def says_utf8(environment: Mapping[str, str]) -> bool:
    """Whether the locale lets UTF-8 be written. Where none is set, it does: containers have none.

    Python itself takes the locale C for UTF-8 (PEP 538, 540), and so sets LC_CTYPE=C.UTF-8 where LANG=C alone was set.
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
    """Write out what is held back: "" when all is written, `closed` when the reader left, else why it failed."""
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
    """Drop all that is or would be written from now on, so that the interpreter's own last flush says nothing either."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)
