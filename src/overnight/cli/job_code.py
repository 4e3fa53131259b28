"""The code of jobs: found and imported before anything is written, so that a mistake in it is one line."""

import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.machinery import PathFinder

from overnight.domain import BadInput, OvernightError


def load_code(reference: str) -> None:
    """Import what a job is made of, so that a mistake in it is one line before anything is written. Raises BadInput."""
    from overnight.jobs import add_folder, load_job

    add_folder(os.getcwd())
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
    """Raises BadInput for a module that cannot be found from here. Nothing is imported: that is for the worker to do."""
    for name in names:
        module = name.partition(":")[0]
        found = os.path.isfile(module) if module.endswith(".py") else _exists(module)
        if not found:
            raise BadInput(f"--jobs {name}: there is no such module or file here; start it in the folder that holds it")


def _exists(module: str) -> bool:
    """Whether a module of this name can be found, from here too."""
    places: Sequence[str] | None = [*sys.path, os.getcwd()]
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        if places is None:
            return False  # it is looked for in what is no package
        spec = PathFinder.find_spec(name, places) or (
            importlib.util.find_spec(name) if name == module == part else None
        )
        if spec is None:
            return False
        places = spec.submodule_search_locations
    return True
