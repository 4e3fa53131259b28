"""Checks of job code before anything is written."""

import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.machinery import PathFinder

from overnight.domain import BadInput, OvernightError
from overnight.jobs import add_folder, load_job


def load_code(reference: str) -> None:
    """Import the code of a job. Raises BadInput with a one-line reason, before anything is written."""

    add_folder(os.getcwd())
    try:
        load_job(reference)
    except OvernightError:
        raise
    except Exception as error:  # whatever the job's own module raised
        raise BadInput(f"{reference}: cannot import: {type(error).__name__}: {error}{_place_of(error)}") from error


def _place_of(error: BaseException) -> str:
    """The innermost line of the job's code in the traceback; "" if there is none."""
    if isinstance(error, SyntaxError):
        return ""  # its message names the place
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({last.filename}:{last.lineno})"


def check_modules(names: Sequence[str]) -> None:
    """Raises BadInput for a module that cannot be found. Imports nothing: the worker does that."""
    for name in names:
        module = name.partition(":")[0]
        found = os.path.isfile(module) if module.endswith(".py") else _exists(module)
        if not found:
            raise BadInput(f"--jobs {name}: module or file not found; start the command in the folder that contains it")


def _exists(module: str) -> bool:
    """Whether a module of this name can be found on the path or in the working folder."""
    places: Sequence[str] | None = [*sys.path, os.getcwd()]
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        if places is None:
            return False  # the parent is not a package
        # By its last name: the whole one requires that a parent without __init__.py is imported.
        spec = PathFinder.find_spec(part, places) or (
            importlib.util.find_spec(name) if name == module == part else None
        )
        if spec is None:
            return False
        found = spec.submodule_search_locations
        places = None if found is None else list(found)
    return True
