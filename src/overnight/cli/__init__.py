"""What: the command line: parses arguments, calls other packages, prints results.
Owns: the texts and tables of the terminal.
Depends on: app, roles, demo, story, and the packages that it reads from.
Never: makes decisions about jobs; other packages make them.
"""

# Slow imports come after `main` has installed the Ctrl-C handler, so that an interrupt always ends the program silently.
import os
import signal
import sys

__all__ = ["main"]

INTERRUPTED = 130


def main() -> None:
    """The entry point.

    Exit codes: 0 success, 1 failure, 2 invalid usage, 3 parked for a person, 130 interrupted, 141 closed pipe.
    """
    quiet = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if quiet:
        signal.signal(signal.SIGINT, _leave)
    from .terminal import flush, give_up_output, set_up_streams

    set_up_streams()
    from .errors import PIPE_CLOSED, run_command

    def interrupt(command: object) -> None:
        if quiet:
            signal.signal(signal.SIGINT, signal.default_int_handler if command else _leave)

    code = run_command(_commands, interrupt)
    if failed := flush():
        if failed != "closed" and code == 0:
            _report_unwritten(failed)
        code = PIPE_CLOSED if failed == "closed" else code or 1
    if failed or code == PIPE_CLOSED:
        give_up_output()
    sys.exit(code)


def _commands() -> int:
    from .program import program

    return program(standalone_mode=False) or 0


def _leave(*_: object) -> None:
    """End the process without the traceback of an interrupted import; no command is running."""
    os._exit(INTERRUPTED)


def _report_unwritten(why: str) -> None:
    try:
        sys.stderr.write(f"overnight: cannot write standard output: {why}\n")
        sys.stderr.flush()
    except OSError:
        pass
