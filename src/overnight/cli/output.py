"""Output of every command: a console, plain text in a pipe, and JSON."""

import os
import re
import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from overnight.story import clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PIPE_WIDTH = 500
STATE_STYLES = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "parked": "magenta",
    "running": "cyan",
    "queued": "blue",
}
_NOT_ASCII = re.compile(r"[^\x00-\x7e]")
_UNPRINTABLE = re.compile(r"[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")


@cache
def console(stderr: bool = False) -> "Console":
    """A rich console on a terminal; plain lines without wrapping in a pipe. Honours NO_COLOR, COLUMNS and TERM=dumb."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def styled(*pieces: str | tuple[str, str]) -> "Text":
    """One text from pieces, each a string or (text, style); empty pieces are dropped. Imports rich here to keep JSON fast."""
    from rich.text import Text

    return Text.assemble(*(piece for piece in pieces if (piece if isinstance(piece, str) else piece[0])))


def say(text: str, *, err: bool = False) -> None:
    """Write a line unchanged to the standard stream. `typer.echo` would open another stream if that one is ASCII."""
    stream = sys.stderr if err else sys.stdout
    stream.write(text + "\n")
    stream.flush()


def json_text(value: Any) -> str:
    """One JSON document on one line. Control characters, and characters that the output cannot encode, are escaped."""
    return _escaped(msgspec.json.encode(value).decode("utf-8", "replace"))


def print_json(value: Any) -> None:
    """Print one JSON document; indented on a terminal, on one line otherwise."""
    body = msgspec.json.encode(value)
    if sys.stdout.isatty():
        body = msgspec.json.format(body, indent=2)
    sys.stdout.write(_escaped(body.decode("utf-8", "replace")) + "\n")


def _escaped(body: str) -> str:
    # JSON is ASCII outside of strings, so these characters can be escaped everywhere.
    plain = _UNPRINTABLE if (sys.stdout.encoding or "").lower().replace("-", "") == "utf8" else _NOT_ASCII
    return plain.sub(_escape, body)


def _escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def print_rows(heads: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]], right: frozenset[str]) -> None:
    """Print rows of (text, style) in columns. A terminal cuts the last column; a pipe cuts nothing."""
    from rich.cells import cell_len

    out = console()
    safe = [[(clean(text, PIPE_WIDTH), style) for text, style in row] for row in rows]
    widths = [max(len(head), *(cell_len(row[at][0]) for row in safe)) for at, head in enumerate(heads)]
    for row in [[(head, "dim") for head in heads], *safe]:
        line = styled()
        for (text, style), width, head in zip(row, widths, heads, strict=True):
            room = " " * (width - cell_len(text))
            line.append(room + text if head in right else text + room, style)
            line.append("  ")
        line.rstrip()
        out.print(line, no_wrap=True, overflow="ellipsis", crop=out.is_terminal)
