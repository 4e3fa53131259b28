"""What: the command line: parse, call, print.
Owns: the words and tables that people see in a terminal.
Depends on: app, story, and for reading the ledger and the reviews.
Never: decides anything about a job; it asks the rooms that do.
"""

# Nothing slow is imported before `main` has said what Ctrl-C does, so that it ends the program at any moment without a word.
import os
import signal
import sys

__all__ = ["main"]

INTERRUPTED = 130


def main() -> None:
    """The entry point. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 parked for a person, 130 interrupted, 141 reader left."""
    quiet = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if quiet:
        signal.signal(signal.SIGINT, _leave)
    from .terminal import flush, give_up_output, set_up_streams

    set_up_streams()
    from .errors import PIPE_CLOSED, end_of

    def interrupt(command: object) -> None:
        if quiet:
            signal.signal(signal.SIGINT, signal.default_int_handler if command else _leave)

    code = end_of(_commands, interrupt)
    if failed := flush():
        if failed != "closed" and code == 0:
            _say_unwritten(failed)
        code = PIPE_CLOSED if failed == "closed" else code or 1
    if failed or code == PIPE_CLOSED:
        give_up_output()
    sys.exit(code)


def _commands() -> int:
    from .program import program

    return program(standalone_mode=False) or 0


def _leave(*_: object) -> None:
    """Nothing is begun yet, or all is done: go, without what an interpreter says of an interrupted import."""
    os._exit(INTERRUPTED)


def _say_unwritten(why: str) -> None:
    try:
        sys.stderr.write(f"overnight: standard output cannot be written: {why}\n")
        sys.stderr.flush()
    except OSError:
        pass
