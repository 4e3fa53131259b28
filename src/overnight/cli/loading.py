"""The code of jobs: found and imported before anything is written, so that a mistake in it is one line."""

import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence

from overnight.domain import BadInput, OvernightError


def load_code(reference: str) -> None:
    """Import what a job is made of, so that a mistake in it is one line before anything is written. Raises BadInput."""
    from overnight.jobs import load_job

    sys.path.insert(0, os.getcwd())  # the jobs' modules, as `python -m` would find them
    try:
        load_job(reference)
    except OvernightError:
        raise
    except Exception as error:  # whatever the job's own module raised
        raise BadInput(f"{reference} cannot be imported: {type(error).__name__}: {error}{_place_of(error)}") from error


def _place_of(error: BaseException) -> str:
    """The innermost line of the job's own code, where there is one."""
    if isinstance(error, SyntaxError):
        return ""  # its message names the place
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({last.filename}:{last.lineno})"


def check_modules(names: Sequence[str]) -> None:
    """Raises BadInput for a module that cannot be found from here."""
    sys.path.insert(0, os.getcwd())
    for name in names:
        module = name.partition(":")[0]
        if module.endswith(".py"):
            found = os.path.isfile(module)
        else:
            try:
                found = importlib.util.find_spec(module) is not None
            except (ImportError, ValueError):
                found = False
        if not found:
            raise BadInput(f"--jobs {name}: there is no such module or file here; start it in the folder that holds it")
