"""Problems of a brain, with remedies."""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

Severity = Literal["error", "warning"]
_MAX_TEXT = 400


class Problem(msgspec.Struct, frozen=True):
    """One problem in one place. `line` and `column` count from 1. An error prevents the brain from loading.

    The texts are bounded and safe to print and encode, whatever the file contains.
    """

    file: str
    line: int
    column: int
    message: str
    hint: str = ""
    severity: Severity = "error"

    def __post_init__(self) -> None:
        for field in ("file", "message", "hint"):
            text: str = getattr(self, field)
            if len(text) > _MAX_TEXT or not text.isprintable():
                msgspec.structs.force_setattr(self, field, _printable(text))

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.file}:{self.line}:{self.column}: {self.severity}: {self.message}{hint}"


class BrainError(Exception):
    """The brain cannot be used. `problems` contains all of them, including warnings, in file order."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n  ".join([message, *map(str, self.problems)]))


def nearest(name: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Up to `count` known names that are similar to `name`, the most similar first."""
    import difflib  # a valid brain never needs it

    return difflib.get_close_matches(name[:128], known, n=count)


def similarity(one: str, other: str) -> float:
    """The similarity of two names; 1 for equal ones."""
    import difflib

    return difflib.SequenceMatcher(None, one[:128], other[:128]).ratio()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint with the nearest known name, or with all known names if they are few."""
    names = sorted(set(known))
    found = nearest(name, names)
    if found:
        return f"did you mean {found[0]!r}?"
    return f"known: {', '.join(names)}" if 0 < len(names) <= 24 else ""


def _printable(text: str) -> str:
    shortened = text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
    # repr escapes control characters, line separators and the lone surrogates of file names that are not UTF-8.
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in shortened)


def clipped(text: str, limit: int = 60) -> str:
    """Quote `text` for a message: one line, bounded, safe to print."""
    shortened = text if len(text) <= limit else text[: limit - 1] + "…"
    # repr keeps unprintable characters out of terminals and lone surrogates out of encoders.
    return repr(shortened)
