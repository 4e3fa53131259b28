"""What every command prints with: a console that is plain where nobody looks, and JSON."""

import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

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


def table(*columns: str, right: frozenset[str] = frozenset(), growing: str = "") -> "Table":
    """A table without lines; the column `growing` takes the room that is left, and is cut there."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="dim", show_edge=False)
    for column in columns:
        last = column == growing
        made.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if last else None,
        )
    return made
