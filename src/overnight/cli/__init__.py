"""What: the command line: parse, call, print.
Owns: the words and tables that people see in a terminal.
Depends on: app, story, and for reading the ledger and the reviews.
Never: decides anything about a job; it asks the rooms that do.
"""

import sys
from typing import TextIO

__all__ = ["main"]


def main() -> None:
    """The entry point. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 parked for a person, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIO) or hasattr(stream, "reconfigure"):
            # A terminal that cannot show a character gets a question mark, not a traceback.
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    from overnight.domain import OvernightError

    from .finding import WrongUsage
    from .program import program

    try:
        program()
    except OvernightError as error:
        sys.exit(_complain(str(error), 2 if isinstance(error, WrongUsage) else 1))
    except Exception as error:
        from overnight.brain import BrainError

        if not isinstance(error, BrainError):
            raise
        sys.exit(_complain(str(error), 1))


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"overnight: {message}\n")
    return code
