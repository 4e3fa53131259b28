"""Reports an error as one line on standard error and an exit code; a traceback only with OVERNIGHT_DEBUG.

Most imports are local: they are needed only after a command failed.
"""

import contextlib
import errno
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import cast

INTERRUPTED, PIPE_CLOSED = 130, 141
"""128 plus the number of the signal, as in shells."""
_PASSWORD = re.compile(r"(://[^\s/:@]*:)[^\s@]*@")
MAX_LINE = 600
REPEAT_AFTER_S = 0.02


def run_command(command: Callable[[], int], interrupt: Callable[[object], None]) -> int:
    """Run the command and return its exit code. Exceptions are reported, unless OVERNIGHT_DEBUG is set.

    `interrupt` sets what Ctrl-C does: with True it interrupts the command, with False it ends the process at once.
    """
    import warnings

    debug = bool(os.environ.get("OVERNIGHT_DEBUG"))
    if not debug:
        # An interrupt between the creation of a coroutine and its first step needs no warning.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _deliver_again
    try:
        interrupt(True)
        return command()
    except BaseException as error:
        interrupt(False)
        if debug and not isinstance(error, (KeyboardInterrupt, BrokenPipeError, SystemExit)):
            raise
        return _report(error)
    finally:
        interrupt(False)


def _deliver_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Repeat an interrupt that arrived where Python discards exceptions: in a finalizer or a callback of an import."""
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
        return
    again = threading.Timer(REPEAT_AFTER_S, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()


def _report(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        if isinstance(error.__context__, BrokenPipeError):  # rich and click exit on it
            return PIPE_CLOSED
        return error.code if isinstance(error.code, int) else 1 if error.code else 0
    from typer import Abort
    from typer._click.exceptions import NoArgsIsHelpError
    from typer.exceptions import TyperException

    from overnight.brain import BrainError
    from overnight.domain import OvernightError

    from .usage import WrongUsage

    error = _innermost(error)
    match error:
        case KeyboardInterrupt() | Abort():
            return INTERRUPTED
        case BrokenPipeError():
            return PIPE_CLOSED
        case NoArgsIsHelpError():
            error.show()
            return error.exit_code
        case TyperException():
            return _complain(_usage(error), error.exit_code)
        case OvernightError():
            message = f"{error.title}: {error}" if error.title else str(error)
            return _complain(" ".join(message.split()), 2 if isinstance(error, WrongUsage) else 1)
        case BrainError():
            return _complain(str(error), 1)
        case OSError() if error.filename is not None and error.strerror:
            return _complain(f"{error.filename}: {error.strerror}", 1)
        case OSError() if error.errno in {errno.ENOSPC, errno.EIO}:
            return _complain(f"cannot write standard output: {error.strerror}", 1)
        case _:
            kind = type(error).__name__
            return _complain(f"unexpected {kind}: {str(error) or kind}. Set OVERNIGHT_DEBUG=1 for a traceback", 1)


def _innermost(error: BaseException) -> BaseException:
    """The first informative error of a group; an interrupt or a closed pipe in it is the cause of the others."""
    if not isinstance(error, BaseExceptionGroup):
        return error

    from overnight.domain import OvernightError

    inside = list(_leaves(cast("BaseExceptionGroup[BaseException]", error)))
    causes = [each for each in inside if isinstance(each, (KeyboardInterrupt, BrokenPipeError, OvernightError))]
    return (causes or inside)[0]


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(cast("BaseExceptionGroup[BaseException]", each))
        else:
            yield each


def _usage(error: Exception) -> str:
    """The usage error, and the command that shows the help."""
    message = getattr(error, "format_message", error.__str__)()
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    message = message.rstrip(".")
    return f"{message}{'' if message.endswith('?') else '.'} See `{context.command_path} --help`"


def _complain(message: str, code: int) -> int:
    from overnight.story import clean

    message = _PASSWORD.sub(r"\1…@", message)
    if os.environ.get("OVERNIGHT_CHILD"):
        from overnight.supervisor import line_of

        role = sys.argv[1] if len(sys.argv) > 1 else "child"
        sys.stderr.write(line_of(time.time(), "ERROR", role, message) + "\n")
        return code
    first, *more = message.splitlines() or [""]
    lines = [clean(first, MAX_LINE), *(f"  {clean(line, MAX_LINE)}" for line in more if line.strip())]
    with contextlib.suppress(OSError):  # standard error is closed
        sys.stderr.write("overnight: " + "\n".join(lines) + "\n")
    return code
