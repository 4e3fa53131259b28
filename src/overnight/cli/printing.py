"""What every command prints with: a console that is plain where nobody looks, and JSON."""

import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 500
STATE_STYLES = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "parked": "magenta",
    "running": "cyan",
    "queued": "blue",
}


@cache
def console(stderr: bool = False) -> "Console":
    """Rich on a terminal; plain lines of their own length in a pipe. Honours NO_COLOR, COLUMNS and TERM=dumb."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def print_json(value: Any) -> None:
    """One JSON document; on several lines for eyes, on one for programs."""
    import msgspec

    body = msgspec.json.encode(value)
    if sys.stdout.isatty():
        body = msgspec.json.format(body, indent=2)
    sys.stdout.write(body.decode("utf-8", "replace") + "\n")


def print_rows(heads: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]], right: frozenset[str]) -> None:
    """Rows of (text, style) in columns as wide as they need; a terminal cuts what stands last, a pipe cuts nothing."""
    from rich.text import Text

    out = console()
    widths = [max(len(head), *(len(row[at][0]) for row in rows)) for at, head in enumerate(heads)]
    for row in [[(head, "dim") for head in heads], *rows]:
        line = Text()
        for (text, style), width, head in zip(row, widths, heads, strict=True):
            line.append(text.rjust(width) if head in right else text.ljust(width), style)
            line.append("  ")
        line.rstrip()
        out.print(line, no_wrap=True, overflow="ellipsis", crop=out.is_terminal)
