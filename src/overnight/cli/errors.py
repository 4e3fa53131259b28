"""What becomes of an error: one clear line on standard error, and an exit code. A traceback only where it was asked for."""

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

from overnight.domain import OvernightError

from .lookup import WrongUsage

INTERRUPTED, PIPE_CLOSED = 130, 141
"""128 and the number of the signal, as shells report it."""
_PASSWORD = re.compile(r"(://[^\s/:@]*:)[^\s@]*@")
LONGEST_LINE = 600
REPEAT_AFTER_S = 0.02


def end_of(command: Callable[[], int], interrupt: Callable[[object], None]) -> int:
    """Run the command; its exit code. No exception leaves this function, except where OVERNIGHT_DEBUG asks for it.

    `interrupt` says what Ctrl-C does: with True it interrupts the command, with False it ends the process at once.
    """
    import warnings

    debug = bool(os.environ.get("OVERNIGHT_DEBUG"))
    if not debug:
        # An interrupt between the making of a coroutine and its first step is no news for whoever pressed Ctrl-C.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _deliver_again
    try:
        interrupt(True)
        return command()
    except BaseException as error:
        interrupt(False)
        if debug and not isinstance(error, (KeyboardInterrupt, BrokenPipeError, SystemExit)):
            raise
        return _told(error)
    finally:
        interrupt(False)


def _deliver_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Send an interrupt again that arrived where Python discards exceptions: in a finalizer or a callback of an import."""
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
        return
    again = threading.Timer(REPEAT_AFTER_S, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()


def _told(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        if isinstance(error.__context__, BrokenPipeError):  # the libraries that print end the program for it
            return PIPE_CLOSED
        return error.code if isinstance(error.code, int) else 1 if error.code else 0
    from typer import Abort
    from typer._click.exceptions import NoArgsIsHelpError
    from typer.exceptions import TyperException

    from overnight.brain import BrainError

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
            return _complain(" ".join(str(error).split()), 2 if isinstance(error, WrongUsage) else 1)
        case BrainError():
            return _complain(str(error), 1)
        case OSError() if error.filename is not None and error.strerror:
            return _complain(f"{error.filename}: {error.strerror}", 1)
        case OSError() if error.errno in {errno.ENOSPC, errno.EIO}:
            return _complain(f"standard output cannot be written: {error.strerror}", 1)
        case _:
            kind = type(error).__name__
            return _complain(f"unexpected {kind}: {str(error) or kind}. OVERNIGHT_DEBUG=1 shows where it comes from", 1)


def _innermost(error: BaseException) -> BaseException:
    """Of a group the first error that says something; an interrupt or a closed pipe anywhere in it is the cause of the rest."""
    if not isinstance(error, BaseExceptionGroup):
        return error
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
    """What is wrong with the words, and where the right ones stand."""
    said = getattr(error, "format_message", error.__str__)()
    context = getattr(error, "ctx", None)
    return f"{said.rstrip('.')}. See `{context.command_path} --help`" if context is not None else said


def _complain(message: str, code: int) -> int:
    from overnight.story import clean

    message = _PASSWORD.sub(r"\1…@", message)
    if os.environ.get("OVERNIGHT_CHILD"):
        from overnight.supervisor import line_of

        role = sys.argv[1] if len(sys.argv) > 1 else "child"
        sys.stderr.write(line_of(time.time(), "ERROR", role, message) + "\n")
        return code
    first, *more = message.splitlines() or [""]
    lines = [clean(first, LONGEST_LINE), *(f"  {clean(line, LONGEST_LINE)}" for line in more if line.strip())]
    with contextlib.suppress(OSError):  # nobody hears it
        sys.stderr.write("overnight: " + "\n".join(lines) + "\n")
    return code
